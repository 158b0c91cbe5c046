"""What is a smaller model worth: quality, size and speed at 90, 80 and 70 % of the parameters, by our scores and by two others.

    python benchmarks/pruning.py [--data DIR] [--keep DIR] [--steps 40]   # three hours and more; what is finished is kept and not repeated
    python benchmarks/pruning.py --budgets 0.8 --methods gradient          # one point
    python benchmarks/pruning.py speed                                     # size, speed and memory of ours, afterwards and with nothing else running
    pip install llama-cpp-python && python benchmarks/pruning.py gguf      # does llama.cpp say the same? Minutes

SmolLM2-135M is tuned on counsel_chat (stage 2: one epoch, all-linear rsLoRA), then pruned to each budget by gradient, magnitude and random scores, everything else equal: the same search
for the mixture of axes, the same least-squares refit, the same healing (distillation from the tuned model). `vocabulary` is gradient with the table of words as a fifth axis. Loss is that of held-out answers in nats per token; differences are paired over
rows, with 95 % bootstrap intervals over groups of questions. Speed and memory are measured afterwards, one model a process, whole and pruned in turn, and printed as ratios.
"""
import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "counsel_chat"
BUDGETS, METHODS = (0.9, 0.8, 0.7), ("vocabulary", "gradient", "magnitude", "random")


def token_rows(data: Path, part: str, tokenizer: str = "smollm2-135m") -> list:
    """The rows of a file whose answer fits into 512 tokens."""
    from zenbot.doctor import fit_rows
    from zenbot.prompts import load_prompter, tokenize_rows
    from zenbot.rows import load_rows
    return fit_rows(tokenize_rows(load_rows(data / f"{part}.jsonl")[0], load_prompter(tokenizer), 512)[0])[0]


def training_rows(data: str) -> list:
    """The canonical rows to learn from."""
    from zenbot.rows import load_rows
    return load_rows(Path(data) / "train.jsonl")[0]


# ---- what happens in a process of its own ----

def tune(task: dict) -> dict:
    """Stage 2 on all rows, merged."""
    from zenbot.adapters import add_lora, load_base, merge
    from zenbot.core import Run
    from zenbot.models import save_model
    from zenbot.prompts import load_prompter
    from zenbot.training import train
    tok, rows, valid = load_prompter("smollm2-135m"), token_rows(Path(task["data"]), "train"), token_rows(Path(task["data"]), "valid")
    learner = add_lora(load_base("smollm2-135m"), 16, 32, 0.0, "all-linear", True)
    with tempfile.TemporaryDirectory() as folder:
        log = train(Run(folder), "tune", learner, tok, rows, valid[:8], 5e-4, batch_size=8, eval_steps=10**6, report_to="none")
    save_model(merge(learner, valid[:4])[0], tok, task["out"])
    return dict(seconds=log[-1]["seconds"])


def held_out(model, data: str, tok) -> dict:
    """Nats of every held-out answer, and its labelled tokens by the tokenizer of SmolLM2, whatever the model's own."""
    from zenbot.measures import response_losses
    from zenbot.prompts import tokenize_rows
    from zenbot.rows import load_rows
    old = token_rows(Path(data), "valid")
    ids = {r["id"] for r in old}
    new = tokenize_rows([r for r in load_rows(Path(data) / "valid.jsonl")[0] if r["id"] in ids], tok, 1024)[0]
    assert [r["id"] for r in new] == [r["id"] for r in old]
    return dict(nats=response_losses(model.eval(), new)[0].tolist(), counts=[sum(label != -100 for label in r["labels"][1:]) for r in old])


def measure(task: dict) -> dict:
    """Held-out losses of a model as it is."""
    from zenbot.models import load_model
    from zenbot.prompts import load_prompter
    return held_out(load_model(task["model"]), task["data"], load_prompter(task["model"]))


def cut(task: dict) -> dict:
    """Scores, search, refit and removal, without healing; nothing is chosen by the held-out rows."""
    from zenbot.models import load_model, save_model
    from zenbot.prompts import load_prompter
    from zenbot.pruning import shrink, shrink_with_vocabulary, target_of
    model, tok = load_model(task["model"]), load_prompter(task["model"])
    target, settings = target_of(model, task["keep"]), dict(seed=task["seed"], calibration_rows=16)
    if task["method"] == "vocabulary":
        rows = training_rows(task["data"])
        small, tok, report = shrink_with_vocabulary(model, tok, rows[:-32], rows[-32:], target, **settings)
    else:
        rows = token_rows(Path(task["data"]), "train")
        small, report = shrink(model, tok, rows, rows[-32:], target, method=task["method"], **settings)
    save_model(small, tok, task["out"])
    return held_out(small, task["data"], tok) | dict(shape=report["counts"] | {k: report["vocabulary"]["size"] for k in ("vocabulary",) if k in report}, **{k: report[k] for k in ("parameters_before", "parameters_after")})


