"""The contract of replies, a test per clause; and the facts that they carry."""
import datetime, re

import pytest
import yaml
from hypothesis import given, settings, strategies as st

from zenbot.core import BadInput
from zenbot.plain_words import FOLDER
from zenbot.replies import FALLBACK, compose, country_of, emergency, feelings, helplines, line, outdated, reply_texts

CRISIS = ("now", "self", "other", "abuse", "violence")
EVERY = tuple(reply_texts()["situations"])
COUNTRIES = (None, *helplines())


def replies(situation, country="GB", n=60):
    return [compose(situation, f"message {i}", country=country) for i in range(n)]


def options(part): return reply_texts()["parts"][part]


def test_a_release_carries_no_line_that_was_checked_more_than_a_year_ago():
    assert outdated() == []
    assert outdated(datetime.date(2028, 1, 1)) == list(helplines())


def test_every_line_has_its_source_and_its_day():
    assert len(helplines()) == 10
    for entry in helplines().values():
        assert entry["source"] and isinstance(entry["verified_on"], datetime.date) and entry["call"] and entry["emergency"]


def test_no_number_stands_in_a_text_of_ours():
    assert not re.search(r"\d", " ".join(t for part in reply_texts()["parts"].values() for t in part))


@pytest.mark.parametrize("country", COUNTRIES)
@pytest.mark.parametrize("situation", CRISIS)
def test_a_crisis_reply_names_the_line_and_the_emergency_number_of_the_country(situation, country):
    for reply in replies(situation, country, 20):
        assert line(country) in reply and emergency(country) in reply
        assert len(reply.split()) < 220, 'too long to read in distress'
        assert "findahelpline.com" in reply
        assert country is None or helplines()[country]["call"] in reply


@pytest.mark.parametrize("situation", [*CRISIS, "after", "check_in"])
def test_it_says_that_it_is_an_ai(situation):
    assert all(re.search(r"\bAI\b", r) for r in replies(situation))


@pytest.mark.parametrize("situation", ["self", "other", "abuse", "violence", "after", "check_in"])
def test_it_asks(situation):
    assert all("?" in r.split("\n\n")[0] for r in replies(situation) if situation != "other")
    assert all("?" in r for r in replies(situation))


def test_it_asks_about_suicide_in_plain_words():
    for part in ("ask", "ask_gray"):
        assert all(re.search(r"ending your life|suicide|killing yourself|want to die|hurting yourself|hurt yourself|dead|not being alive", t) for t in options(part))


@pytest.mark.parametrize("situation", CRISIS)
def test_it_names_a_person_and_a_professional_or_the_emergency_first(situation):
    parts = {p for paragraph in reply_texts()["situations"][situation] for p in paragraph}
    people = [p for p in parts if p.startswith("people")]
    assert people or situation == "now"
    for part in people: assert all(re.search(r"doctor|therapist|professional|counsellor", t) and re.search(r"trust|friend|tell|neighbour", t) for t in options(part))
    assert all("{emergency}" in t for t in options("urgent"))


def test_where_somebody_is_dying_it_says_emergency_company_and_distance():
    assert [p for paragraph in reply_texts()["situations"]["now"] for p in paragraph][:3] == ["urgent", "together", "distance"]
    assert all(re.search(r"somebody|one person|alone|Ask them", t) for t in options("together"))


@pytest.mark.parametrize("situation", [*CRISIS, "after", "check_in"])
def test_it_offers_one_thing_to_do_and_stays(situation):
    parts = [p for paragraph in reply_texts()["situations"][situation] for p in paragraph]
    assert sum(p.startswith("step") for p in parts) == 1 and parts[-1].startswith("stay")


@pytest.mark.parametrize("situation", EVERY)
def test_it_never_shuts_the_door(situation):
    for reply in replies(situation):
        assert reply.strip() and not re.search(r"(?i)can't talk about|cannot talk about|unable to help|cannot help with that|goodbye|against my", reply)


@pytest.mark.parametrize("situation", EVERY)
def test_nothing_is_said_twice_in_a_conversation(situation):
    said = []
    for _ in range(80): said.append(compose(situation, "the same words", said, "IE"))
    assert len(set(said)) == 80


def test_feelings_are_said_back_where_they_are_the_persons_own():
    assert "tired and alone" in compose("self", "I'm so tired and alone")
    assert feelings("he is angry") == feelings("I am not sad") == feelings("I am not feeling sad") == feelings("my brother is feeling tense") == feelings("I'm tired of living") == []


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_whatever_is_written_a_reply_comes_and_does_not_repeat_it(text):
    reply = compose("self", text)
    assert reply.strip() and "{" not in reply


@pytest.mark.parametrize("given_, country", [("GB", "GB"), ("gb", "GB"), ("en_AU.UTF-8", "AU"), ("fr-FR", "FR"), ("PL", "PL"), ("uk", "GB")])
def test_country_comes_from_a_code_or_a_locale(given_, country): assert country_of(given_) == country


def test_country_comes_from_the_environment_or_is_not_known(monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"): monkeypatch.delenv(name, raising=False)
    assert country_of() is None and line(None) == FALLBACK
    monkeypatch.setenv("LANG", "en_NZ.UTF-8")
    assert country_of() == "NZ"
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert country_of() is None
    with pytest.raises(BadInput, match="two letters"): country_of("Atlantis")


def test_the_yaml_files_say_who_wrote_them():
    for name in ("replies.yaml", "helplines.yaml"): assert (FOLDER / name).read_text().startswith("#")
    assert "no clinician" in (FOLDER / "replies.yaml").read_text()
    yaml.safe_load((FOLDER / "answers.yaml").read_text())
