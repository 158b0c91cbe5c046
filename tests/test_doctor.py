"""The label doctor against planted faults: each is found, healthy rows have none, and training does not start on one."""
import json
from functools import cache

import pytest
import torch
from conftest import zenbot
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_prompts import TOKENIZERS, TURNS, tokenizer
from transformers import DataCollatorForLanguageModeling

from zenbot import training
from zenbot.cli import main
from zenbot.core import BadInput, Run
from zenbot.doctor import describe, examine_batch, examine_rows, fit_rows, mark_labels, refuse_faults
from zenbot.models import load_model
from zenbot.prompts import collate, label_walk, load_prompter, tokenize_rows
from zenbot.rows import canonical, load_rows

TOK = load_prompter("tiny")
ROWS = load_rows("sample/counsel.jsonl")[0][:12]
DIALOGUE = canonical({"messages": TURNS}, "test")


def planted(change, tok=TOK):
    """A collator that makes one mistake."""
    def collator(rows):
        batch = collate(rows, tok.pad_token_id)
        change(batch["input_ids"], batch["attention_mask"], batch["labels"])
        return batch
    return collator


def rewrites(rows):
    return DataCollatorForLanguageModeling(TOK, mlm=False)([{"input_ids": r["input_ids"]} for r in rows])


def rewrites_with_pad_eos(rows):
    tok = load_prompter("tiny")
    tok.pad_token = tok.eos_token
    return DataCollatorForLanguageModeling(tok, mlm=False)([{"input_ids": r["input_ids"]} for r in rows])


def masks_eos(ids, mask, labels): labels[ids == TOK.eos_token_id] = -100
def masks_the_last_eos(ids, mask, labels):
    for row in labels:
        row[(row != -100).nonzero().max()] = -100
def masks_the_first_eos(ids, mask, labels):
    for row in labels:
        row[(row == TOK.eos_token_id).nonzero().min()] = -100
def masks_all(ids, mask, labels): labels[:] = -100
def labels_the_first_token_only(ids, mask, labels):
    labels[:] = -100
    labels[:, 0] = ids[:, 0]
def labels_all_but_padding(ids, mask, labels): labels[:] = torch.where(mask.bool(), ids, -100)
def labels_all_but_the_first(ids, mask, labels): labels[:, 1:] = torch.where(mask.bool(), ids, -100)[:, 1:]
def labels_one_question_token(ids, mask, labels): labels[:, 4] = ids[:, 4]
def labels_padding(ids, mask, labels): labels[mask == 0] = ids[mask == 0]
def labels_one_padding(ids, mask, labels):
    for row, length in zip(labels, mask.sum(1).tolist()):
        if length < len(row): row[-1] = 5
def shifts(ids, mask, labels): labels[:] = labels.roll(-1, 1)
def swaps_a_label(ids, mask, labels):
    for row, own in zip(labels, ids):
        row[(row != -100).nonzero().min()] = TOK.unk_token_id
def cuts(ids, mask, labels): labels[:, 60:] = -100


@pytest.mark.parametrize("collator, fault, everywhere", [
    (rewrites, "the prompt is labelled as if it were an answer", True),
    (rewrites, "an answer ends without EOS", True),
    (rewrites_with_pad_eos, "the EOS of an answer is masked", True),
    (rewrites_with_pad_eos, "the prompt is labelled as if it were an answer", True),
    (planted(masks_eos), "the EOS of an answer is masked", True),
    (planted(masks_the_last_eos), "the EOS of an answer is masked", True),
    (planted(masks_the_first_eos), "the EOS of an answer is masked", True),
    (planted(masks_all), "nothing is labelled", True),
    (planted(labels_the_first_token_only), "nothing is labelled", True),
    (planted(labels_all_but_padding), "the prompt is labelled as if it were an answer", True),
    (planted(labels_all_but_the_first), "the prompt is labelled as if it were an answer", True),
    (planted(labels_one_question_token), "the collator changed the labels", True),
    (planted(labels_padding), "padding is labelled", False),
    (planted(labels_one_padding), "padding is labelled", False),
    (planted(shifts), "a label is not its token", True),
    (planted(swaps_a_label), "a label is not its token", True),
    (planted(cuts), "an answer ends without EOS", False),
    (planted(cuts), "nothing is labelled", False),
])
def test_each_planted_fault_is_named(collator, fault, everywhere):
    tokens = tokenize_rows(ROWS, TOK, 1024)[0]
    assert not examine_rows(tokens, TOK)["faults"]
    report = examine_rows(tokens, TOK, collator, batch_size=4)
    sick = {f["row"] for f in report["faults"] if f["fault"] == fault}
    assert sick == {r["id"] for r in ROWS} if everywhere else sick
    with pytest.raises(BadInput, match=f"{len({f['row'] for f in report['faults']})} of 12 rows"):
        refuse_faults(report)


