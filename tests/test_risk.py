"""Phrases weighed where they stand; and the engine that finds them against the one regular expression that says the same."""
import re, time

import pytest
from hypothesis import given, settings, strategies as st

from zenbot.plain_words import plain
from zenbot.risk import _named, _pattern, _triggers, excuses, find_phrases, find_risks, phrase_lists, tier_of

FILES = ("phrases.yaml", "answers.yaml")
PHRASES = [(f, _named(p, phrase_lists(f)["names"])) for f in FILES for tiers in phrase_lists(f)["risks"].values() for ps in tiers.values() for p in ps]


def tier(text): return tier_of(find_risks(text))


@pytest.mark.parametrize("text", [
    "I want to kill myself", "i want to d!e", "kms tonight", "I just don't want to be alive anymore", "I am suicidal", "been saving up my tablets for it",
    "how many sleeping pills would kill me", "what is the most painless way to die", "my brother says he wants to kill himself", "he hit me again last night and I'm hiding in the bathroom because he is outside",
    "I'm going to stab my boss", "I want to cut myself again tonight", "suіcide is the only way out", "think about killing myself every day"])
def test_danger_is_three_or_more(text): assert tier(text) >= 3


@pytest.mark.parametrize("text", ["I just took the whole bottle of pills", "I have overdosed", "the rope is around my neck"])
def test_what_is_happening_is_four(text): assert tier(text) == 4


@pytest.mark.parametrize("text, why", [
    ("this deadline is killing me", None), ("I'd kill for a coffee, killing time here", None), ("I'm dying to see you", None),
    ("I don't want to kill myself, I want to sleep", "negated"), ("Do I think about suicide? No.", "negated"), ("never had thoughts of suicide", "negated"),
    ("In my novel the hero says I want to die", "fiction"), ("the form asks \"do I want to die\" and I ticked no", "quoted"), ("My mum thinks I'm suicidal because I wear black", "quoted"),
    ("Ten years ago I wanted to die, I'm well", "past"), ("I'm going to die if he doesn't text back", "idiom"), ("suicide is the only word for how my friend died", "grief")])
def test_what_only_sounds_like_it_is_below_two_and_says_why(text, why):
    assert tier(text) < 2
    assert why is None or why in {f.excuse for f in find_risks(text)}


def test_the_past_is_remembered_and_now_outweighs_it():
    assert tier("Six years ago I took an overdose, all of it behind me. I self harmed ten years ago.") == 1
    assert tier("Ten years ago I wanted to die and now I want to die again") == 2 and tier("now I want to die again") == 3


@pytest.mark.parametrize("text", [
    "My mum died and I want to kill myself tonight", "I failed my dissertation and I am going to kill myself tonight", "I just took the whole bottle of pills after class", "I just took all of my prescription pills",
    "I'm going to kill myself and I don't care if my mum is sad", "I'm going to kill myself if he leaves me", "I'm going to kill myself in 3 hours", "Nothing helps, I want to die", "I have no friends, I want to kill myself",
    "My life has no meaning, I want to die tonight", "I want to kill myself. No, I'm serious.", "I want to kill myself. Never felt this bad.", "I am going to kill myself no sleep for days", "kms tonight no joke",
    "I want to die😭", "wish I was dead🖤", "I want to die.please help me", "I want to die!!please", "I want to die…it hurts", "I just want to... die", "I want to\nkill myself", "I don`t want to be alive anymore", "ki11 myself tonight",
    "I want to ki\u034fll myself", "I won't be here tomorrow", "I told the gp I was fine. what i meant was i want to kill myself"])
def test_no_excuse_lets_danger_pass_unasked(text): assert tier(text) >= 2


def test_other_people_are_told_from_me():
    assert {f.subject for f in find_risks("she is going to kill herself")} == {"other"}
    assert "me" in {f.subject for f in find_risks("I am going to kill myself")}


@pytest.mark.parametrize("file, phrase", PHRASES)
def test_every_phrase_has_a_word_to_be_filed_under(file, phrase):
    assert _triggers(phrase), "no word that must occur: every sentence would be tried"
    assert not re.search(_pattern(phrase), "xyz " * 8), "a phrase that matches anything"


@given(st.lists(st.sampled_from("i want to die kill myself never wake up not suicide my pills tonight she he the and goodbye world overdosed".split()), max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_index_finds_what_the_expressions_find(words):
    sentence = "".join(w + " " for w in words)
    found = {(k, t, m[0]) for k, t, m in find_phrases(sentence)}
    lists = phrase_lists()
    for kind, tiers in lists["risks"].items():
        for t, phrases in tiers.items():
            for p in phrases:
                for m in re.finditer(r"(?<!\S)" + _pattern(_named(p, lists["names"])), sentence): assert (kind, t, m[0]) in found


@pytest.mark.parametrize("file, phrase", PHRASES)
def test_no_expression_backtracks_for_long(file, phrase):
    """Words of the phrase itself, in a bad order, many times."""
    words = re.findall(r"[a-z]+", phrase)
    text = " ".join((words * 40)[:2000]) + " "
    start = time.perf_counter()
    list(re.compile(r"(?<!\S)" + _pattern(phrase)).finditer(text))
    assert time.perf_counter() - start < 0.5


def test_excuses_compile():
    for file in FILES: assert all(isinstance(e, re.Pattern) for e in excuses(file).values())


@given(st.text(max_size=400))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read(text):
    assert 0 <= tier(text) <= 4
    plain(text)
