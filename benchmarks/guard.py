"""How long a decision takes, on one core, with and without the encoder; the time of one matrix product stands beside it, since machines differ.

    python benchmarks/guard.py                    # a minute
    python benchmarks/guard.py questions FILE     # where the questions of a file of rows are sent, and every crisis among them, to be read
    python benchmarks/guard.py answers FILE       # how many of its answers the other side of the guard would replace
"""
import statistics, sys, time
from collections import Counter

import torch

from zenbot.answer_check import check_answer, faults
from zenbot.core import read_jsonl
from zenbot.guard import LAYERS, _read, decide
from zenbot.plain_words import FOLDER
from zenbot.rows import load_rows


def milliseconds(do, things) -> list:
    took = []
    for thing in things:
        start = time.perf_counter()
        do(thing)
        took.append(1e3 * (time.perf_counter() - start))
    return took


def percentile(values, p): return statistics.quantiles(values, n=100)[p - 1]


def questions(file: str):
    asked = list(dict.fromkeys(r["messages"][-2]["content"] for r in load_rows(file, max_chars=100_000)[0]))
    found = [decide(t) for t in asked]
    print(len(asked), "questions:", dict(Counter(d["route"] for d in found)))
    for route in ("refuse", "redirect", "crisis"):
        for d in found:
            if d["route"] == route: print(f"\n{route}, tier {d['tier']}, {', '.join(r['kind'] for r in d['reasons'] if not r.get('excuse'))}: {d['text'][:400]}")


def answers(file: str):
    said = list(dict.fromkeys(r["messages"][-1]["content"] for r in load_rows(file, max_chars=100_000)[0]))
    count, replaced = Counter(), 0
    for text in said:
        mine = Counter()
        if check_answer(text, "", count=mine) == "":
            replaced += 1
            print(f"{'/'.join(mine)}: {faults(text)[:1] or text[:200]}")
        count += mine
    print(f"{replaced} of {len(said)} answers would be replaced: {dict(count)}")


def speed():
    torch.set_num_threads(1)
    texts = [r["text"] for r in read_jsonl(FOLDER / "test.jsonl")]
    a = torch.randn(512, 512)
    unit = statistics.median(milliseconds(lambda _: a @ a, range(200)))
    for text in texts[:50]: decide(text)
    for name, layers, bound in (("phrases alone", LAYERS[:1], 1.0), ("phrases and encoder", LAYERS, 30.0)):
        _read.cache_clear()
        took = milliseconds(lambda t: decide(t, layers=layers), texts)
        print(f"{name:20} median {statistics.median(took):6.2f} ms   p95 {percentile(took, 95):6.2f} ms   p99 {percentile(took, 99):6.2f} ms   p95 is {percentile(took, 95) / bound:.2f} of the bound of {bound:g} ms, {percentile(took, 95) / unit:.1f} products of 512x512")
    long = {"a megabyte": "The wind would not let her sleep. " * 30_000, "10,000 nested quotes": '"a ' * 10_000, "right to left": "\u202eאני רוצה לישון " * 3000}
    for name, text in long.items():
        took = milliseconds(lambda i: decide(text + str(i)), range(5))
        print(f"{name:20} median {statistics.median(took):6.2f} ms")


if __name__ == "__main__":
    if len(sys.argv) == 1: speed()
    else: dict(questions=questions, answers=answers)[sys.argv[1]](sys.argv[2])
