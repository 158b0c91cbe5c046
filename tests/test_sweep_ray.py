"""Ray for real: a head and two workers on this machine, one of them ended in the middle, and the same numbers as without Ray."""
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
import yaml

from zenbot.core import read_json
from zenbot.sweep_ray import on_ray, pack, unpack
from zenbot.sweeps import run_sweep

GRID = dict(notebook="stage2", profile="smoke", fixed=dict(max_steps=2, merge=False), axes=dict(learning_rate=[1e-3, 2e-3, 5e-3], r=[4, 8]), seeds=[0, 1],
            collect=dict(valid=["results/training_log.json", "eval_loss", "last"]), best="valid", keep=["results/training_log.json"])


def test_what_is_packed_is_unpacked_and_stays_inside(tmp_path):
    import io, tarfile
    (tmp_path / "a/results").mkdir(parents=True)
    (tmp_path / "a/results/x").write_text("1")
    (tmp_path / "a/.secret").write_text("2")
    unpack(pack(tmp_path / "a", ["results", ".secret", "missing"]), tmp_path / "b")
    assert [p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*")] == ["results", "results/x"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar: tar.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.TarError): unpack(out.getvalue(), tmp_path / "b")
    assert not (tmp_path / "outside").exists()


@pytest.mark.long
def test_a_cluster_gives_the_numbers_of_this_machine_although_a_worker_is_lost(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("ZENBOT_HOME", str(tmp_path))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    here = run_sweep(tmp_path / "grid.yaml", tmp_path / "here", jobs=2)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    try:
        workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        lost = threading.Event()
        def lose():   # when two cells are back, and two others are on their way
            while sum(e["status"] == "done" for e in (read_json(tmp_path / "there/sweep.json") or {}).get("cells", [])) < 2: time.sleep(0.2)
            cluster.remove_node(workers[0], allow_graceful=False)
            lost.set()
        threading.Thread(target=lose, daemon=True).start()
        there = run_sweep(tmp_path / "grid.yaml", tmp_path / "there", elsewhere=on_ray(cluster.address))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost.is_set() and len(there["cells"]) == 12 and {e["status"] for e in there["cells"]} == {"done"}
    told = lambda found: [(e["arm"], e["seed"], e["values"]) for e in found["cells"]]
    assert told(there) == told(here)
    for e in there["cells"]:   # each was executed in a folder of its worker, and brought home
        notebook = read_json(tmp_path / "there" / e["folder"] / "notebooks/09_stage2.ipynb")
        where = next(s.split("'")[1] if "'" in s else s.split('"')[1] for c in notebook["cells"] if "injected-parameters" in c["metadata"].get("tags", []) for s in "".join(c["source"]).splitlines() if s.startswith("run = "))
        assert where.startswith(tempfile.gettempdir()) and not where.startswith(str(tmp_path)), where
