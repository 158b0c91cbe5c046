"""Sweeps: every cell once, fair to the arms, and nothing but the cells in flight is lost when somebody pulls the plug."""
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import zenbot, zenbot_here
from hypothesis import given, settings, strategies as st

from zenbot.core import BadInput, read_json
from zenbot.sweep_report import arms_table, read_log, sweep_page, write_sweep_report
from zenbot.sweeps import arms_of, cells_of, load_grid, run_sweep, summary

CELL = """import json, time
from pathlib import Path
time.sleep(pause)
if fails and not (fails == 'once' and Path(run, 'tried').exists()):
    Path(run, 'tried').touch()
    raise RuntimeError('by its own fault')
Path(run, 'x.json').write_text(json.dumps(dict(y=x * x + seed / 10, log=[1])))"""


@pytest.fixture
def trivial(tmp_path) -> dict:
    """A grid over a notebook that needs no time."""
    cells = [nbformat.v4.new_code_cell("run: str = ''     # folder\nx: int = 1        # squared\nseed: int = 0     # added\npause: float = 0  # seconds\nfails: str = ''   # once, or always", metadata=dict(tags=["parameters"])), nbformat.v4.new_code_cell(CELL)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
    nbformat.write(notebook, tmp_path / "cell.ipynb")
    return dict(notebook=str(tmp_path / "cell.ipynb"), axes=dict(x=[1, 2, 3]), seeds=[0, 1], collect=dict(y=["x.json", "y", "last"]), best="-y")


def written(grid: dict, folder: Path) -> Path:
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    return folder / "grid.yaml"


def test_every_cell_is_executed_once_and_told_with_its_interval(trivial, tmp_path):
    grid = written(trivial, tmp_path)
    found = run_sweep(grid, tmp_path / "s")
    assert [(e["given"]["x"], e["seed"], e["values"]["y"]) for e in found["cells"]] == [(x, s, x * x + s / 10) for x in (1, 2, 3) for s in (0, 1)]
    assert {e["begun"] for e in found["cells"]} == {1} and found["arms"][0]["arm"] == "x=3"
    half = 12.706204736432095 * 0.05   # Student's t of one degree of freedom; the two values are 0.1 apart
    assert found["arms"][0]["y"]["high"] - found["arms"][0]["y"]["value"] == pytest.approx(half)
    assert all((tmp_path / "s" / e["folder"] / "notebooks/cell.ipynb").exists() for e in found["cells"])
    assert run_sweep(grid, tmp_path / "s", jobs=2)["cells"] == found["cells"]
    more = run_sweep(written(trivial | dict(seeds=[0, 1, 2]), tmp_path), tmp_path / "s")
    assert sorted(e["begun"] for e in more["cells"]) == [1] * 9 and len(list((tmp_path / "s/cells").iterdir())) == 9


def test_a_changed_notebook_is_another_cell(trivial, tmp_path):
    grid = written(trivial | dict(axes=dict(x=[1]), seeds=[0]), tmp_path)
    first = run_sweep(grid, tmp_path / "s")["cells"][0]
    Path(trivial["notebook"]).write_text(Path(trivial["notebook"]).read_text().replace("x * x", "x + x"))
    second = run_sweep(grid, tmp_path / "s")["cells"][0]
    assert first["key"] != second["key"] and second["begun"] == 1 and second["values"]["y"] == 2


def test_a_failed_cell_is_tried_once_more_and_the_others_go_on(trivial, tmp_path):
    arms = dict(good={}, late=dict(fails="once"), bad=dict(fails="always"))
    found = run_sweep(written(trivial | dict(axes={}, arms=arms, seeds=[0]), tmp_path), tmp_path / "s")
    assert {e["arm"]: (e["status"], e["begun"]) for e in found["cells"]} == dict(good=("done", 1), late=("done", 2), bad=("failed", 2))
    bad = next(e for e in found["cells"] if e["arm"] == "bad")
    assert "by its own fault" in bad["error"] and "by its own fault" in (tmp_path / "s" / bad["folder"] / "notebooks/cell.ipynb").read_text()
    page = write_sweep_report(tmp_path / "s").read_text()
    assert "1 cells failed" in page and page.count("cell.ipynb") >= 3
    done = zenbot_here("sweep", tmp_path / "grid.yaml", "--run", tmp_path / "s", home=tmp_path)
    assert done.returncode == 1 and "twice each" in done.stderr and "Traceback" not in done.stderr


def test_what_was_killed_five_times_ends_like_what_was_not(trivial, tmp_path):
    """SIGKILL to the driver at random moments: the same table, and only cells in flight were begun again."""
    jobs, rng = 2, random.Random(int(time.time()))
    grid = written(trivial | dict(axes=dict(x=list(range(1, 9))), fixed=dict(pause=1.0)), tmp_path)
    whole = run_sweep(grid, tmp_path / "whole", jobs)
    command = [str(Path(sys.executable).parent / "zenbot"), "sweep", str(grid), "--run", str(tmp_path / "s"), "--jobs", str(jobs)]
    for _ in range(5):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"ZENBOT_HOME": str(tmp_path)})
        time.sleep(rng.uniform(2, 9))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    found = run_sweep(grid, tmp_path / "s", jobs)
    told = lambda record: [(e["arm"], e["seed"], e["status"], e["values"], e["key"]) for e in record["cells"]]
    assert told(found) == told(whole) and found["arms"] == whole["arms"]
    again = sum(e["begun"] for e in found["cells"]) - len(found["cells"])
    assert again <= 5 * jobs, again