def test_an_inner_answer_needs_its_eos_too_and_the_place_is_right():
    tokens = tokenize_rows([DIALOGUE], TOK, 1024)[0]
    report = examine_rows(tokens, TOK, planted(masks_the_first_eos))
    place = tokens[0]["labels"].index(TOK.eos_token_id)
    assert {(f["fault"], f["place"]) for f in report["faults"]} == {("the EOS of an answer is masked", place - 1), ("the collator changed the labels", place)}
    assert report["answers"] == 2 and report["answers_with_eos"] == 1


def test_padding_on_the_left_is_padding_too():
    tokens = tokenize_rows(ROWS, TOK, 1024)[0]
    left = lambda rows: collate(rows, TOK.pad_token_id, side="left")
    assert not examine_rows(tokens, TOK, left)["faults"]
    def first_only(rows):   # the first token of a row follows padding: predicting it teaches nothing
        batch = left(rows)
        first = batch["attention_mask"].cumsum(1) == 1
        return batch | {"labels": torch.where(first & batch["attention_mask"].bool(), batch["input_ids"], -100)}
    assert len(examine_rows(tokens, TOK, first_only)["all_masked"]) == len(ROWS)


def test_plain_text_may_be_all_labelled_and_end_anywhere_but_nothing_else():
    blocks = [dict(input_ids=ids, labels=list(ids)) for ids in ([5, 6, 7, 8], [9, 10])]
    assert not examine_rows(blocks, TOK, text=True)["faults"] and not examine_rows(blocks, TOK, rewrites, text=True)["faults"]
    assert {f["row"] for f in examine_rows(blocks, TOK)["faults"]} == {0, 1}, "as answers they are wrong"
    for collator, fault in ((planted(labels_padding), "padding is labelled"), (planted(shifts), "a label is not its token"), (planted(masks_all), "nothing is labelled")):
        assert fault in {f["fault"] for f in examine_rows(blocks, TOK, collator, text=True)["faults"]}


