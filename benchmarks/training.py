"""Is training here faster, smaller and better than with the peers, on the same rows and cores?

    pip install -e '.[bench]'
    python benchmarks/training.py speed [--rounds 3]      # tokens a second, loss curves, peak memory, share of the matmul rate: about 15 minutes
    python benchmarks/training.py memory                  # peak memory of a step against what `plan` said, and a TinyLlama's: about 10 minutes
    python benchmarks/training.py methods                 # does LoRA on 4 and 8 bits learn what it learns on 16? About 15 minutes
    python benchmarks/training.py quality [--minutes 10]  # held-out loss after the same minutes, three seeds: about an hour

Rows are those of counsel_chat (train.jsonl and valid.jsonl in --data), cut at 512 tokens. Every contestant trains in a process of its own, one after the other, in rounds,
so that a slow minute of the machine hits all of them; medians of paired ratios are printed. Tokens are those of questions and answers, never padding; the first
step is a warm-up and not counted. Contestants, all SmolLM2-135M, batch 8, AdamW at 2e-4, LoRA r 16 on q, k, v, o, without dropout, the same rows in the same order:

    zenbot       training.train
    trl          SFTTrainer as it comes, told only `use_cpu`, without which it refuses: fp32 weights under bf16 autocast, gradient checkpointing
    trl-fp32     the same without autocast
    trl-tuned    SFTTrainer with bf16 weights and no checkpointing
    stock        transformers' Trainer with bf16 weights and its own DataCollatorForSeq2Seq
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "counsel_chat"
PEERS = ("trl", "trl-fp32", "trl-tuned", "stock")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


# ---- what happens in a process of its own ----

def token_rows(data: Path, part: str, n: int | None = None) -> list:
    """The first n rows of a file whose answer fits into 512 tokens."""
    from zenbot.doctor import fit_rows
    from zenbot.prompts import load_prompter, tokenize_rows
    from zenbot.rows import load_rows
    rows = load_rows(data / f"{part}.jsonl", limit=2 * n if n else 0)[0]
    return fit_rows(tokenize_rows(rows, load_prompter("smollm2-135m"), 512)[0])[0][:n]


def train_zenbot(rows, valid, folder, steps, seed, recipe) -> tuple:
    """(model, one (seconds, tokens) a step, losses)."""
    import torch
    from zenbot import training
    from zenbot.adapters import add_lora
    from zenbot.core import Run
    from zenbot.models import load_model
    from zenbot.prompts import load_prompter
    taken, end = [], training._Progress.on_step_end

    def watch(self, *args, **kwargs):
        before = self.seconds
        end(self, *args, **kwargs)
        taken.append((self.seconds - before, self.tokens - sum(t for _, t in taken)))
    training._Progress.on_step_end = watch
    model = add_lora(load_model("smollm2-135m", torch.bfloat16, bits=recipe.get("bits", 16)), 16, 32, 0.0, recipe["targets"], recipe["rslora"], seed)
    log = training.train(Run(folder), "bench", model, load_prompter("smollm2-135m"), rows, valid, recipe["learning_rate"], epochs=9, max_steps=steps, batch_size=8,
                         eval_steps=10**6, seed=seed, report_to="none", schedule=recipe["schedule"], warmup=recipe["warmup"])
    return model, taken, [e["loss"] for e in log if "loss" in e]


def train_peer(name, rows, folder, steps, seed, recipe) -> tuple:
    """The same with TRL or with the Trainer of transformers."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments, set_seed
    from zenbot.models import locate
    from zenbot.prompts import load_prompter
    tok, seen, taken = load_prompter("smollm2-135m"), [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs): self.began = time.perf_counter()
        def on_step_end(self, *args, **kwargs): taken.append((time.perf_counter() - self.began, seen[len(taken)]))

    lora = LoraConfig(task_type="CAUSAL_LM") if recipe["default"] else LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=ATTENTION, task_type="CAUSAL_LM")
    same = dict(output_dir=str(folder), max_steps=steps, seed=seed, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True)
    same |= {} if recipe["default"] else dict(learning_rate=recipe["learning_rate"], per_device_train_batch_size=8, lr_scheduler_type=recipe["schedule"], warmup_steps=recipe["warmup"])
    if name == "stock":
        set_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(locate("smollm2-135m"), dtype=torch.bfloat16), lora)
        trainer = Trainer(model, TrainingArguments(**same), DataCollatorForSeq2Seq(tok, padding=True, label_pad_token_id=-100),
                          Dataset.from_list([{k: r[k] for k in ("input_ids", "labels")} for r in rows]))
    else:
        from trl import SFTConfig, SFTTrainer
        ways = {"trl": {}, "trl-fp32": dict(bf16=False), "trl-tuned": dict(model_init_kwargs=dict(dtype="bfloat16"), gradient_checkpointing=False)}
        data = Dataset.from_list([dict(input_ids=r["input_ids"], completion_mask=[int(label != -100) for label in r["labels"]]) for r in rows])
        trainer = SFTTrainer(str(locate("smollm2-135m")), SFTConfig(**same, **ways[name], use_cpu=True, max_length=512, completion_only_loss=True), train_dataset=data, processing_class=tok, peft_config=lora)
    collate = trainer.data_collator

    def counted(examples):
        seen.append(sum(len(e["input_ids"]) for e in examples))
        return collate(examples)
    trainer.data_collator = counted
    trainer.add_callback(Watch())
    trainer.train()
    return trainer.model, taken, [e["loss"] for e in trainer.state.log_history if "loss" in e]


