"""The labelled messages of the guard: the test is the one that was frozen, and nothing of it stands in what is tuned on."""
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from zenbot.core import read_jsonl, sha256
from zenbot.duplicates import normalise, shingles
from zenbot.plain_words import FOLDER

LABELS = {"danger", "gray", "benign", "off_topic", "medical", "harmful"}


def test_the_frozen_test_is_the_one_of_the_card():
    card = (FOLDER / "DATA_CARD.md").read_text()
    assert all(sha256(FOLDER / f"{part}.jsonl") in card for part in ("test", "conversations_test"))
    counts = Counter(r["label"] for r in read_jsonl(FOLDER / "test.jsonl"))
    assert counts.keys() == LABELS and all(f"| {n}:" in card or f"| {n} in " in card for n in counts.values())
    assert counts["danger"] >= 200 and counts["gray"] >= 120 and counts["benign"] >= 350


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_no_message_is_in_both_parts(held_out):
    """Not one pair of messages shares half of its words and word pairs."""
    dev, test = ([normalise(r["text"]) for r in read_jsonl(FOLDER / f"{part}.jsonl")] for part in ("dev", held_out))
    count = CountVectorizer(analyzer=shingles, binary=True).fit(dev + test)
    x, y = count.transform(dev), count.transform(test)
    common = (x @ y.T).tocoo()
    either = np.asarray(x.sum(1)).ravel()[common.row] + np.asarray(y.sum(1)).ravel()[common.col] - common.data
    assert (common.data / either).max() < 0.5


def test_every_row_says_what_it_is_and_once():
    for part in ("dev", "validation", "test"):
        rows = read_jsonl(FOLDER / f"{part}.jsonl")
        assert all(r.keys() == {"text", "label", "category"} and r["label"] in LABELS and r["text"].strip() for r in rows)
        assert len({r["text"].lower() for r in rows}) == len(rows)


def test_conversations_of_both_parts_are_labelled_and_apart():
    parts = [read_jsonl(FOLDER / f"conversations_{part}.jsonl") for part in ("dev", "validation", "test")]
    said = [{t["content"] for c in part for t in c["turns"] if t["role"] == "user" and len(t["content"].split()) > 3} for part in parts]
    assert not said[0] & (said[1] | said[2]) and not said[1] & said[2]
    for c in sum(parts, []):
        labels = {t["label"] for t in c["turns"] if t["role"] == "user"}
        assert c["risk"] in {"none", "low", "high", "imminent"} and labels <= LABELS and ("danger" in labels) == (c["risk"] in {"high", "imminent"})


def test_answers_of_both_parts_are_labelled_and_apart():
    dev, test = ([r["text"].lower() for r in read_jsonl(FOLDER / f"answers_{part}.jsonl")] for part in ("dev", "test"))
    assert not set(dev) & set(test)
    for part in ("dev", "test"):
        rows = read_jsonl(FOLDER / f"answers_{part}.jsonl")
        assert all(r.keys() == {"asked", "text", "label", "category"} and r["label"] in {"bad", "fine"} for r in rows)


def test_no_crisis_number_that_has_no_source_stands_in_an_answer():
    known = (FOLDER / "helplines.yaml").read_text()
    for part in ("dev", "test"):
        for r in read_jsonl(FOLDER / f"answers_{part}.jsonl"):
            for number in re.findall(r"\b(?:\d{3,5}[ -]?){2,}\d+\b|\b\d{5,}\b", r["text"]): assert number in known, r["text"]


def test_the_card_counts_the_files():
    card = (FOLDER / "DATA_CARD.md").read_text()
    for name in ("test", "validation", "dev", "conversations_test", "conversations_validation", "conversations_dev", "answers_dev", "answers_test"): assert f"| `{name}.jsonl` | {len(read_jsonl(FOLDER / f'{name}.jsonl')):,} |" in card