@pytest.mark.parametrize("template", ["own", "chat", "scenario"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_healthy_rows_have_no_fault_at_any_length(name, template):
    tok = tokenizer(name, template)
    for length in (150, 300, 10_000):
        tokens, counts = tokenize_rows([DIALOGUE, *ROWS], tok, length)
        fitting, aside = fit_rows(tokens)
        report = examine_rows(fitting, tok)
        assert not report["faults"] and fitting and len(aside) == counts["cut"]
        assert report["answers"] == report["answers_with_eos"] >= len(fitting)
        refuse_faults(report)
    assert counts["dropped"] == counts["cut"] == 0 and report["answers"] == sum(m["role"] == "assistant" for r in [DIALOGUE, *ROWS] for m in r["messages"])


def test_dropped_turns_are_no_fault_and_a_lost_tail_is_one():
    whole = len(tokenize_rows([DIALOGUE], TOK, 1024)[0][0]["input_ids"])
    ids = [DIALOGUE["id"]]
    dropped = examine_rows(tokenize_rows([DIALOGUE], TOK, whole - 1)[0], TOK)
    assert dropped["dropped"] == ids and not dropped["cut"] and not dropped["faults"]
    last = canonical({"messages": TURNS[2:]}, "test")
    labels = tokenize_rows([last], TOK, 1024)[0][0]["labels"]
    assert labels[-1] == -100 and fit_rows(tokenize_rows([last], TOK, len(labels) - 1)[0])[0], "a line break after the EOS may go"
    assert fit_rows(tokenize_rows([last], TOK, labels.index(TOK.eos_token_id))[0])[1], "the EOS may not"
    question = next(i for i, l in enumerate(labels) if l != -100)
    short = examine_rows(tokenize_rows([DIALOGUE], TOK, question + 4)[0], TOK)
    assert short["cut"] == ids and not short["all_masked"] and "EOS are lost" in short["faults"][0]["fault"]
    nothing = examine_rows(tokenize_rows([DIALOGUE], TOK, 10)[0], TOK)
    assert nothing["cut"] == nothing["all_masked"] == ids and "no answer is left" in nothing["faults"][0]["fault"]
    for report in (short, nothing):
        with pytest.raises(BadInput, match=ids[0]):
            refuse_faults(report, "stage2")
    assert "without the end of their last answer: 1" in describe(nothing)


words = st.lists(st.sampled_from("I wake at three and worry . \n 🌙 été 12".split(" ")), min_size=1, max_size=25).map(" ".join).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.tuples(words, words), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(1, 200), st.booleans())
def test_every_row_fits_or_is_set_aside_and_what_fits_ends_with_a_learned_eos(dialogues, length, note):
    rows = [dict(id=str(i), kind="counsel", messages=[{"role": "system", "content": "Be kind."}] * note +
                 [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]) for i, pairs in enumerate(dialogues)]
    tokens, counts = tokenize_rows(rows, TOK, length)
    fitting, aside = fit_rows(tokens)
    assert sorted([r["id"] for r in fitting] + [r["id"] for r in aside]) == sorted(r["id"] for r in rows) and all(r["reason"] for r in aside)
    for row, original in ((t, rows[int(t["id"])]) for t in fitting):
        learned = [l for l in row["labels"] if l != -100]
        assert learned[-1] == TOK.eos_token_id and len(row["labels"]) <= length
        assert original["messages"][-2]["content"] in TOK.decode(row["input_ids"]), "the last question is never lost"
    assert bool(examine_rows(tokens, TOK)["faults"]) == bool(aside), "the doctor and the sorting agree"
    assert not examine_rows(fitting, TOK)["faults"]


def test_training_refuses_before_any_step(tmp_path):
    model = load_model("tiny", torch.float32)
    before = [p.clone() for p in model.parameters()]
    good, bad = fit_rows(tokenize_rows(ROWS, TOK, 512)[0])[0], tokenize_rows(ROWS, TOK, 100)[0][:1]
    masked = [dict(r, labels=[-100] * len(r["labels"])) for r in good[:1]]
    for rows, words in ((good + bad, "EOS are lost"), (good + masked, "nothing is labelled"), ([], "no row to learn from")):
        with pytest.raises(BadInput, match=words):
            training.train(Run(tmp_path), "refused", model, TOK, rows, good[:2], max_steps=1, report_to="none")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters())) and not list(tmp_path.glob("checkpoints/*/*"))
    log = training.train(Run(tmp_path), "begun", model, TOK, good[:2], good[:2], learning_rate=1e-2, max_steps=1, report_to="none")
    assert log[-1]["steps"] == 1 and log[-1]["rows"] == 2


def test_training_examines_what_its_own_collator_makes(tmp_path, monkeypatch):
    good = fit_rows(tokenize_rows(ROWS, TOK, 512)[0])[0]
    monkeypatch.setattr(training, "collate", lambda rows, pad: planted(masks_eos)(rows))
    with pytest.raises(BadInput, match="the EOS of an answer is masked"):
        training.train(Run(tmp_path), "refused", load_model("tiny", torch.float32), TOK, good, good[:2], max_steps=1, report_to="none")


once = cache(tokenizer)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("aé 🌙世\n\tx.'"), max_size=20))
def test_the_walk_over_tokens_loses_no_character(name, text):
    tok = once(name, "chat")
    ids = tok(text).input_ids
    walked = list(label_walk(dict(input_ids=ids, labels=[-100] * len(ids)), tok))
    assert len(walked) == len(ids) and "".join(t for t, _, _ in walked) == tok.decode(ids)