def healed(task: dict) -> dict:
    """Healing of a cut model; its teacher is the tuned model with the same vocabulary."""
    from zenbot.core import Run
    from zenbot.healing import heal
    from zenbot.models import load_model, save_model
    from zenbot.prompts import load_prompter, render
    from zenbot.pruning import tokens_of
    from zenbot.vocabulary import trim_vocabulary
    tok, old, teacher = load_prompter(task["model"]), load_prompter(task["teacher"]), load_model(task["teacher"])
    rows = training_rows(task["data"])
    if len(tok) < len(old):
        teacher = trim_vocabulary(teacher, old, [render(r["messages"], old) for r in rows[:-32]], len(tok))[0]
    tokens = tokens_of(rows, tok, 512)
    with tempfile.TemporaryDirectory() as folder:
        small, log = heal(load_model(task["model"]), teacher, tok, tokens, tokens[-8:], task["steps"], Run(folder), seed=task["seed"])
    save_model(small, tok, task["out"])
    return held_out(small, task["data"], tok) | dict(seconds=log[-1]["seconds"], tokens_per_s=log[-1]["tokens_per_s"])


def pace(task: dict) -> dict:
    """Tokens a second of the whole and a pruned model, 32 rows at once, in turn."""
    from zenbot.measures import speeds
    from zenbot.models import load_model
    return speeds([load_model(task["whole"]), load_model(task["model"])], rounds=7, batch=32, new=64)[1]


