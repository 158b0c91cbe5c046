"""How long a decision takes, on one core, with and without the encoder; the time of one matrix product stands beside it, since machines differ.

    python benchmarks/guard.py        # a minute
"""
import os

os.environ["OMP_NUM_THREADS"] = "1"
import statistics, time

import torch

torch.set_num_threads(1)
from zenbot.core import read_jsonl
from zenbot.guard import LAYERS, decide, read_message
from zenbot.plain_words import FOLDER


def milliseconds(do, things) -> list:
    took = []
    for thing in things:
        start = time.perf_counter()
        do(thing)
        took.append(1e3 * (time.perf_counter() - start))
    return took


def percentile(values, p): return statistics.quantiles(values, n=100)[p - 1]


def main():
    texts = [r["text"] for r in read_jsonl(FOLDER / "test.jsonl")]
    a = torch.randn(512, 512)
    unit = statistics.median(milliseconds(lambda _: a @ a, range(200)))
    for text in texts[:50]: decide(text)
    for name, layers, bound in (("phrases alone", LAYERS[:1], 1.0), ("phrases and encoder", LAYERS, 30.0)):
        read_message.cache_clear()
        took = milliseconds(lambda t: decide(t, layers=layers), texts)
        print(f"{name:20} median {statistics.median(took):6.2f} ms   p95 {percentile(took, 95):6.2f} ms   p99 {percentile(took, 99):6.2f} ms   p95 is {percentile(took, 95) / bound:.2f} of the bound of {bound:g} ms, {percentile(took, 95) / unit:.1f} products of 512x512")
    long = {"a megabyte": "The wind would not let her sleep. " * 30_000, "10,000 nested quotes": '"a ' * 10_000, "right to left": "\u202eאני רוצה לישון " * 3000}
    for name, text in long.items():
        took = milliseconds(lambda i: decide(text + str(i)), range(5))
        print(f"{name:20} median {statistics.median(took):6.2f} ms")


if __name__ == "__main__": main()
