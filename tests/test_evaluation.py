"""The leaderboard can be believed: nothing is generated twice, one bad model does not stop the rest, and a changed digit is found."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from conftest import zenbot, zenbot_here
from zenbot.answers import Memo, answer_rows
from zenbot.core import BadInput, Run, read_json, read_jsonl, write_json
from zenbot.evaluation import benchmark_model, evaluate, judge_all
from zenbot.judges import make_verdict
from zenbot.leaderboard import MEASURES, cost_table, quality_table, read_board, summarise
from zenbot.rows import load_rows
from zenbot.verify import unequal, verify

ROWS = load_rows("sample/counsel.jsonl")[0][:12]
FEW = dict(max_new_tokens=8, max_length=128)


def test_rows_are_scored_without_the_prompt_and_in_order():
    rows, facts = benchmark_model("tiny", ROWS, max_new_tokens=8)
    assert [r["id"] for r in rows] == [r["id"] for r in ROWS] and facts["written"] == len({r["prompt"] for r in rows})
    assert all(r["full_output"].endswith(r["generated"]) and r["prompt"] in r["full_output"] and r["prompt"] not in r["generated"] for r in rows)
    assert len({r["seconds"] for r in rows}) > 1, "the time of that row, not of its batch"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=3)), max_size=6), st.integers(0, 200))
def test_a_memo_cut_anywhere_keeps_what_was_whole(tmp_path_factory, entries, cut):
    path = tmp_path_factory.mktemp("memo") / "m.jsonl"
    memo = Memo(path)
    for key, value in entries:
        memo.put(key, value)
    whole = path.read_bytes() if path.exists() else b""
    path.write_bytes(whole[:cut])
    after, kept = Memo(path), {}
    for end in [i + 1 for i, c in enumerate(whole) if c == ord("\n") and i <= cut]:   # an entry is whole with its last bracket, be the line break there or not
        kept.update([json.loads(whole[:end].splitlines()[-1])])
    assert after.known == kept
    after.put("new", 1)
    assert Memo(path).known == kept | {"new": 1}


def test_killed_midway_no_answer_is_generated_twice(tmp_path):
    """SIGKILL after the first answers; every answer line of the file is there once, whoever wrote it."""
    code = ("import sys; from zenbot.answers import Memo, answer_rows; from zenbot.rows import load_rows; "
            "answer_rows('tiny', load_rows('sample/counsel.jsonl')[0][:60], Memo(sys.argv[1]), batch_size=4, max_new_tokens=24, max_length=128)")
    path = tmp_path / "answers.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], env=os.environ | dict(ZENBOT_BATCH="1"), stderr=subprocess.DEVNULL)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(Memo(path).known)
    assert 5 <= before < 60, "killed in the middle"
    rows = load_rows("sample/counsel.jsonl")[0][:60]
    found, facts = answer_rows("tiny", rows, Memo(path), batch_size=4, max_new_tokens=24, max_length=128)
    questions = len({str(r["messages"][:-1]) for r in rows})
    assert facts["written"] == questions - before
    keys = [json.loads(line)[0] for line in path.read_bytes().splitlines() if line.endswith(b"]")]
    assert len(keys) == len(set(keys)), "nothing was written twice"
    whole, _ = answer_rows("tiny", rows, Memo(tmp_path / "whole.jsonl"), batch_size=4, max_new_tokens=24, max_length=128)
    assert [f["nats"] for f in found] == pytest.approx([f["nats"] for f in whole], rel=1e-3)


def test_a_model_that_fails_is_a_row_and_the_rest_goes_on(tmp_path):
    board = evaluate({"base": "tiny", "gone": str(tmp_path / "nothing"), "again": "tiny"}, ROWS, tmp_path / "out", train=ROWS, **FEW)
    assert [e["model"] for e in board][:3] == ["base", "gone", "again"] and "is neither a folder nor a named model" in board[1]["error"]
    assert board[2]["response_loss_vs_base"]["verdict"] == "tie" and board[2]["response_loss_vs_base"]["value"] == 0 and board[2]["response_loss_vs_base"]["p"] == 1
    assert "failed:" in str(quality_table(board)[1]) and len(cost_table(board)) == len(board) - 1
    assert not (tmp_path / "out/leaderboards_partial.json").exists()
    full = read_json(tmp_path / "out/leaderboards_full.json")
    assert {"model", "avg_similarity", "avg_rouge", "samples", "verdicts"} <= set(full["metrics"][0])
    assert {"id", "prompt", "expected", "generated", "full_output"} <= set(read_json(tmp_path / "out/test_results.json")[0])
    with pytest.raises(BadInput, match="None of the models could be measured"):
        evaluate({"gone": str(tmp_path / "nothing")}, ROWS, tmp_path / "none", **FEW)


def test_a_judge_that_always_says_yes_ranks_nobody(tmp_path):
    rows = benchmark_model("tiny", ROWS, max_new_tokens=4)[0]
    planted = [dict(question=f"What helps on night {i}?", reference=f"Keep the room dark and cool, night {i}.") for i in range(24)]
    ruled = judge_all({"yes": lambda asked: [make_verdict("consistent") for _ in asked]}, planted, {"base": rows}, tmp_path)
    assert ruled["yes"]["base"]["verdicts"]["consistent"] == len(rows) and not ruled["yes"]["base"]["usable"] and ruled["yes"]["base"]["rank"] is None
    assert len(read_jsonl(tmp_path / "judgements.jsonl")) == len(rows)


def made_up(n, shift, tokens=20):
    rng = np.random.default_rng(0)
    return [dict(id=i, group=f"g{i // 2}", nats=60 + 5 * rng.random() + shift * tokens + 0.1 * rng.normal(), tokens=tokens, bytes=90, rouge1_f=0.2, rouge2_f=0.1, rougeL_f=0.15, similarity=0.5, token_match=0.4, repetition=0.0, words=20,
                 finished=True, seconds=1.0, first_token_seconds=0.1, generated="Sleep comes when it may.") for i in range(n)]


def test_other_tokens_are_compared_by_bytes_and_never_by_tokens():
    board = summarise({"base": made_up(40, 0.0), "other": made_up(40, 0.3, tokens=25)})
    assert "response_loss_vs_base" not in board[1] and "loss_per_byte_vs_base" in board[1]
    assert "loss per byte" in quality_table(board)[0]


def test_an_effect_is_found_and_its_detectable_size_is_below_it():
    board = summarise({"base": made_up(40, 0.0), "worse": made_up(40, 0.3)})
    assert board[1]["response_loss_vs_base"]["verdict"] == "worse" and board[1]["detectable"]["response_loss"] < 0.3
    assert all(board[1][f"{m}_vs_base"]["verdict"] == "tie" for m in MEASURES if m not in ("response_loss", "loss_per_byte"))


@given(st.recursive(st.integers() | st.floats(-1e6, 1e6) | st.text(max_size=4) | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8))
def test_what_is_equal_has_no_difference(value):
    assert unequal(value, json.loads(json.dumps(value))) == []
    assert unequal([value, 1.0], [value, 1.01])[0]["where"] == "[1]"


def test_a_run_agrees_with_itself_and_a_changed_digit_anywhere_is_named(smoke, tmp_path):
    assert zenbot("verify", str(smoke), home=tmp_path).returncode == 0
    run = Run(shutil.copytree(smoke, tmp_path / "copy"))
    changes = {"results/leaderboards_full.json": lambda d: d["metrics"][1]["response_loss"].update(value=1.25), "results/metrics.json": lambda d: d["base"].update(rouge_l=0.5),
               "results/test_results.json": lambda d: d[0].update(rougeL_f=0.77), "results/test_results_rouge.json": lambda d: d[3].update(rouge1_f=0.9)}
    for name, change in changes.items():
        data = read_json(run / name)
        change(data)
        write_json(run / name, data)
    report = (run / "report.html").read_text()
    (run / "report.html").write_text(report.replace("nats per", "NATS per", 1))
    said = zenbot("verify", str(run.path), "--json", home=tmp_path)
    found = {(d["file"], d["where"]) for d in json.loads(said.stdout)["differences"]}
    assert said.returncode == 1
    assert {("results/leaderboards_full.json", "metrics[1].response_loss.value"), ("results/metrics.json", "base.rouge_l"), ("results/leaderboards_full.json", "SHA-256")} <= found
    assert any(f == "results/test_results.json" and w.endswith("rougeL_f") for f, w in found) and any(f == "results/test_results_rouge.json" for f, _ in found) and any(f == "report.html" for f, _ in found)


@pytest.mark.parametrize("args,words", [(["--data", "nothing.jsonl", "--out", "o"], "nothing.jsonl"), (["--data", "sample/counsel.jsonl", "--out", "o", "--max-new-tokens", "0"], "at least 1")])
def test_bad_input_gets_a_sentence(tmp_path, args, words):
    said = zenbot_here("evaluate", "tiny", *args, home=tmp_path)
    assert said.returncode == 2 and words in said.stderr and "Traceback" not in said.stderr


def test_evaluate_from_the_command_line_can_be_verified(tmp_path):
    said = zenbot("evaluate", "tiny", "again=tiny", "--data", "sample/counsel.jsonl", "--max-rows", "6", "--max-new-tokens", "6", "--out", str(tmp_path / "out"), "--json", home=tmp_path)
    assert said.returncode == 0, said.stderr
    assert [e["model"] for e in json.loads(said.stdout)["leaderboard"]] == ["tiny", "again"] == [e["model"] for e in read_board(tmp_path / "out")]
    assert verify(tmp_path / "out") == []
