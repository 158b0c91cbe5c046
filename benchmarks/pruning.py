"""What is a smaller model worth: quality, size and speed at 90, 80 and 70 % of the parameters, by our scores and by two others.

    python benchmarks/pruning.py [--data DIR] [--keep DIR] [--steps 40]   # three hours and more; what is finished is kept and not repeated
    python benchmarks/pruning.py --budgets 0.8 --methods gradient          # one point
    pip install llama-cpp-python && python benchmarks/pruning.py gguf      # does llama.cpp say the same? Minutes, after the above

SmolLM2-135M is tuned on counsel_chat (stage 2: one epoch, all-linear rsLoRA), then pruned to each budget by gradient, magnitude and random scores, everything else equal: the same search
for the mixture of axes, the same least-squares refit, the same healing (distillation from the tuned model). Loss is that of held-out answers in nats per token; differences are paired over
rows, with 95 % bootstrap intervals over groups of questions. Speed and memory are measured afterwards, one model a process, whole and pruned in turn, and printed as ratios.
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
BUDGETS, METHODS = (0.9, 0.8, 0.7), ("gradient", "magnitude", "random")


def token_rows(data: Path, part: str) -> list:
    """The rows of a file whose answer fits into 512 tokens."""
    from zenbot.doctor import fit_rows
    from zenbot.prompts import load_prompter, tokenize_rows
    from zenbot.rows import load_rows
    return fit_rows(tokenize_rows(load_rows(data / f"{part}.jsonl")[0], load_prompter("smollm2-135m"), 512)[0])[0]


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


def held_out(model, data: str, tok=None) -> dict:
    """Nats of every held-out answer, and its labelled tokens by the tokenizer of SmolLM2, whatever the model's own."""
    from zenbot.measures import response_losses
    from zenbot.prompts import tokenize_rows
    from zenbot.rows import load_rows
    old = token_rows(Path(data), "valid")
    ids = {r["id"] for r in old}
    new = tokenize_rows([r for r in load_rows(Path(data) / "valid.jsonl")[0] if r["id"] in ids], tok, 1024)[0] if tok else old
    assert [r["id"] for r in new] == [r["id"] for r in old]
    return dict(nats=response_losses(model.eval(), new)[0].tolist(), counts=[sum(label != -100 for label in r["labels"][1:]) for r in old])


def measure(task: dict) -> dict:
    """Held-out losses of a model as it is."""
    from zenbot.models import load_model
    return held_out(load_model(task["model"]), task["data"])


def cut(task: dict) -> dict:
    """Scores, search, refit and removal, without healing."""
    from zenbot.models import load_model, save_model
    from zenbot.prompts import load_prompter
    from zenbot.pruning import shrink, target_of
    rows, model, tok = token_rows(Path(task["data"]), "train"), load_model(task["model"]), load_prompter(task["model"])
    small, report = shrink(model, tok, rows, rows[-32:], target_of(model, task["keep"]), method=task["method"], seed=task["seed"], calibration_rows=16)   # nothing is chosen by the held-out rows
    save_model(small, tok, task["out"])
    return held_out(small, task["data"]) | dict(shape=report["counts"], parameters_before=report["parameters_before"], parameters_after=report["parameters_after"])


def worded(task: dict) -> dict:
    """The vocabulary first, then the other axes by gradient scores, and healing, in one go."""
    from zenbot.models import load_model, save_model
    from zenbot.prompts import load_prompter
    from zenbot.pruning import shrink_with_vocabulary, target_of
    from zenbot.rows import load_rows
    rows, model, tok = load_rows(Path(task["data"]) / "train.jsonl")[0], load_model(task["model"]), load_prompter(task["model"])
    start = time.time()
    small, short, report = shrink_with_vocabulary(model, tok, rows[:-32], rows[-32:], target_of(model, task["keep"]), seed=task["seed"], heal_steps=task["steps"], calibration_rows=16)
    save_model(small, short, task["out"])
    return held_out(small, task["data"], short) | dict(shape=report["counts"]) | {k: report[k] for k in ("vocabulary", "loss_before", "loss_cut", "loss_after", "parameters_before", "parameters_after")} | dict(seconds=time.time() - start)


