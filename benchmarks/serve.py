"""What a server gains by answering together, and how long people wait.

    python benchmarks/serve.py throughput   # SmolLM2-135M: 16 people at once against one after the other, three paired rounds: some minutes
    python benchmarks/serve.py crowd        # `tiny`: 50 clients with 4 questions each, latency
"""
import statistics, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import httpx, uvicorn

from zenbot.opening import open_model
from zenbot.rows import load_rows
from zenbot.serve import make_app

QUESTIONS = list(dict.fromkeys(r["messages"][0]["content"] for r in load_rows("sample/counsel.jsonl")[0]))


class Server:
    "The app behind a free port of this machine."
    def __init__(self, name: str, **limits):
        self.server = uvicorn.Server(uvicorn.Config(make_app(open_model(name), **limits), port=0, log_level="error"))
        threading.Thread(target=self.server.run, daemon=True).start()
        while not self.server.started: time.sleep(0.05)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"

    def ask(self, client, question: str, tokens: int) -> tuple:   # (seconds, tokens of the model, or 0 where the guard spoke)
        start = time.perf_counter()
        got = client.post(self.url, json=dict(messages=[dict(role="user", content=question)], max_tokens=tokens, seed=1))
        assert got.status_code == 200, got.text
        found = got.json()
        return time.perf_counter() - start, found["usage"]["completion_tokens"] if found["usage"]["prompt_tokens"] else 0


def run(server, questions, people: int, tokens: int) -> tuple:   # (seconds, tokens, latencies)
    start = time.perf_counter()
    with httpx.Client(timeout=600, limits=httpx.Limits(max_connections=people)) as client, ThreadPoolExecutor(people) as pool:
        took = list(pool.map(lambda q: server.ask(client, q, tokens), questions))
    return time.perf_counter() - start, sum(t for _, t in took), [s for s, _ in took]


def throughput():
    server, rates = Server("smollm2-135m"), []
    run(server, QUESTIONS[:4], 4, 8)
    for i in range(3):
        asked = QUESTIONS[32 * i:32 * i + 32]
        pair = []
        for people in (1, 16):
            seconds, tokens, _ = run(server, asked, people, 64)
            pair.append(tokens / seconds)
        rates.append(pair)
        print(f"round {i + 1}: {pair[0]:.0f} tokens/s one after the other, {pair[1]:.0f} with 16 at once", flush=True)
    print(f"{statistics.median(b / a for a, b in rates):.1f} times the throughput (bound: 3); guard, HTTP and JSON included")


def crowd():
    server = Server("tiny")
    run(server, QUESTIONS[:4], 4, 8)
    seconds, tokens, took = run(server, (QUESTIONS * 4)[:200], 50, 32)
    cut = statistics.quantiles(took, n=100)
    print(f"200 requests of 50 clients in {seconds:.1f} s, no error; latency p50 {cut[49]:.2f} s, p95 {cut[94]:.2f} s; {tokens / seconds:.0f} tokens/s")


if __name__ == "__main__":
    chosen = dict(throughput=throughput, crowd=crowd)
    for name in sys.argv[1:] or chosen: chosen[name]()