def test_the_terminal_shows_what_is_learned():
    row = tokenize_rows([DIALOGUE], TOK, 1024)[0][0]
    plain = mark_labels(row, TOK, colour=False).plain
    for m in TURNS:
        learned = m["content"] + TOK.eos_token
        assert f"⟦{learned}⟧" in plain if m["role"] == "assistant" else m["content"] in plain and f"⟦{m['content']}" not in plain
    console = Console(force_terminal=True, color_system="standard", width=500)
    with console.capture() as captured:
        console.print(mark_labels(row, TOK))
    assert "⟦" not in captured.get() and "\x1b[32mMany people do. What then?\x1b[0m\x1b[7;32m</s>" in captured.get()


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": f"I wake at {n} and worry.", "response": "Then give worry its own quarter of an hour, by day. " * (1 + 30 * (n == 3))} for n in range(1, 6)]
    (tmp_path / "rows.jsonl").write_text("not a row\n" + "\n".join(map(json.dumps, rows)))
    (tmp_path / "named.csv").write_text("Context,Response\nI wake at three.,Many people do.\n")
    return tmp_path


@pytest.fixture
def doctor(files, monkeypatch, capsys):
    """The command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("ZENBOT_HOME", str(files))
    def run(*args):
        with pytest.raises(SystemExit) as done:
            main(["doctor", *args])
        return done.value.code, *capsys.readouterr()
    return run


@pytest.mark.parametrize("args, code, words", [
    (["--data", "rows.jsonl", "--max-length", "1024"], 0, ["rows with a fault: 0", "rejected while reading: 1", "⟦Then give worry"]),
    (["--data", "rows.jsonl"], 1, ["rows with a fault: 1", "line 4, row ", "EOS are lost (token 511)", "has a fault"]),
    (["--data", "rows.jsonl", "--max-length", "10"], 1, ["rows with a fault: 5", "line 2", "line 6", "no answer is left", "with nothing labelled: 5"]),
    (["--data", "named.csv", "--columns", "prompt=Context, response=Response", "--template", "scenario", "--rows", "0"], 0, ["rows with a fault: 0"]),
])
def test_the_command_tells_health_from_illness(args, code, words, doctor):
    exit_code, out, err = doctor("--model", "tiny", *args)
    assert exit_code == code and not err, err
    assert all(w in out for w in words) and "\x1b[" not in out, out


@pytest.mark.parametrize("args, words", [
    (["--model", "nobody/knows-this-model", "--data", "rows.jsonl"], "neither a folder nor a named model"),
    (["--model", "tiny", "--data", "missing.jsonl"], "no file or folder 'missing.jsonl'"),
    (["--model", "tiny", "--data", "rows.jsonl", "--template", "sonnet"], "no template 'sonnet'"),
    (["--model", "tiny", "--data", "rows.jsonl", "--columns", "Context"], "not of the form"),
    (["--model", "tiny", "--data", "rows.jsonl", "--max-length", "0"], "max-length"),
    (["--model", "tiny"], "Missing option '--data'"),
])
def test_bad_input_exits_with_two(args, words, doctor):
    code, out, err = doctor(*args)
    assert code == 2 and words in err and not out and "Traceback" not in err


def test_json_is_one_object_with_every_fault_and_its_line(files):
    """As a user would type it: nothing else may come out of the process."""
    done = zenbot("doctor", "--model", "tiny", "--data", "rows.jsonl", "--json", home=files)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and {f["line"] for f in report["faults"]} == {4} and report["cut"] == [report["faults"][0]["row"]]
    assert report["rows"] == 5 and report["rejected"] == 1 and report["answers_with_eos"] == 4


def test_a_batch_says_nothing_about_healthy_rows():
    batch = collate(tokenize_rows([DIALOGUE, *ROWS[:2]], TOK, 1024)[0], TOK.pad_token_id)
    assert examine_batch(batch, TOK.eos_token_id) == [[], [], []]
    batch["labels"][1] = -100
    assert examine_batch(batch, TOK.eos_token_id) == [[], [dict(place=0, fault="nothing is labelled")], []]