def healed(task: dict) -> dict:
    """Healing of a cut model, with the tuned model as teacher."""
    from zenbot.core import Run
    from zenbot.healing import heal
    from zenbot.models import load_model, save_model
    from zenbot.prompts import load_prompter
    tok, rows = load_prompter(task["model"]), token_rows(Path(task["data"]), "train")
    with tempfile.TemporaryDirectory() as folder:
        small, log = heal(load_model(task["model"]), load_model(task["teacher"]), tok, rows, rows[-8:], task["steps"], Run(folder), seed=task["seed"])
    save_model(small, tok, task["out"])
    return held_out(small, task["data"]) | dict(seconds=log[-1]["seconds"], tokens_per_s=log[-1]["tokens_per_s"])


def pace(task: dict) -> dict:
    """Tokens a second of the whole and a pruned model, in turn."""
    from zenbot.measures import speeds
    from zenbot.models import load_model
    return speeds([load_model(task["whole"]), load_model(task["model"])], rounds=7)[1]


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
        for row in token_rows(Path(task["data"]), "valid"):
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

ROLES = dict(tune=tune, measure=measure, cut=cut, worded=worded, heal=healed, pace=pace, peak=peak, parity=parity)


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
    groups = np.array([hash(str(r["input_ids"][:next(i for i, label in enumerate(r["labels"]) if label != -100)])) for r in rows])
    same, tuned = dict(data=str(data)), str(keep / "tuned")
    once(keep, "tune", "tune", out=tuned, **same)
    base, whole = (once(keep, name, "measure", model=model, **same) for name, model in (("base", "smollm2-135m"), ("whole", tuned)))
    print(f"held-out loss of {len(rows)} rows: base {loss(base):.4f}, tuned {loss(whole):.4f}, a gain of {loss(base) - loss(whole):.4f}", flush=True)
    for share in budgets:
        found = {}
        for method in methods:
            name = f"{method}-{share}-{seed}"
            chopped = once(keep, f"cut-{name}", "cut", model=tuned, keep=share, method=method, seed=seed, out=str(keep / f"cut-{name}"), **same)
            found[method] = mended = once(keep, f"heal-{name}-{steps}", "heal", model=str(keep / f"cut-{name}"), teacher=tuned, steps=steps, seed=seed, out=str(keep / f"heal-{name}-{steps}"), **same)
            print(f"{share:.0%} {method:10} {chopped['shape']}: {loss(chopped):.4f} cut, {loss(mended):.4f} after {steps} steps ({mended['seconds'] / 60:.1f} min); "
                  f"against the base {apart(mended, base, groups)}; keeps {(loss(base) - loss(mended)) / (loss(base) - loss(whole)):.0%} of the gain", flush=True)
            if method != methods[0]:
                print(f"    {methods[0]} - {method}: {apart(found[methods[0]], mended, groups)} healed", flush=True)
        sizes(keep, tuned, f"heal-{methods[0]}-{share}-{seed}-{steps}", share)


def sizes(keep: Path, tuned: str, name: str, share: float) -> None:
    """File size, speed and memory of one model against the whole one."""
    small = str(keep / name)
    bytes_of = [os.path.getsize(f"{f}/model.safetensors") for f in (small, tuned)]
    fast, peaks = once(keep, f"pace-{name}", "pace", whole=tuned, model=small), [once(keep, f"peak-{Path(f).name}", "peak", model=f)["peak_mb"] for f in (small, tuned)]
    print(f"    file {bytes_of[0] / 1e6:.1f} of {bytes_of[1] / 1e6:.1f} MB = {bytes_of[0] / bytes_of[1]:.3f}; reading {fast['prefill_ratio']:.2f}x, writing {fast['generation_ratio']:.2f}x; "
          f"peak memory {peaks[0]:.0f} of {peaks[1]:.0f} MB", flush=True)


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
        parser.add_argument("what", nargs="?", choices=("quality", "gguf"), default="quality")
        parser.add_argument("--data", type=Path, default=DATA)
        parser.add_argument("--keep", type=Path, default=Path("runs/bench-pruning"), help="folder of models and results")
        parser.add_argument("--steps", type=int, default=40, help="of healing")
        parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
        parser.add_argument("--methods", nargs="+", default=METHODS)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--models", nargs="+", default=None, help="gguf: folders; those of the quality run if not given")
        args = parser.parse_args()
        args.keep = args.keep.resolve()
        if args.what == "quality":
            quality(args.data, args.keep, args.budgets, args.methods, args.steps, args.seed)
        else:
            export(args.data, args.keep, args.models or [str(p) for p in (args.keep / "tuned", *sorted(args.keep.glob("heal-gradient-0.8-*[0-9]"))) if p.is_dir()])