def child(task: dict) -> dict:
    """One training: seconds and tokens of every step, losses, peak resident memory, and, if asked, the loss of every held-out row."""
    data, name = Path(task["data"]), task["name"]
    rows, valid = token_rows(data, "train", task["rows"]), token_rows(data, "valid", task["valid"])
    with tempfile.TemporaryDirectory() as folder:
        work = [folder, task["steps"], task["seed"], task["recipe"]]
        model, taken, losses = train_zenbot(rows, valid[:2], *work) if name == "zenbot" else train_peer(name, rows, *work)
    found = dict(steps=taken, losses=losses, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    if task["valid"] != 2:
        from zenbot.measures import response_losses
        nats, counts = response_losses(model.eval(), valid)
        found |= dict(nats=nats.tolist(), counts=counts.tolist(), prompts=[hash(str(r["input_ids"][:r["labels"].index(next(x for x in r["labels"] if x != -100))])) for r in valid])
    return found


TINYLLAMA = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048)


def build_tinyllama(folder: str) -> dict:
    """TinyLlama-1.1B's shape with random weights, in bf16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from zenbot.models import locate
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**TINYLLAMA)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("tiny")).save_pretrained(folder)   # any that names an end; the rows are random
    return {}


def one_step(task: dict) -> dict:
    """Peak resident memory and tokens a second of two steps on full rows of random tokens, through `training.train`."""
    import numpy as np
    from zenbot.adapters import add_lora, load_base
    from zenbot.core import Run
    from zenbot.models import load_tokenizer
    from zenbot.training import train
    model = load_base(task["model"], task["method"])
    if task["method"] != "full":
        model = add_lora(model, 16, 32, task["dropout"], task["targets"])
    tok, draw = load_tokenizer(task["model"]), np.random.default_rng(0)
    rows = [dict(input_ids=ids, labels=ids) for ids in draw.integers(300, 1000, (2 * task["batch"], task["length"])).tolist()]
    with tempfile.TemporaryDirectory() as folder:
        log = train(Run(folder), "memory", model, tok, rows, rows[:1], batch_size=task["batch"], eval_steps=10**6, report_to="none", text=True, gradient_checkpointing=task["checkpointing"])
    return dict(peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, tokens_per_s=log[-1]["tokens_per_s"])


def matmul_rates(n: int) -> dict:
    """bf16 TFLOP/s of a 4096 x 4096 product, and tokens a second if a step of n tokens were nothing but the products of SmolLM2-135M's layers and head, on warm operands."""
    import torch

    def median(f, repeats=15):
        f()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return sorted(times)[repeats // 2]

    a = torch.randn(4096, 4096).bfloat16()
    square = 2 * 4096**3 / median(lambda: a @ a) / 1e12
    width, inner, kv, vocabulary, layers, labelled = 576, 1536, 192, 49152, 30, 0.68
    seconds = 0.0
    for i, o, times in ((width, width, 2), (width, kv, 2), (width, inner, 2), (inner, width, 1)):
        x, w, g = torch.randn(n, i).bfloat16(), torch.randn(o, i).bfloat16(), torch.randn(n, o).bfloat16()
        seconds += layers * times * (median(lambda: x @ w.T) + median(lambda: g @ w))   # forward, and backward to the inputs; weights are frozen
    x, w, g = torch.randn(1024, width).bfloat16(), torch.randn(vocabulary, width).bfloat16(), torch.randn(1024, vocabulary).bfloat16()
    seconds += (median(lambda: x @ w.T, 3) + median(lambda: g @ w, 3)) * labelled * n / 1024
    flops_per_token = 4 * (layers * (2 * width * width + 2 * width * kv + 3 * width * inner) + labelled * width * vocabulary)
    return dict(square_tflops=square, flops_per_token=flops_per_token, products_tokens_per_s=n / seconds)


# ---- what the parent does with it ----

def spawn(role: str, task) -> dict:
    """The result of a child process, its noise kept out of sight unless it fails."""
    with tempfile.NamedTemporaryFile("w+") as out:
        done = subprocess.run([sys.executable, __file__, role, json.dumps(task), out.name], capture_output=True, text=True,
                              env=os.environ | dict(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1", ZENBOT_BATCH="1", PYTHONHASHSEED="0"))
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        return json.loads(Path(out.name).read_text())


def rate(result: dict) -> float:
    """Tokens a second, the first step left out."""
    seconds, tokens = map(sum, zip(*result["steps"][1:]))
    return tokens / seconds


SAME = dict(learning_rate=2e-4, schedule="linear", warmup=0, targets=ATTENTION, rslora=False, default=False)


def speed(data: Path, rounds: int, steps: int):
    import numpy as np
    rounds = [{name: spawn("train", dict(name=name, data=str(data), rows=8 * steps, valid=2, steps=steps, seed=0, recipe=SAME)) for name in ("zenbot", *PEERS)}
              for _ in range(rounds)]
    print(f"{'':10} {'tok/s':>7} {'zenbot is':>10}  {'rounds':24} {'peak MB':>8} {'zenbot takes':>13}   loss")
    for name in ("zenbot", *PEERS):
        ratios, peaks = [rate(r["zenbot"]) / rate(r[name]) for r in rounds], [r["zenbot"]["peak_mb"] / r[name]["peak_mb"] for r in rounds]
        losses = " ".join(f"{loss:.3f}" for loss in rounds[0][name]["losses"])
        print(f"{name:10} {np.median([rate(r[name]) for r in rounds]):7.0f} {np.median(ratios):9.2f}x  {' '.join(f'{x:.2f}' for x in ratios):24} "
              f"{np.median([r[name]['peak_mb'] for r in rounds]):8.0f} {np.median(peaks):12.2f}x   {losses}")
    curves = {name: np.array(rounds[0][name]["losses"]) for name in rounds[0]}
    for a, b in (("zenbot", "trl"), ("zenbot", "trl-tuned"), ("zenbot", "stock"), ("trl", "trl-tuned")):
        print(f"largest distance of the loss curves of {a} and {b}: {abs(curves[a] - curves[b]).max():.4f} nats")
    tokens = rounds[0]["zenbot"]["steps"]
    matmul, own = spawn("matmul", int(sum(t for _, t in tokens) / len(tokens))), np.median([rate(r["zenbot"]) for r in rounds])
    square = matmul["square_tflops"] * 1e12 / matmul["flops_per_token"]
    print(f"bf16 matmul: {matmul['square_tflops']:.2f} TFLOP/s on 4096 x 4096, which would be {square:.0f} tok/s; the step's own products alone {matmul['products_tokens_per_s']:.0f} tok/s. "
          f"zenbot reaches {own / square:.0%} of the first and {own / matmul['products_tokens_per_s']:.0%} of the second")


def memory():
    from zenbot.plan import plan
    with tempfile.TemporaryDirectory() as llama:
        spawn("tinyllama", llama)
        small, big, attention, all_linear = "smollm2-135m", llama, ATTENTION, "all-linear"
        print(f"{'model':12} {'method':7} {'rows':>8} {'':24} {'planned MB':>10} {'measured':>9} {'off by':>7} {'planned tok/s':>14} {'measured':>9}")
        for model, method, batch, length, targets, dropout, light in (
                (small, "lora", 8, 256, attention, 0.0, False), (small, "lora", 8, 512, attention, 0.0, False), (small, "lora", 8, 512, all_linear, 0.0, False),
                (small, "lora", 8, 512, attention, 0.0, True), (small, "lora", 4, 512, attention, 0.05, False), (small, "lora", 8, 512, all_linear, 0.05, False),
                (small, "qlora8", 8, 512, attention, 0.0, False), (small, "qlora4", 8, 512, attention, 0.0, False), (small, "full", 4, 256, attention, 0.0, False),
                (small, "full", 8, 512, attention, 0.0, False), (big, "lora", 4, 512, attention, 0.0, False), (big, "qlora4", 4, 512, attention, 0.0, False),
                (big, "qlora4", 4, 512, attention, 0.0, True)):
            planned = plan(model, method, "cpu", batch, length, 16, targets, dropout, light)
            done = spawn("step", dict(model=model, method=method, batch=batch, length=length, targets=targets, dropout=dropout, checkpointing=light))
            note = f"{'all-linear ' * (targets == all_linear)}{'dropout ' * (dropout > 0)}{'checkpointing' * light}"
            print(f"{'TinyLlama' if model == llama else model:12} {method:7} {batch:3} x {length} {note:24} {planned['total_mb']:10} {done['peak_mb']:9.0f} {planned['total_mb'] / done['peak_mb'] - 1:+7.0%} "
                  f"{planned['tokens_per_s']:14} {done['tokens_per_s']:9.0f}", flush=True)


def methods(data: Path, steps: int = 40, held: int = 60):
    """Held-out response loss before and after the same steps on a base in 16, 8 and 4 bits."""
    import numpy as np
    from zenbot.measures import response_losses
    from zenbot.models import load_model
    valid = token_rows(data, "valid", held)
    falls = {}
    for name, bits in (("lora", 16), ("qlora8", 8), ("qlora4", 4)):
        before = np.divide(*map(np.sum, response_losses(load_model("smollm2-135m", bits=bits), valid)))
        done = spawn("train", dict(name="zenbot", data=str(data), rows=8 * steps, valid=held, steps=steps, seed=0, recipe=SAME | dict(targets="all-linear", rslora=True, bits=bits)))
        after = sum(done["nats"]) / sum(done["counts"])
        falls[name] = before - after
        print(f"{name:7} held-out loss {before:.4f} -> {after:.4f}, a fall of {before - after:.4f} ({falls[name] / falls['lora'] - 1:+.1%} of lora's); {rate(done):.0f} tokens/s, {done['peak_mb']:.0f} MB", flush=True)


def quality(data: Path, minutes: float, seeds: int, keep: Path):
    """How many steps fit into the minutes is measured first, since a schedule must know its end; a slow minute of the machine must not cost the peer steps. Every finished training is kept in a folder and not repeated."""
    def trained(file: str, **task) -> dict:
        path = keep / f"{file}.json"
        if not path.exists():
            done = spawn("train", dict(data=str(data), rows=None, **task))
            keep.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".tmp").write_text(json.dumps(done))
            path.with_suffix(".tmp").replace(path)
        return json.loads(path.read_text())

    import numpy as np
    from zenbot.statistics import interval
    recipes = {"zenbot": SAME | dict(learning_rate=5e-4, schedule="cosine", warmup=0.03, targets="all-linear", rslora=True), "trl": dict(default=True)}
    steps, per_row = {}, {}
    for name, recipe in recipes.items():
        trial = trained(f"{name}-trial", name=name, valid=2, steps=17, seed=0, recipe=recipe)
        rates, tokens = [t / s for s, t in trial["steps"][1:]], np.mean([t for _, t in trial["steps"][1:]])
        steps[name] = int(minutes * 60 * (np.median(rates) if name == "zenbot" else max(rates)) / tokens)
    print(f"steps in {minutes:.0f} minutes, by our usual rate in 16 steps and the peer's best: {steps}", flush=True)
    for seed in range(seeds):
        for name, recipe in recipes.items():
            done = trained(f"{name}-{steps[name]}-{seed}", name=name, valid=None, steps=steps[name], seed=seed, recipe=recipe)
            per_row.setdefault(name, []).append(done)
            print(f"{name:7} seed {seed}: {steps[name]} steps, {sum(t for _, t in done['steps']):,} tokens in {sum(s for s, _ in done['steps']) / 60:.1f} minutes, "
                  f"held-out response loss {sum(done['nats']) / sum(done['counts']):.4f}", flush=True)
    counts, groups = np.array(done["counts"]), np.array(done["prompts"])
    ours, theirs = (np.mean([d["nats"] for d in per_row[name]], 0) for name in recipes)
    by_seed = [sum(a["nats"]) / counts.sum() - sum(b["nats"]) / counts.sum() for a, b in zip(*per_row.values())]
    found = interval(ours - theirs, counts, groups=groups)
    print(f"difference, each seed: {' '.join(f'{d:+.4f}' for d in by_seed)}; mean {found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}] nats per token over {len(set(groups))} questions")


if __name__ == "__main__":
    if sys.argv[1:2] in (["train"], ["matmul"], ["tinyllama"], ["step"]):
        role = dict(train=child, matmul=matmul_rates, tinyllama=build_tinyllama, step=one_step)[sys.argv[1]]
        Path(sys.argv[3]).write_text(json.dumps(role(json.loads(sys.argv[2]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("what", choices=("speed", "memory", "methods", "quality"))
        parser.add_argument("--data", type=Path, default=DATA)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--steps", type=int, default=6)
        parser.add_argument("--minutes", type=float, default=10)
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--keep", type=Path, default=Path("runs/bench-quality"), help="folder of finished trainings")
        args = parser.parse_args()
        if args.what == "speed":
            speed(args.data, args.rounds, args.steps)
        elif args.what == "memory":
            memory()
        elif args.what == "methods":
            methods(args.data)
        else:
            quality(args.data, args.minutes, args.seeds, args.keep)
