"""Does the cost of reading, auditing and splitting grow in step with the rows, and does memory stay flat?

    python benchmarks/data.py [10000 100000 1000000]

Synthetic rows of about a kilobyte, 1 % repeated and 2 % nearly repeated, are written to a temporary folder and taken through the audit and through the whole data
stage, each in a process of its own. Printed: rows a second, peak resident memory, and the cost of a row relative to the smallest size (1 = linear).
"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

AUDIT = "import sys; from zenbot.audit import audit_files; audit_files({'train': sys.argv[1]})"
STAGE = "import sys; from zenbot.core import Run; from zenbot.data import build_data; build_data(Run(sys.argv[2]), sys.argv[1], corpus='sample/primer')"


def make_rows(path: Path, n: int):
    """Writes n rows of about 1 kB."""
    rng, words = np.random.default_rng(0), np.array([f"{a}{b}{c}" for a in ("sle", "wor", "mor", "dre", "li", "nig") for b in ("p", "k", "n", "am", "ght", "ve") for c in range(500)])
    ranks = 1 / np.arange(1, len(words) + 1) ** 0.7    # frequencies fall off, as in a language
    picks = rng.permutation(len(words))
    with open(path, "w") as f:
        for start in range(0, n, 1000):
            drawn = words[picks[rng.choice(len(words), (min(1000, n - start), 150), p=ranks / ranks.sum())]]
            for i, row in enumerate(drawn.tolist()):
                if i % 100 == 1:
                    row = drawn[i - 1].tolist()                                  # repeated
                elif i % 50 == 2:
                    row = [*drawn[i - 2][:60].tolist(), "other", *drawn[i - 2][61:].tolist()]   # nearly
                f.write(json.dumps({"prompt": " ".join(row[:30]), "response": " ".join(row[30:])}) + "\n")


def measure(code: str, *args) -> tuple:
    """(seconds, peak resident memory in MB) of a Python process."""
    start, pid = time.perf_counter(), os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code, *map(str, args)])
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, "the measured process failed"
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


def main(sizes: list):
    print(f"{'rows':>9} {'MB':>7} {'what':>6} {'seconds':>8} {'rows/s':>7} {'peak MB':>8} {'cost of a row':>14}", flush=True)
    first = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            make_rows(path, n)
            for name, code in (("audit", AUDIT), ("stage", STAGE)):
                seconds, peak = measure(code, path, Path(folder) / "run")
                cost = seconds / n / first.setdefault(name, seconds / n)
                print(f"{n:9,} {path.stat().st_size / 1e6:7,.0f} {name:>6} {seconds:8.1f} {n / seconds:7,.0f} {peak:8,.0f} {cost:14.2f}", flush=True)


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [10**4, 10**5, 10**6])
