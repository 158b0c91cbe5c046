"""A message in plain words: disguise comes off, ordinary writing stays, and no text of any kind or size is too much."""
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.core import read_jsonl
from zenbot.plain_words import FOLDER, excerpt, fold, plain, word_lists

WORDS = "i want to kill myself"
DISGUISES = {
    "case": str.upper,
    "full width": lambda t: t.translate({c: c + 0xFEE0 for c in range(0x21, 0x7F)}),
    "zero width": lambda t: t.replace("i", "i\u200b").replace("e", "\u2060e"),
    "soft hyphens": lambda t: t.replace("l", "l\u00ad"),
    "cyrillic": lambda t: t.replace("i", "і").replace("e", "е").replace("a", "а"),
    "accents": lambda t: t.replace("i", "í").replace("e", "ë"),
    "leet": lambda t: t.replace("kill", "k1ll").replace("self", "s3lf"),
    "signs": lambda t: t.replace("kill", "k!ll").replace("myself", "my$elf"),
    "stars": lambda t: t.replace("kill", "k*ll"),
    "apart": lambda t: t.replace("kill", "k i l l"),
    "dots": lambda t: t.replace("kill", "k.i.l.l"),
    "dragged": lambda t: t.replace("kill", "kiiill").replace("myself", "myselffff"),
    "shorthand": lambda t: "wanna kms" if t == WORDS else t,
    "two words": lambda t: t.replace("myself", "my self"),
    "misspelt": lambda t: t.replace("myself", "myslef"),
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguise_comes_off(name):
    assert WORDS.removeprefix("i ") in plain(DISGUISES[name](WORDS))[0]


def test_ordinary_writing_stays():
    """Of thousands of words in ordinary questions none is changed but the listed ones."""
    known, changed = set(word_lists()["slang"]), set()
    for row in read_jsonl(FOLDER.parent / "sample" / "counsel.jsonl"):
        said = row.get("prompt") or row["messages"][0]["content"]
        here = set(re.findall(r"[a-z]+", fold(said).replace("'", ""))) | {v for k in known if re.search(rf"\b{re.escape(k)}\b", fold(said).replace("'", "")) for v in word_lists()["slang"][k].split()}
        changed |= {w for s in plain(said) for w in s.split() if w.isalpha() and w not in here}
    assert not changed


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_any_text_becomes_sentences(text):
    for sentence in plain(text):
        assert sentence and sentence == " ".join(sentence.split()) and "'" not in sentence


@given(st.text(alphabet="абвгдежзийклмнопрстуфхцчшщыэюя ", max_size=60))
def test_other_languages_are_left_alone(text):
    assert fold(text).replace("й", "и") == text.replace("й", "и")


@pytest.mark.parametrize("unit", ["i cant sleep and ", "a ", "*", "x", "a1", "a.", "аb", '"', "!?", "\u202e", "k*", "- ", "ﷺ"])
def test_a_megabyte_is_read_at_once(unit):
    """Whatever is repeated; the bound is far above the time it takes (some milliseconds), and far below what backtracking would take."""
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    plain(excerpt(text))
    assert time.perf_counter() - start < 1


def test_an_excerpt_keeps_both_ends_and_what_alarms():
    filler = "It rained. " * 20_000
    for text in ("I want to die. " + filler, filler + "I want to die.", filler + "I want to die. " + filler):
        assert "want to die" in excerpt(text).lower() and len(excerpt(text)) < 40_000
    assert excerpt("short") == "short"
