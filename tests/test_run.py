"""The spine: one command from data to report, that skips, resumes and fails in the open."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import STAGES, zenbot

from zenbot.baselines import BASELINES
from zenbot.core import read_json, read_jsonl, sha256
from zenbot.leaderboard import read_board


def executed(home: Path, *args) -> list:
    done = zenbot("run", "smoke", *args, "--json", home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["executed"]


def copy_of(smoke: Path, home: Path) -> Path:
    """A run folder of one's own; new times, the same contents."""
    return Path(shutil.copytree(smoke, home / "runs" / "smoke", copy_function=shutil.copyfile))


def test_every_stage_leaves_what_it_promises(smoke):
    for name in ["run.json", "report.html", "MODEL_CARD.md", "data/card.json", "tinyllama-medical-pretrained/adapter_model.safetensors",
                 "lora_adapters/adapter_model.safetensors", "final_merged_pruned/model.safetensors", "final_merged_pruned/chat_template.jinja",
                 "results/training_log.json", "results/leaderboards_full.json", "answers.html", "figures/leaderboard.png", "notebooks/09_stage2.ipynb"]:
        assert (smoke / name).stat().st_size > 0, name
    assert [s for s, e in read_json(smoke / "run.json")["stages"].items() if e["status"] == "done"] == STAGES
    assert (smoke / "data/rejected.jsonl").exists() and not [p for p in smoke.rglob(".*.tmp*")], "nothing half-written"


def test_every_leaderboard_entry_has_intervals_and_a_paired_difference(smoke):
    board = read_board(smoke / "results")
    models, tricks = board[:4], board[4:]
    assert [e["model"] for e in models] == ["base", "stage 1", "stage 2", "pruned"] and [e["model"] for e in tricks] == list(BASELINES)
    for e in models:
        assert e["response_loss"]["low"] < e["response_loss"]["value"] < e["response_loss"]["high"]
        assert e["size_mb"] > 0 and e["tokens_per_s"] > 0 and e["peak_memory_mb"] > 0
    assert all("loss_per_byte_vs_base" in e for e in models[1:])
    assert all({"value", "low", "high", "p", "p_holm", "verdict"} <= set(e["similarity_vs_base"]) for e in board[1:])


def test_the_leaderboard_follows_from_the_answers_on_disk(smoke):
    rows = read_json(smoke / "results/test_results.json")
    for e in read_board(smoke / "results")[:4]:
        mine = [r for r in rows if r["model"] == e["model"]]
        assert len(mine) == e["n"]
        assert e["response_loss"]["value"] == pytest.approx(sum(r["nats"] for r in mine) / sum(r["tokens"] for r in mine))


def test_what_is_up_to_date_is_not_run_again(smoke, tmp_path):
    copy_of(smoke, tmp_path)
    before = sha256(tmp_path / "runs/smoke/results/leaderboards_full.json")
    assert executed(tmp_path) == []
    assert sha256(tmp_path / "runs/smoke/results/leaderboards_full.json") == before


def test_a_changed_parameter_runs_its_stage_and_what_follows(smoke, tmp_path):
    copy_of(smoke, tmp_path)
    assert executed(tmp_path, "-p", "pruning.mode=zero", "-p", "pruning.fraction=0.25") == ["pruning", "evaluation", "robustness"]
    assert read_json(tmp_path / "runs/smoke/results/pruning.json")["wanted"] == 8


def test_a_lost_or_altered_result_is_made_again(smoke, tmp_path):
    run = copy_of(smoke, tmp_path)
    (run / "final_merged_pruned/model.safetensors").unlink()
    assert executed(tmp_path, "--until", "pruning") == ["pruning"]


def test_the_same_seed_gives_the_same_weights(smoke, tmp_path):
    assert executed(tmp_path, "--until", "stage2") == STAGES[:3]
    for name in ("stage1_merged", "stage2_merged"):
        assert sha256(tmp_path / f"runs/smoke/{name}/model.safetensors") == sha256(smoke / f"{name}/model.safetensors")


