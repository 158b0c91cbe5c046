"""Variants keep their meaning or say why not; what they do to answers is counted right."""
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zenbot.core import BadInput, read_json, read_jsonl
from zenbot.perturbations import FAMILIES, UNCHANGED, _likeness, gate, perturb, stronger, syntax, variant_lists, whom
from zenbot.robustness import score_rows, sturdier, summarise, worst_case

TEXTS = ["Lately I can't sleep because I am worried about my job. How can I organize my evenings?", "My mom says I worry too much about math. What can I do to relax before the exam?",
         "I slept 3 hours and my boss yells at me every day.", "I feel sad since my friend moved away."]


@pytest.fixture(scope="module")
def made(): return perturb(TEXTS, each=2, seed=1)


def test_the_same_seed_gives_the_same_variants(made):
    assert perturb(TEXTS, each=2, seed=1) == made and perturb(TEXTS, each=2, seed=2) != made


def test_every_draft_is_accepted_or_rejected_with_a_reason(made):
    kept, rejected = made
    assert {v["family"] for vs in kept for v in vs} == set(FAMILIES)
    assert all(r["reason"] in {*UNCHANGED, "length", "similarity", "guard"} for r in rejected)
    assert all(3 <= len(vs) for vs in kept)


def test_what_is_accepted_differs_and_keeps_what_must_not_change(made):
    kept, _ = made
    for text, variants in zip(TEXTS, kept):
        for v in variants:
            assert (v["prompt"] == text) == (v["family"] == "control")
            body = v["prompt"][len(v["prompt"]) - len(text):] if v["family"] == "roles" else v["prompt"]
            for read in UNCHANGED.values(): assert read(body) == read(text)


@pytest.mark.parametrize("original, variant, reason", [
    ("I am anxious about my exam", "I am dying about my exam", "alarming words"), ("I can't sleep", "I can sleep", "negation"), ("I slept 5 hours", "I slept 3 hours", "numbers"),
    ("I feel tired", "He feels tired", "person"), ("I am anxious", "I was anxious", "tense"), ("I want to sleep", "I want to kill myself", "alarming words"), ("I can't sleep at night", "I can't", "length")])
def test_the_gate_says_what_changed(original, variant, reason): assert gate(original, variant, 1.0) == reason


def test_the_gate_wants_likeness():
    assert gate("I can't sleep at night", "I can't sleep at dawn.", 0.2) == "similarity"
    assert gate("I can't sleep at night", "I can't sleep at night.", 0.99) is None


def test_sentences_are_turned_and_not_broken():
    assert syntax("How can I calm down?", random.Random(0)).lower().count("calm down") == 1
    assert syntax("I lie awake because my head is full.", random.Random(0)) == "Because my head is full, I lie awake."
    assert syntax("Sleep.", random.Random(0)) is None


def test_directions():
    assert stronger("I am sad") == "I am deeply depressed" and stronger("Good morning") is None
    assert whom("My friend left. I miss my friend.") == ("My partner left. I miss my partner.", "friend", "partner") and whom("Good morning") is None


def test_every_synonym_stands_for_something_else():
    for word, others in variant_lists()["synonyms"].items(): assert word not in others and others


@given(st.text(max_size=200), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_any_text_is_perturbed_without_an_error(text, seed):
    for family in FAMILIES.values(): assert isinstance(family(text, random.Random(seed)), (str, type(None)))


def test_an_unknown_family_is_a_sentence():
    with pytest.raises(BadInput, match="synonyms"): perturb(["x"], families=("rhymes",))


def rows(clean, said):
    return [dict(original=f"q{i}", baseline_output=c, finetuned_output=c, perturbations=[dict(prompt="p", family=f, baseline_output=s, finetuned_output=c) for f, s in zip(("typos", "control"), ss)]) for i, (c, ss) in enumerate(zip(clean, said))]


def test_scores_of_equal_answers_do_not_drop_and_worse_ones_do():
    clean = ["Breathe slowly and rest.", "Write your worries down."]
    made = rows(clean, [("bananas", clean[0]), ("bananas", clean[1])])
    base, tuned = (score_rows(made, clean, n) for n in ("baseline", "finetuned"))
    found = summarise(base)   # embedded in another batch, a text may round otherwise
    assert found["control"]["drop"]["value"] == pytest.approx(0, abs=1e-6) and found["control"]["closeness"]["value"] == pytest.approx(1, abs=1e-6) and found["typos"]["drop"]["value"] > 0.5
    assert found["all"]["drop"]["value"] == found["typos"]["drop"]["value"], "the control is no perturbation"
    assert sturdier(dict(baseline=base, finetuned=tuned))["loss"]["value"] < 0
    assert worst_case(base)["drop"]["value"] == pytest.approx(found["typos"]["drop"]["value"])


def test_worst_case_takes_the_worst_of_each_question():
    scored = [dict(question=0, family="a", clean=1.0, perturbed=0.9), dict(question=0, family="b", clean=1.0, perturbed=0.5), dict(question=0, family="control", clean=1.0, perturbed=0.0), dict(question=1, family="a", clean=1.0, perturbed=1.0)]
    assert worst_case(scored)["drop"]["value"] == pytest.approx(0.25)


def test_the_stage_leaves_its_files(smoke):
    outputs = read_jsonl(smoke / "results/model_outputs.jsonl")
    for row in outputs:
        assert {"original", "baseline_output", "finetuned_output", "perturbations"} <= row.keys()
        for v in row["perturbations"]: assert {"prompt", "family", "baseline_output", "finetuned_output", "baseline_time_s", "finetuned_time_s", "gen_kwargs"} <= v.keys()
    found = read_json(smoke / "results/robustness.json")
    measured = found["measures"]["finetuned"]
    assert measured["control"]["closeness"]["value"] >= measured["all"]["closeness"]["value"] - 0.05, "the same question is the noise floor"
    assert "<table>" in (smoke / "robustness.html").read_text()
    assert read_json(smoke / "results/guard.json")["overall"]["danger: turned away"]["ours"]["hits"] == 0
    assert np.isfinite(_likeness(["a"], ["b"])[0])
