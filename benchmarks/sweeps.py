"""What a sweep costs over the bare papermill run, and what a second process gains.

    python benchmarks/sweeps.py overhead    # 12 cells that do nothing, three paired rounds: a few minutes
    python benchmarks/sweeps.py jobs        # 8 cells of stage 2 on `tiny`, one at a time and two at a time, three paired rounds: six minutes
"""
import os, statistics, sys, tempfile, time
from pathlib import Path

import nbformat
import papermill as pm
import yaml

from zenbot.pipeline import _quiet
from zenbot.sweeps import run_sweep


def seconds(do) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def table(name: str, rounds: list, note: str):
    for i, (first, second) in enumerate(rounds, 1): print(f"round {i}: {first:.1f} s, {second:.1f} s", flush=True)
    print(f"{name}: {note}")


def overhead():
    with tempfile.TemporaryDirectory() as tmp:
        tmp, rounds = Path(tmp), []
        cells = [nbformat.v4.new_code_cell("run: str = ''  # folder\nx: int = 1  # squared", metadata=dict(tags=["parameters"])),
                 nbformat.v4.new_code_cell("import json\nfrom pathlib import Path\nPath(run, 'x.json').write_text(json.dumps(dict(y=x * x)))")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))), tmp / "cell.ipynb")
        (tmp / "grid.yaml").write_text(yaml.safe_dump(dict(notebook=str(tmp / "cell.ipynb"), axes=dict(x=list(range(12))), collect=dict(y=["x.json", "y", "last"]), best="-y")))
        def bare(place):
            for x in range(12):
                (place / str(x)).mkdir(parents=True)
                with _quiet(): pm.execute_notebook(str(tmp / "cell.ipynb"), str(place / f"{x}/out.ipynb"), dict(run=str(place / str(x)), x=x), kernel_name="python3", progress_bar=False)
        for i in range(3): rounds.append((seconds(lambda: bare(tmp / f"bare{i}")), seconds(lambda: run_sweep(tmp / "grid.yaml", tmp / f"sweep{i}"))))
        table("12 trivial cells, bare papermill and as a sweep", rounds, f"{statistics.median((b - a) / 12 for a, b in rounds):.2f} s a cell more than papermill (bound: 1.5 s)")


def jobs():
    with tempfile.TemporaryDirectory() as tmp:
        tmp, rounds = Path(tmp), []
        grid = dict(notebook="stage2", profile="smoke", fixed={"max_steps": 60, "eval_steps": 20, "merge": False}, axes=dict(learning_rate=[1.0e-3, 2.0e-3], r=[4, 8]), seeds=[0, 1],
                    collect=dict(valid=["results/training_log.json", "eval_loss", "last"]), best="valid", keep=["results/training_log.json"])
        (tmp / "grid.yaml").write_text(yaml.safe_dump(grid))
        for i in range(3):
            took = []
            for n in (1, 2):
                (tmp / f"warm{i}{n}.yaml").write_text(yaml.safe_dump(grid | dict(axes={}, seeds=[9])))
                run_sweep(tmp / f"warm{i}{n}.yaml", tmp / f"sweep{i}{n}")   # data and stage 1, which all cells share
                took.append(seconds(lambda: run_sweep(tmp / "grid.yaml", tmp / f"sweep{i}{n}", jobs=n)))
            rounds.append(tuple(took))
        table("8 cells of stage 2 on tiny, one at a time and two at a time", rounds, f"{statistics.median(a / b for a, b in rounds):.2f} times as fast with --jobs 2 (bound: 1.6)")


if __name__ == "__main__":
    os.environ["ZENBOT_HOME"] = tempfile.mkdtemp()
    chosen = dict(overhead=overhead, jobs=jobs)
    for name in sys.argv[1:] or chosen: chosen[name]()