def test_sigterm_keeps_what_is_finished_and_leaves(trivial, tmp_path):
    grid = written(trivial | dict(axes=dict(x=list(range(1, 9))), fixed=dict(pause=1.0)), tmp_path)
    driver = subprocess.Popen([str(Path(sys.executable).parent / "zenbot"), "sweep", str(grid), "--run", str(tmp_path / "s")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"ZENBOT_HOME": str(tmp_path)})
    while not (read_json(tmp_path / "s/sweep.json") or {}).get("arms"): time.sleep(0.2)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 1 and "the same command goes on from here" in err and "Traceback" not in err
    begun = [p for p in (tmp_path / "s/cells").iterdir() if (p / "run.json").exists()]
    assert 1 <= len(begun) < 16


@pytest.mark.parametrize("wrong, message", [
    (dict(notebook="stage9"), "no notebook"), (dict(axes=dict(y=[1])), "no parameter 'y'"), (dict(axes=dict(x=[])), "is empty"), (dict(axes=dict(x=3)), "is empty"),
    (dict(axes=dict(x=list(range(1000)), pause=list(range(1000)))), "1,000,000 cells"), (dict(axes=dict(x=["many"])), "must be of type int"), (dict(best="z"), "not collected"),
    (dict(collect=dict(y="x.json")), "must be collected as"), (dict(seeds=3), "a list"), (dict(axis=dict(x=[1])), "did you mean 'axes'"), (dict(arms=dict(a=3)), "how it differs"), (dict(halving=dict(parameter="x")), "`halving` needs"), (dict(tune="y"), "`tune` names")])
def test_a_bad_grid_is_one_sentence_and_starts_nothing(trivial, tmp_path, wrong, message):
    grid = trivial | wrong
    if "1,000,000" in message: grid["seeds"] = []
    done = zenbot_here("sweep", written(grid, tmp_path), "--run", tmp_path / "s", home=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 4
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text, message", [("- a\n- b", "must name its `notebook`"), ("notebook: [", "is not YAML"), ("", "must name its `notebook`")])
def test_what_is_no_grid_is_refused(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    done = zenbot_here("sweep", tmp_path / "grid.yaml", home=tmp_path)
    assert done.returncode == 2 and message in done.stderr


def test_no_cluster_is_one_sentence(trivial, tmp_path):
    pytest.importorskip("ray")
    done = zenbot("sweep", written(trivial, tmp_path), "--on", "127.0.0.1:1", "--run", "s", home=tmp_path, timeout=120)
    assert done.returncode == 2 and "No Ray cluster answers at 127.0.0.1:1" in done.stderr and not (tmp_path / "s").exists()


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.sampled_from(["r", "dropout", "weight_decay", "warmup"]), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), max_size=3), st.lists(st.integers(0, 99), max_size=3, unique=True))
def test_arms_differ_in_what_the_grid_says_and_in_nothing_else(axes, seeds):
    grid = dict(notebook="stage2", profile="smoke", fixed={"epochs": 2}, arms={}, axes=axes, seeds=seeds, collect={}, best=None, keep=None, halving=None, tune=None)
    cells = cells_of(grid)
    assert len(cells) == max(1, len(seeds)) * math.prod(map(len, axes.values())) and len({(c.arm, c.seed) for c in cells}) == len(cells)
    for c in cells:
        same = {k: v for k, v in c.values["stage2"].items() if k not in axes and k != "seed"}
        assert same == {k: v for k, v in cells[0].values["stage2"].items() if k not in axes and k != "seed"} and same["epochs"] == 2
        assert {s: v for s, v in c.values.items() if s != "stage2"} == {s: v for s, v in cells[0].values.items() if s != "stage2"}
        assert all(c.values["stage2"][k] == v for k, v in c.given.items())


