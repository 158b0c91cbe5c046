"""Answers from a cluster are those of this machine, although a worker is lost on the way."""
import threading
import time

import pytest

from zenbot.core import read_json
from zenbot.evaluation import evaluate
from zenbot.rows import load_rows


@pytest.mark.long
def test_a_cluster_writes_the_answers_of_this_machine(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster
    from zenbot.answers_ray import answers_on_ray
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    rows, decoding = load_rows("sample/counsel.jsonl")[0][:48], dict(batch_size=4, max_new_tokens=24, temperature=0.7, repetition_penalty=1.1)
    evaluate({"tiny": "tiny"}, rows, tmp_path / "here", **decoding)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    try:
        workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        lost = threading.Event()
        def lose():   # when the first answers are back
            kept = tmp_path / "there/answers.jsonl"
            while not (kept.exists() and kept.read_text().count("\n") >= 4): time.sleep(0.05)
            cluster.remove_node(workers[0], allow_graceful=False)
            lost.set()
        threading.Thread(target=lose, daemon=True).start()
        evaluate({"tiny": "tiny"}, rows, tmp_path / "there", elsewhere=answers_on_ray(cluster.address), **decoding)
    finally:
        ray.shutdown()
        cluster.shutdown()
    told = lambda folder: [(r["id"], r["generated"], r["nats"]) for r in read_json(folder / "test_results.json")]
    assert lost.is_set() and told(tmp_path / "there") == told(tmp_path / "here")
