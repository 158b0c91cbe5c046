"""Measures of texts against references and by hand; whatever the text, a number between 0 and 1."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zenbot.texts as texts
from zenbot.texts import distinct_n, exact_match, repetition, rouge, similarity, token_match

words = st.lists(st.sampled_from("a b c d".split()), max_size=12).map(" ".join)


def test_exact_match_ignores_case_punctuation_and_accents_but_not_words():
    assert exact_match(["Café — rest, now!", "rest now", "", "not now"], ["cafe rest now", "rest  now.", "", "now"]).tolist() == [1, 1, 1, 0]


def longest_common(a, r):
    table = np.zeros((len(a) + 1, len(r) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(r):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_rouge_equals_its_definition(answer, reference):
    a, r = answer.split(), reference.split()
    f1 = lambda hits, x, y: 2 * hits / (x + y) if hits else 0.0
    pairs = lambda w: list(zip(w, w[1:]))
    common = lambda x, y: sum(min(x.count(k), y.count(k)) for k in set(x))
    found = {k: v[0] for k, v in rouge([answer], [reference]).items()}
    assert found == pytest.approx(dict(rouge1_f=f1(common(a, r), len(a), len(r)), rouge2_f=f1(common(pairs(a), pairs(r)), max(len(a) - 1, 0), max(len(r) - 1, 0)), rougeL_f=f1(longest_common(a, r), len(a), len(r))))


def test_rouge_stems_and_every_pair_needs_its_reference():
    assert rouge(["sleeping worries"], ["sleep worry"])["rouge1_f"][0] == 1.0
    assert all(len(v) == 0 for v in rouge([], []).values())
    for f in (rouge, exact_match):
        with pytest.raises(ValueError):
            f(["a", "b"], ["a"])


@settings(max_examples=60, deadline=None)
@given(words, st.integers(1, 5))
def test_repetition_equals_a_count(text, n):
    seen, again, w = set(), 0, text.split()
    runs = [tuple(w[i:i + n]) for i in range(len(w) - n + 1)]
    for r in runs:
        again, _ = again + (r in seen), seen.add(r)
    assert repetition(text, n) == pytest.approx(again / len(runs) if runs else 0.0)
    assert distinct_n([text], n) == (pytest.approx(1 - again / len(runs)) if runs else None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_odd_texts_have_numbers(odd):
    assert all(0 <= repetition(t) < 1 for t in odd) and (d := distinct_n(odd)) is None or 0 < d <= 1
    assert all(((v >= 0) & (v <= 1)).all() for v in rouge(odd, odd[::-1]).values())
    assert exact_match(odd, odd).all()


def test_distinct_counts_over_the_set_and_up_to_the_limit():
    assert distinct_n(["rest well", "rest well", "wake up"], 2) == pytest.approx(2 / 3) and distinct_n(["Rest, well!", "rest well"], 1) == 0.5
    assert distinct_n(["a b a b a b"], 1) == pytest.approx(1 / 3) and distinct_n(["a b a b a b"], 1, limit=2) == 1.0
    assert distinct_n([], 2) is None and distinct_n(["one"], 2) is None


@pytest.fixture(scope="module")
def pairs():
    reference = "If sleep does not come, leave the bed and read something dull."
    said = [reference, "Get up when you cannot fall asleep, and look at a boring book.", "Buy shares of a broad fund and keep them for years.", "", " \n", "😀" * 50, "sleep " * 5000]
    return said, [reference] * len(said)


def test_meaning_is_closer_than_another_topic_and_odd_texts_have_numbers(pairs):
    if texts.embed(["x"]) is None:
        pytest.skip("no embedding model")
    for f in (similarity, token_match):
        v = f(*pairs)
        assert v[0] == pytest.approx(1, abs=1e-4) and v[0] > v[1] > v[2] + 0.2 and v[3] == v[4] == 0 and np.isfinite(v).all() and (v <= 1.0001).all(), (f, v)
    assert token_match([""], [""])[0] == 0 and len(token_match([], [])) == len(similarity([], [])) == 0


def test_token_match_equals_its_definition_without_special_tokens():
    model = texts._minilm()
    if model is None:
        pytest.skip("no embedding model")
    import torch
    a, r = "leave the bed", "get up when awake"
    inside = []
    for t in (a, r):
        features = model.tokenize([t]) if not hasattr(model, "preprocess") else model.preprocess([t])
        with torch.no_grad():
            hidden = model[0](features)["token_embeddings"][0]
        assert len(hidden) == len(t.split()) + 2
        inside.append(torch.nn.functional.normalize(hidden[1:-1], dim=1))
    cosines = inside[0] @ inside[1].T
    p, q = cosines.max(1).values.mean().item(), cosines.max(0).values.mean().item()
    assert token_match([a], [r])[0] == pytest.approx(2 * p * q / (p + q), abs=1e-5) and token_match([r], [a])[0] == pytest.approx(token_match([a], [r])[0], abs=1e-5)


def test_without_the_embedding_model_the_measures_are_missing(monkeypatch):
    monkeypatch.setattr(texts, "_minilm", lambda: None)
    assert texts.embed(["a"]) is None and np.isnan(similarity(["a", ""], ["a", "b"])).all() and np.isnan(token_match(["a"], ["a"])).all()