def test_every_grid_of_the_package_is_one():
    from zenbot.core import package_dir
    grids = sorted(p.stem for p in (package_dir() / "profiles/sweeps").glob("*.yaml"))
    assert grids
    for name in grids: assert len(cells_of(load_grid(name))) >= 4, name


def test_halving_lets_the_better_half_go_on(trivial, tmp_path):
    grid = trivial | dict(axes=dict(x=[1, 2, 3, 4]), seeds=[0], best="-y", halving=dict(parameter="pause", values=[0, 0.1, 0.2], keep=0.5))
    found = run_sweep(written(grid, tmp_path), tmp_path / "s")
    assert [e["arm"] for e in found["cells"]] == ["x=4"] and len(list((tmp_path / "s/cells").iterdir())) == 4 + 2 + 1


def test_tuning_gives_every_arm_its_own_best_value(trivial, tmp_path):
    grid = trivial | dict(arms=dict(a={}, b=dict(pause=0.01)), axes=dict(x=[1, 3, 2]), seeds=[0, 1], best="-y", tune="x")
    found = run_sweep(written(grid, tmp_path), tmp_path / "s")
    assert sorted((e["arm"], e["seed"]) for e in found["cells"]) == [("a x=3", 0), ("a x=3", 1), ("b x=3", 0), ("b x=3", 1)]
    assert len(list((tmp_path / "s/cells").iterdir())) == 6 + 2


def test_logs_of_the_trainer_and_of_the_originals_are_read(tmp_path):
    entries = [dict(step=1, loss=2.0, epoch=0.1), dict(step=2, eval_loss=1.9, eval_runtime=3.0), dict(train_runtime=9.0, step=2)]
    for content in (entries, dict(log_history=entries, best_metric=None)):
        (tmp_path / "log.json").write_text(json.dumps(content))
        assert read_log(tmp_path / "log.json") == entries[:2]
    for content in ("{}", "[]", "nonsense"):
        (tmp_path / "log.json").write_text(content)
        with pytest.raises(BadInput): read_log(tmp_path / "log.json")


def test_a_page_shows_text_as_text():
    cells = [dict(arm="<b>x", seed=None, folder="cells/x", status="failed", seconds=None, begun=2, error="<script>alert(1)</script>", given={}, values={})]
    page = sweep_page(dict(title="<i>", name="n", best=None, folder=".", cells=cells, arms=summary(cells)))
    assert "<script>" not in page and "<b>x" not in page and "<i>" not in page


@pytest.mark.long
@pytest.mark.parametrize("notebook, name", [("15_overfitting", "overfitting-demo"), ("16_lora_configs", "lora-demo"), ("17_paradigms", "paradigms-demo")])
def test_a_notebook_of_a_sweep_runs_on_a_small_grid(tmp_path, monkeypatch, notebook, name):
    import papermill
    from zenbot.core import package_dir
    from zenbot.pipeline import notebooks_dir
    grid = yaml.safe_load((package_dir() / f"profiles/sweeps/{name}.yaml").read_text())
    grid |= dict(profile="smoke", seeds=[0, 1], axes={}, tune=None, fixed={k: v for k, v in grid["fixed"].items() if k not in ("epochs", "max_length")} | dict(max_steps=2, eval_steps=1))
    monkeypatch.setenv("ZENBOT_HOME", str(tmp_path))
    papermill.execute_notebook(notebooks_dir() / f"{notebook}.ipynb", tmp_path / "out.ipynb", dict(grid=str(written(grid, tmp_path)), run=str(tmp_path / "s")), cwd=str(tmp_path), progress_bar=False)
    assert all(e["status"] == "done" for e in read_json(tmp_path / "s/sweep.json")["cells"]) and (tmp_path / "s/report.html").exists()
