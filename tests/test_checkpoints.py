"""Killed at any moment, told to leave, out of space: what comes out is what an undisturbed training gives, bit for bit."""
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import shared

from zenbot.checkpoints import MANIFEST, newest_checkpoint

FORKS = multiprocessing.get_context("forkserver")   # a server that has imported everything once and starts a training in milliseconds
STEPS, EVERY = 12, 2


def train_once(folder: str, dropout: float):
    """A training with a checkpoint every other step; leaves the hash of its weights and its losses in result.json."""
    import hashlib

    import torch
    from transformers import AutoTokenizer
    from zenbot.adapters import add_lora
    from zenbot.core import Run, write_json
    from zenbot.models import load_model
    from zenbot.training import train
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(shared("stories260k"))
    tok.pad_token_id = 0
    ids = tok("Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big red ball.").input_ids
    rows = [dict(input_ids=ids[i:], labels=[-100] * 5 + ids[i + 5:]) for i in range(1, 13)]   # three steps an epoch, so that most checkpoints stand within one
    model = add_lora(load_model(shared("stories260k"), torch.float32), r=4, dropout=dropout)
    log = train(Run(folder), "kill", model, tok, rows, rows[:2], learning_rate=1e-2, max_steps=STEPS, batch_size=4, eval_steps=EVERY, report_to="none", text=True)
    sha = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    write_json(f"{folder}/result.json", dict(weights=sha.hexdigest(), losses=[e["loss"] for e in log if "loss" in e]))


def start(folder, dropout=0.1) -> multiprocessing.Process:
    FORKS.set_forkserver_preload(["zenbot.training", "zenbot.doctor", "peft.tuners.lora", "transformers.models.llama.modeling_llama"])
    process = FORKS.Process(target=train_once, args=(str(folder), dropout))
    process.start()
    return process


def finish(folder, dropout=0.1) -> dict:
    process = start(folder, dropout)
    process.join(120)
    assert process.exitcode == 0
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    """What comes out of a training with dropout, by the model's own forward, and of one without, by the hand-written layers."""
    shared("stories260k")
    return {dropout: finish(tmp_path_factory.mktemp("whole"), dropout) for dropout in (0.1, 0.0)}


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_the_same_seed_is_the_same_training(undisturbed, tmp_path, dropout):
    assert len(undisturbed[dropout]["losses"]) == STEPS and undisturbed[0.1] != undisturbed[0.0]
    assert finish(tmp_path, dropout) == undisturbed[dropout]


def half_saved(folder) -> list:
    return [p for p in folder.glob("checkpoints/*/checkpoint-*") if not (p / MANIFEST).exists()]


def test_killed_at_twenty_moments_it_gives_the_same_weights(undisturbed, tmp_path):
    """Half of the kills at a random time, half as soon as a save has begun; half with dropout, half by the hand-written layers."""
    began = time.perf_counter()
    finish(tmp_path / "measured")
    seconds = time.perf_counter() - began
    chance, inside, equal = random.Random(0), 0, 0
    for i in range(20):
        folder, dropout = tmp_path / str(i), 0.1 if i < 10 else 0.0
        process, began = start(folder, dropout), time.perf_counter()
        moment = chance.uniform(0.3, 1.0) * seconds
        wanted = f"checkpoint-{chance.randrange(EVERY, STEPS + 1, EVERY)}"
        while process.is_alive() and (not any(p.name == wanted for p in half_saved(folder)) if i % 2 else time.perf_counter() - began < moment):
            time.sleep(0.0005)
        if i % 2: time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.join()
        inside += bool(half_saved(folder))
        equal += finish(folder, dropout) == undisturbed[dropout]
    assert equal == 20
    assert inside >= 5, f"only {inside} of the kills fell into a save"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_leave_it_saves_first(undisturbed, tmp_path, number):
    process = start(tmp_path)
    while not list(tmp_path.glob(f"checkpoints/*/*/{MANIFEST}")):
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join(60)
    last = newest_checkpoint(next((tmp_path / "checkpoints").iterdir()))
    assert process.exitcode == 1 and not (tmp_path / "result.json").exists() and int(last.name.split("-")[1]) < STEPS
    assert finish(tmp_path) == undisturbed[0.1]


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="a small tmpfs needs root on Linux")
def test_a_full_disk_leaves_the_last_whole_checkpoint(undisturbed, tmp_path):
    """The disk holds one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    one = sum(p.stat().st_size for p in finish_and_list(tmp_path / "free"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(one * 1.5) // 1024}k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs here")
    try:
        process = start(disk)
        process.join(120)
        assert process.exitcode == 1 and not half_saved(disk)
        kept = newest_checkpoint(next((disk / "checkpoints").iterdir()))
        assert kept is not None and kept.name == f"checkpoint-{EVERY}"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert finish(disk) == undisturbed[0.1]
    finally:
        subprocess.run(["umount", str(disk)])


def finish_and_list(folder) -> list:
    """The files of one checkpoint of a finished training."""
    finish(folder)
    return [p for p in next(folder.glob("checkpoints/*/checkpoint-*")).rglob("*") if p.is_file()]
