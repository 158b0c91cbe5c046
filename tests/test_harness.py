"""What is exported is the question, the reference and nothing else; the real harnesses, where installed, find our numbers."""
import ast
import json

import pytest
import torch
import yaml
from conftest import zenbot
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.core import BadInput
from zenbot.generation import generate_answers
from zenbot.harness import question_of, to_inspect, to_lm_eval
from zenbot.measures import response_losses
from zenbot.texts import rouge
from zenbot.models import load_model, save_model
from zenbot.prompts import load_prompter, render, tokenize_rows
from zenbot.rows import load_rows


@pytest.fixture(scope="module")
def rows() -> list:
    """Four rows, the first a conversation of two exchanges."""
    a, b, c, d = load_rows("sample/counsel.jsonl")[0][:4]
    return [dict(a, messages=[*b["messages"], *a["messages"]]), b, c, d]


def lines(path) -> list: return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lm_eval_files(rows, tmp_path):
    tok, folder = load_prompter("tiny"), to_lm_eval(rows, load_prompter("tiny"), tmp_path / "task", "held_out", 32)
    assert sorted(p.name for p in folder.iterdir()) == ["held_out.jsonl", "held_out.yaml", "held_out_loss.yaml", "held_out_task.py"]
    classes = {n.name for n in ast.parse((folder / "held_out_task.py").read_text()).body if isinstance(n, ast.ClassDef)}
    for name, kind in (("held_out", "generate_until"), ("held_out_loss", "loglikelihood")):
        text = (folder / f"{name}.yaml").read_text()
        task = yaml.safe_load(text.replace("!function ", ""))
        assert task["task"] == name and task["output_type"] == kind and task["class"].removeprefix("held_out_task.") in classes and task["metadata"]["file"] == "held_out.jsonl"
    for doc, row in zip(lines(folder / "held_out.jsonl"), rows, strict=True):
        assert doc["question"] == row["messages"][:-1] and doc["reference"] == row["messages"][-1]["content"]
        assert doc["target"] == doc["reference"] + tok.eos_token and render(row["messages"], tok).startswith(doc["prompt"] + doc["target"])
    assert not {"prompt", "target"} & set(lines(to_lm_eval(rows, None, tmp_path / "task") / "zenbot_counsel.jsonl")[0])


def test_inspect_files(rows, tmp_path):
    folder = to_inspect(rows, tmp_path / "task", "held_out", 32)
    assert sorted(p.name for p in folder.iterdir()) == ["held_out.jsonl", "held_out.py"]
    code = (folder / "held_out.py").read_text()
    assert "held_out" in {n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)} and "max_tokens=32" in code and "NAME" not in code
    assert [(s["id"], s["input"], s["target"]) for s in lines(folder / "held_out.jsonl")] == [(r["id"], *question_of(r)) for r in rows]


MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.sampled_from(["", " ", "text", None])}), max_size=4)


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES)
def test_a_row_has_a_reference_or_is_refused_whole(tmp_path_factory, messages):
    folder, row = tmp_path_factory.mktemp("x"), dict(id="r", kind="counsel", source="s", messages=messages)
    good = [m["role"] for m in messages[-2:]] == ["user", "assistant"] and all((m["content"] or "").strip() for m in messages)
    for write in (lambda: to_lm_eval([row], None, folder / "a"), lambda: to_inspect([row], folder / "b")):
        if good: assert write().is_dir()
        else:
            with pytest.raises(BadInput, match="Row 'r'"): write()
    assert good or not list(folder.iterdir())


@pytest.mark.parametrize("given, name, said", [([], "x", "no held-out rows"), (None, "a-b", "cannot name"), (None, "class", "cannot name"), (None, "../x", "cannot name")])
def test_refusals_leave_what_was_there(rows, tmp_path, given, name, said):
    (tmp_path / "task").mkdir()
    (tmp_path / "task/old").write_text("old")
    for write in (lambda r: to_lm_eval(r, None, tmp_path / "task", name), lambda r: to_inspect(r, tmp_path / "task", name)):
        with pytest.raises(BadInput, match=said): write(rows if given is None else given)
    assert [p.name for p in tmp_path.rglob("*")] == ["task", "old"]


@pytest.mark.parametrize("template", [True, False])
def test_lm_eval_finds_our_numbers(rows, tmp_path, monkeypatch, template):
    """fp32, one row at a time: nats to 1e-5 of themselves; greedy answers are the same texts."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager
    for key in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "DO_NOT_TRACK"): monkeypatch.setenv(key, "1")
    tok, model = load_prompter("tiny"), load_model("tiny", torch.float32)
    save_model(model, tok, tmp_path / "model")
    to_lm_eval(rows, None if template else tok, tmp_path / "task", max_new_tokens=24)
    done = lm_eval.simple_evaluate("hf", f"pretrained={tmp_path / 'model'},dtype=float32", ["zenbot_counsel", "zenbot_counsel_loss"], batch_size=1, device="cpu", apply_chat_template=template,
                                   task_manager=TaskManager(include_path=str(tmp_path / "task"), include_defaults=False), bootstrap_iters=0)
    by_row = {t: sorted(s, key=lambda s: s["doc_id"]) for t, s in done["samples"].items()}
    nats, _ = response_losses(model, tokenize_rows(rows, tok, 4096, last_only=True)[0], 1, tok.pad_token_id)
    assert [s["response_nats"] for s in by_row["zenbot_counsel_loss"]] == pytest.approx(nats, rel=1e-5)
    answers = [a["answer"] for a in generate_answers(model, tok, [r["messages"][:-1] for r in rows], 24, 1)]
    assert [s["resps"][0][0].strip() for s in by_row["zenbot_counsel"]] == answers
    assert [s["rougeL_f"] for s in by_row["zenbot_counsel"]] == pytest.approx(rouge(answers, [r["messages"][-1]["content"] for r in rows])["rougeL_f"].tolist())


def test_the_command_writes_both_and_overwrites_nothing(rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[1:]) + "not json\n", encoding="utf-8")
    done = zenbot("tasks", "rows.jsonl", "out", "--name", "mine", "--json", home=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout) == dict(out="out", rows=3, rejected=1), done.stderr
    assert len(lines(tmp_path / "out/lm_eval/mine.jsonl")) == len(lines(tmp_path / "out/inspect/mine.jsonl")) == 3
    assert "exists already" in zenbot("tasks", "rows.jsonl", "out", home=tmp_path).stderr
    assert "cannot name a task" in zenbot("tasks", "rows.jsonl", "other", "--name", "a b", home=tmp_path).stderr and not (tmp_path / "other").exists()
