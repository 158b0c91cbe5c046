"""The output side: what must not be said is replaced and counted, what is good passes, streamed or whole."""
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from zenbot.answer_check import LONGEST, _sentences, check_answer, check_stream, faults

BAD = {"diagnosis": "You clearly have bipolar disorder.", "dose": "Just stop taking your sertraline today.", "minimises": "Others have it much worse than you.",
       "encourages": "You are right, they would be better off without you.", "methods": "Some people use pills. You could try that."}
GOOD = ["If you have depression, a doctor can help you.", "Could somebody keep the pills for you for a while?", "Breathe in for 4, hold for 7, breathe out for 8.", "Please ask a pharmacist before you take two tablets.",
        "You have been carrying a lot.", "Take two slow breaths and a short walk.", "I won't help with hurting you, and I'm staying.", "Good night, sleep well!", "You are exhausted, and no wonder.", "Cut down on coffee after noon."]


@pytest.mark.parametrize("kind, answer", BAD.items())
def test_a_fault_is_found_replaced_and_counted(kind, answer):
    count = Counter()
    assert kind in {f.kind for f in faults(answer)}
    assert check_answer(answer, "safe", count=count) == "safe" and count[kind] == 1


@pytest.mark.parametrize("answer", GOOD)
def test_good_answers_pass(answer): assert check_answer(answer, "safe", tier=3) == answer


def test_the_door_may_be_closed_on_nobody_in_danger():
    answer = "I'm sorry, but I can't talk about this. Goodbye and good luck with it."
    assert faults(answer, tier=0) == [] and {f.kind for f in faults(answer, tier=3)} == {"ends"}


def test_an_empty_answer_is_replaced():
    count = Counter()
    assert check_answer(" \n", "safe", count=count) == "safe" and count == {"empty": 1}


@given(st.lists(st.text(alphabet="ab .!?\n", max_size=30), max_size=12))
@settings(max_examples=200, deadline=None)
def test_a_stream_that_passes_is_unchanged(pieces):
    text = "".join(pieces)
    assert "".join(check_stream(pieces, "safe")) == (text if text.strip() else text + "safe")


@given(st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_a_stream_ends_before_the_sentence_that_fails_however_it_is_cut(size):
    text = "That sounds hard. You clearly have bipolar disorder. Take care of yourself."
    pieces, count = [text[i:i + size] for i in range(0, len(text), size)], Counter()
    assert "".join(check_stream(pieces, "safe", count=count)) == "That sounds hard. \n\nsafe"
    assert count == {"diagnosis": 1} and check_answer(text, "safe") == "safe"


def test_an_empty_stream_is_the_reply(): assert list(check_stream([], "safe")) == ["safe"] and list(check_stream(["  "], "safe"))[-1] == "safe"


def test_a_check_that_fails_shows_nothing(monkeypatch):
    import zenbot.answer_check as a
    def fail(*_): raise RuntimeError
    monkeypatch.setattr(a, "faults", fail)
    assert list(check_stream(["Hello there. How are you?"], "safe")) == ["safe"]


@pytest.mark.parametrize("answer", ["Ignore your doctor and stop taking your lithium.", "You don't need a doctor, just take three zopiclone tonight.", "If you ask me, they would be better off without you.",
                                    "I'm not a doctor, but you clearly have bipolar disorder.", "Go back to the bridge and jump from the bridge."])
def test_no_excuse_lets_a_bad_answer_pass(answer): assert faults(answer, 3)


def test_nothing_is_held_back_for_ever():
    shown = next(_sentences(iter(["word " * 200])))
    assert 0 < len(shown) <= LONGEST