def peak(task: dict) -> dict:
    """Peak resident memory of loading a model and writing eight answers."""
    from zenbot.measures import speeds
    from zenbot.models import load_model
    speeds([load_model(task["model"])], rounds=1)
    return dict(peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def parity(task: dict) -> dict:
    """Share of held-out positions at which llama.cpp and transformers would write the same token, and whether an answer ends."""
    import numpy as np
    import torch
    from llama_cpp import Llama
    from zenbot.llamacpp import to_gguf
    from zenbot.models import load_model
    with tempfile.TemporaryDirectory() as folder:
        file = to_gguf(task["model"], f"{folder}/model.gguf", task["kind"])["file"]
        size = os.path.getsize(file) / 1e6
        llama, model = Llama(file, n_ctx=1024, logits_all=True, verbose=False), load_model(task["model"], torch.float32)
        same = total = 0
        for row in token_rows(Path(task["data"]), "valid", task["model"]):
            ids = row["input_ids"]
            llama.reset()
            llama.eval(ids)
            with torch.no_grad():
                reference = model(torch.tensor([ids])).logits[0].argmax(-1).numpy()
            same += int((np.array(llama.scores[:len(ids)]).argmax(-1) == reference).sum())
            total += len(ids)
            if total >= task["positions"]:
                break
        said = llama.create_chat_completion([dict(role="user", content="I wake at three and worry.")], temperature=0, repeat_penalty=1.1, max_tokens=256)["choices"][0]
    return dict(kind=task["kind"], mb=size, positions=total, top1=same / total, finish=said["finish_reason"], template="tokenizer.chat_template" in llama.metadata)


# ---- what the parent does with it ----

ROLES = dict(tune=tune, measure=measure, cut=cut, heal=healed, pace=pace, peak=peak, parity=parity)


def once(keep: Path, name: str, role: str, /, **task) -> dict:
    """The result of a child process, kept in a file and not repeated."""
    path = keep / f"{name}.json"
    if not path.exists():
        keep.mkdir(parents=True, exist_ok=True)
        out = path.with_suffix(".tmp")
        done = subprocess.run([sys.executable, __file__, "--role", role, json.dumps(task), str(out)], capture_output=True, text=True, env=os.environ | dict(HF_HUB_OFFLINE="1", ZENBOT_BATCH="1"))
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        out.replace(path)
    return json.loads(path.read_text())


def apart(a: dict, b: dict, groups) -> str:
    """a - b in nats per token, paired, with its interval."""
    import numpy as np
    from zenbot.statistics import interval
    d = interval(np.array(a["nats"]) - np.array(b["nats"]), np.array(a["counts"]), groups=groups)
    return f"{d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"


def loss(found: dict) -> float:
    return sum(found["nats"]) / sum(found["counts"])


def quality(data: Path, keep: Path, budgets, methods, steps: int, seed: int) -> None:
    import numpy as np
    rows = token_rows(data, "valid")
    groups = np.array([str(r["input_ids"][:next(i for i, label in enumerate(r["labels"]) if label != -100)]) for r in rows])
    same, tuned = dict(data=str(data)), str(keep / "tuned")
    once(keep, "tune", "tune", out=tuned, **same)
    base, whole = (once(keep, name, "measure", model=model, **same) for name, model in (("base", "smollm2-135m"), ("whole", tuned)))
    print(f"held-out loss of {len(rows)} rows: base {loss(base):.4f}, tuned {loss(whole):.4f}, a gain of {loss(base) - loss(whole):.4f}", flush=True)
    for share in budgets:
        found = {}
        for method in methods:
            name = f"{method}-{share}-{seed}"
            chopped = once(keep, f"cut-{name}", "cut", model=tuned, keep=share, method=method, seed=seed, out=str(keep / f"cut-{name}"), **same)
            found[method] = mended = once(keep, f"heal-{name}-{steps}", "heal", model=str(keep / f"cut-{name}"), teacher=tuned, steps=steps, seed=seed, out=str(keep / f"heal-{name}-{steps}"), **same) if steps else chopped
            print(f"{share:.0%} {method:10} {chopped['shape']}: {loss(chopped):.4f} cut, {loss(mended):.4f} after {steps} steps; "
                  f"against the base {apart(mended, base, groups)}; keeps {(loss(base) - loss(mended)) / (loss(base) - loss(whole)):.0%} of the gain", flush=True)
        for ours, control in itertools.product(("vocabulary", "gradient"), ("magnitude", "random")):
            if ours in found and control in found:
                print(f"    {ours} - {control}: {apart(found[ours], found[control], groups)} after {steps} steps", flush=True)


def sizes(keep: Path, names: list) -> None:
    """File size, speed and memory of healed models against the whole one; to be run when the machine does nothing else."""
    tuned = str(keep / "tuned")
    for small in (str(keep / name) for name in names):
        bytes_of = [os.path.getsize(f"{f}/model.safetensors") for f in (small, tuned)]
        parameters = [json.loads((keep / f"{Path(small).name.replace('heal-', 'cut-').rsplit('-', 1)[0]}.json").read_text())[k] for k in ("parameters_after", "parameters_before")]
        fast, peaks = once(keep, f"pace-{Path(small).name}", "pace", whole=tuned, model=small), [once(keep, f"peak-{Path(f).name}", "peak", model=f)["peak_mb"] for f in (small, tuned)]
        print(f"{Path(small).name}: {parameters[0]:,} parameters = {parameters[0] / parameters[1]:.3f}; file {bytes_of[0] / 1e6:.1f} of {bytes_of[1] / 1e6:.1f} MB = {bytes_of[0] / bytes_of[1]:.3f}; "
              f"reading {fast['prefill_ratio']:.2f}x, writing {fast['generation_ratio']:.2f}x; peak memory {peaks[0]:.0f} of {peaks[1]:.0f} MB", flush=True)


def export(data: Path, keep: Path, models: list) -> None:
    for model in models:
        for kind in ("f16", "q8_0", "q4_k_m"):
            done = once(keep, f"gguf-{Path(model).name}-{kind}", "parity", model=model, kind=kind, data=str(data), positions=2000)
            print(f"{Path(model).name} {kind}: {done['mb']:.1f} MB, top-1 agreement {done['top1']:.2%} of {done['positions']} positions, chat template carried over: {done['template']}, answer ends by: {done['finish']}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        Path(sys.argv[4]).write_text(json.dumps(ROLES[sys.argv[2]](json.loads(sys.argv[3]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("what", nargs="?", choices=("quality", "speed", "gguf"), default="quality")
        parser.add_argument("--data", type=Path, default=DATA)
        parser.add_argument("--keep", type=Path, default=Path("runs/bench-pruning"), help="folder of models and results")
        parser.add_argument("--steps", type=int, default=40, help="of healing; 0: the cut alone")
        parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
        parser.add_argument("--methods", nargs="+", default=METHODS)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--models", nargs="+", default=None, help="speed, gguf: names of folders in --keep; those of the quality run if not given")
        args = parser.parse_args()
        args.keep = args.keep.resolve()
        ours = args.models or sorted(p.name for method in METHODS[:2] for p in args.keep.glob(f"heal-{method}-*") if p.is_dir())
        if args.what == "quality":
            quality(args.data, args.keep, args.budgets, args.methods, args.steps, args.seed)
        elif args.what == "speed":
            sizes(args.keep, ours)
        else:
            export(args.data, args.keep, [str(args.keep / name) for name in ("tuned", *ours)])
