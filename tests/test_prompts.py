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