def test_killed_in_stage_2_and_finished_by_the_same_command(smoke, tmp_path):
    """SIGKILL in the middle of training; no orphan goes on, the same command resumes, and the weights are those of an uninterrupted run."""
    run = copy_of(smoke, tmp_path)
    long = ["-p", "stage2.epochs=12", "-p", "stage2.eval_steps=16"]
    env = os.environ | {"ZENBOT_HOME": str(tmp_path)}
    process = subprocess.Popen([str(Path(sys.executable).parent / "zenbot"), "run", "smoke", *long], env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((run / "checkpoints").glob("stage2-*/checkpoint-*/complete.json")):
        assert time.time() < deadline and process.poll() is None, "stage 2 never reached a checkpoint"
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not psutil.wait_procs(children, timeout=10)[1], "the kernel outlived the killed command"
    assert read_json(run / "run.json")["stages"]["stage2"]["status"] == "running"
    assert executed(tmp_path, *long, "--until", "stage2") == ["stage2"]
    whole = tmp_path / "whole"
    whole.mkdir()
    copy_of(smoke, whole)
    assert executed(whole, *long, "--until", "stage2") == ["stage2"]
    assert sha256(run / "stage2_merged/model.safetensors") == sha256(whole / "runs/smoke/stage2_merged/model.safetensors")
    losses = lambda folder: [e["loss"] for e in read_json(folder / "results/training_log.json") if "loss" in e]
    assert losses(run) == losses(whole / "runs/smoke")


def test_a_failing_stage_shows_its_cell_keeps_its_notebook_and_goes_on_later(smoke, tmp_path):
    run = copy_of(smoke, tmp_path)
    failed = zenbot("run", "smoke", "-p", "evaluation.max_new_tokens=-3", home=tmp_path)
    assert failed.returncode == 1 and "Stage evaluation failed in cell" in failed.stderr and "goes on from evaluation" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert any(o["output_type"] == "error" for c in read_json(run / "notebooks/12_evaluation.ipynb")["cells"] for o in c.get("outputs", []))
    assert executed(tmp_path) == ["evaluation"]


def test_two_runs_do_not_share_a_folder(smoke, tmp_path):
    from filelock import FileLock
    copy_of(smoke, tmp_path)
    with FileLock(tmp_path / "runs/smoke/.lock"):
        second = zenbot("run", "smoke", home=tmp_path)
    assert second.returncode == 2 and "Another process is working" in second.stderr


def test_the_final_model_answers_in_plain_transformers(smoke):
    """A process that knows nothing of zenbot loads the folder and speaks through its own chat template."""
    code = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tok = AutoModelForCausalLM.from_pretrained({str(smoke / 'final_merged_pruned')!r}), AutoTokenizer.from_pretrained({str(smoke / 'final_merged_pruned')!r})
ids = tok.apply_chat_template([dict(role='user', content='I wake at three.')], add_generation_prompt=True, return_tensors='pt', return_dict=True)
out = model.generate(**ids, max_new_tokens=8, do_sample=False)
assert out.shape[1] > ids.input_ids.shape[1] and not any(m.startswith('zenbot') for m in sys.modules)
print(type(model).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "LlamaForCausalLM", done.stderr


def test_artefacts_name_no_path_of_this_machine(smoke):
    for name in ("tinyllama-medical-pretrained", "lora_adapters", "final_merged_pruned"):
        for path in (smoke / name).glob("*.json"):
            assert str(Path.home()) not in path.read_text() and str(smoke.parent) not in path.read_text(), path


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a small tmpfs needs root on Linux")
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path):
    disk = tmp_path / "runs"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs here")
    try:
        full = zenbot("run", "smoke", home=tmp_path)
        assert full.returncode == 1 and "disk is full" in full.stderr and "Traceback" not in full.stderr, full.stderr
        assert not [p for p in disk.rglob("*.tmp")], "nothing half-written"
        assert read_jsonl(disk / "smoke/data/train.jsonl"), "good rows are kept"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert executed(tmp_path, "--until", "pruning")[-1] == "pruning"
    finally:
        subprocess.run(["umount", str(disk)])


@pytest.mark.long
def test_a_run_repeated_says_the_same(smoke, home):
    """Clocks, paths and the order of sets do not count; a changed weight does."""
    done = zenbot("rerun", "runs/smoke", "--run", "runs/again", home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERS" not in done.stdout and done.stdout.count("the same") >= 10
