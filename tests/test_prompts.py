"""Labels against a count by hand, on three tokenizers, in every format."""
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.models import load_tokenizer
from zenbot.prompts import collate, drop_oldest, render, set_template, tokenize_and_mask

TOKENIZERS = {"tiny": "tiny", "smollm2": "smollm2-135m", "tinyllama": SHARED / "tinyllama_tokenizer"}
TURNS = [{"role": "user", "content": "I wake at three."}, {"role": "assistant", "content": "Many people do. What then?"},
         {"role": "user", "content": "I look at the clock, 5 times."}, {"role": "assistant", "content": "1. Turn it round.\n\n2. Get up."}]


def tokenizer(name, template):
    if name == "tinyllama":
        if not TOKENIZERS[name].exists():
            pytest.skip("TinyLlama's tokenizer is not beside this clone")
        from transformers import AutoTokenizer
        tok = AutoTokenizer.from_pretrained(TOKENIZERS[name])
    else:
        tok = load_tokenizer(TOKENIZERS[name])
    return set_template(tok, template)


@pytest.mark.parametrize("template", ["own", "chat", "scenario"])
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("n", [2, 4])
def test_labels_are_the_answers_and_their_eos_and_nothing_else(name, template, n):
    tok, messages = tokenizer(name, template), TURNS[:n]
    row = tokenize_and_mask(messages, tok, 10_000)
    assert row["input_ids"] == tok.apply_chat_template(messages, return_dict=False) and not row["truncated"]
    by_hand, text = [], render(messages, tok)
    for i in range(1, n, 2):      # what follows the generation prompt, up to its EOS, is the answer
        start = tok(render(messages[:i], tok, True), add_special_tokens=False).input_ids
        assert row["input_ids"][:len(start)] == start, "in use the model sees the very tokens of training"
        end = row["input_ids"].index(tok.eos_token_id, len(start)) + 1
        by_hand += list(range(len(start), end))
    assert [i for i, l in enumerate(row["labels"]) if l != -100] == by_hand
    assert all(l in (-100, t) for l, t in zip(row["labels"], row["input_ids"])) and text.count(tok.eos_token) >= n // 2


@pytest.mark.parametrize("name", TOKENIZERS)
def test_truncation_drops_whole_oldest_turns_then_tails(name):
    tok = tokenizer(name, "chat")
    whole, last = tokenize_and_mask(TURNS, tok, 10_000), tokenize_and_mask(TURNS[2:], tok, 10_000)
    for length in range(1, len(whole["input_ids"]) + 2):
        row = tokenize_and_mask(TURNS, tok, length)
        assert len(row["input_ids"]) <= length
        assert row["truncated"] == (length < len(whole["input_ids"])), "what is cut is said"
        expected = whole if not row["truncated"] else last
        assert row["input_ids"] == expected["input_ids"][:length] and row["labels"] == expected["labels"][:length]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30).map(lambda s: s.strip()).filter(bool), min_size=2, max_size=2))
def test_any_text_is_labelled_to_its_end(pair):
    tok = load_tokenizer("tiny")
    set_template(tok, "chat")
    if any(t in "".join(pair) for t in tok.all_special_tokens):
        return
    row = tokenize_and_mask([{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}], tok, 10_000)
    learned = [t for t in row["labels"] if t != -100]
    assert learned[-1] == tok.eos_token_id and tok.decode(learned[:-1]).strip() == pair[1]


def test_an_examination_labels_the_last_answer_only():
    tok = tokenizer("tiny", "chat")
    whole, last = tokenize_and_mask(TURNS, tok, 10_000), tokenize_and_mask(TURNS, tok, 10_000, last_only=True)
    assert whole["input_ids"] == last["input_ids"]
    assert tok.decode([l for l in last["labels"] if l != -100]).strip() == TURNS[-1]["content"] + tok.eos_token


def test_padding_is_never_a_label_and_eos_is_not_padding():
    for name in ("tiny", "smollm2-135m"):
        tok = set_template(load_tokenizer(name), "own")
        assert tok.pad_token_id != tok.eos_token_id
        rows = [tokenize_and_mask(TURNS[:2], tok), tokenize_and_mask(TURNS, tok)]
        batch = collate(rows, tok.pad_token_id)
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
        assert batch["labels"].tolist()[1] == rows[1]["labels"]


def test_a_system_note_survives_truncation():
    note = {"role": "system", "content": "Be kind."}
    assert drop_oldest([note] + TURNS) == [note] + TURNS[2:] and drop_oldest([note] + TURNS[2:]) == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_program_gets_the_same_tokens_from_the_saved_folder(name, tmp_path):
    """Training, evaluation and chat against plain transformers, in a process that knows nothing of zenbot, from `chat_template.jinja` alone."""
    import json
    import subprocess
    import sys
    talks = [TURNS[:2], TURNS, [{"role": "system", "content": "Be kind."}, *TURNS], [{"role": "user", "content": "Ünïcode 🌙\n\n  and  gaps"}, {"role": "assistant", "content": "Ja — “so”."}]]
    ours = {}
    for template in ("own", "chat", "scenario"):
        tok = tokenizer(name, template)
        tok.save_pretrained(tmp_path / template)
        assert (tmp_path / template / "chat_template.jinja").exists()
        ours[template] = [[tokenize_and_mask(t, tok, 10_000)["input_ids"], tokenize_and_mask(t, tok, 10_000, last_only=True)["input_ids"],
                           tok(render(t[:-1], tok, True), add_special_tokens=False).input_ids] for t in talks]
    code = """
import json, sys
from transformers import AutoTokenizer
out = {}
for template in ("own", "chat", "scenario"):
    tok = AutoTokenizer.from_pretrained(sys.argv[1] + "/" + template)
    ids = lambda t, **k: tok.apply_chat_template(t, return_dict=False, **k)
    out[template] = [[ids(t), ids(t), ids(t[:-1], add_generation_prompt=True)] for t in json.loads(sys.argv[2])]
assert not any(m.startswith("zenbot") for m in sys.modules)
print(json.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), json.dumps(talks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ours
