"""The audit finds what was planted, and nothing where nothing is."""
import json

import pytest
from conftest import shared, zenbot
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.audit import audit_files, is_echo, mask, personal, table, topics, topics_of, verdict, write_page
from zenbot.duplicates import jaccard, near_pairs, normalise, shingles, sketch


def write(path, pairs):
    path.write_text("\n".join(json.dumps({"prompt": p, "response": r}) for p, r in pairs), encoding="utf-8")
    return path


LONG = "I lie awake every night and think about my work and then I cannot get up in the morning at all"
TRAIN = [(LONG, "Write the worries down at six, and close the book on them for the day, then read something light in bed."), ("Is coffee at four a bad idea?", "For many people it is."),
         ("My dog snores.", "Dogs do."), ("my DOG snores!!", "They do that."), ("Only an echo of this question?", "Only an echo of this question?")]


@pytest.mark.parametrize("pair, kinds", [
    (("is COFFEE, at four, a bad idea", "Something new altogether here."), {"prompt"}),
    (("A new one", "for many people it is"), {"answer"}),
    (("My dog snores", "DOGS DO"), {"prompt", "answer", "pair"}),
    (("Well " + LONG, "Nothing alike."), {"near_prompt"}),
    (("Another new one", TRAIN[0][1].replace("light", "dull")), {"near_answer"}),
    (("Never asked", "Never said."), set()),
])
def test_each_kind_of_leak_is_found(pair, kinds, tmp_path):
    found = audit_files({"train": write(tmp_path / "a.jsonl", TRAIN), "valid": write(tmp_path / "b.jsonl", [pair, ("Quite other", "words.")])})
    leak = found["leaks"][0]
    assert {k for k in ("prompt", "answer", "pair", "near_prompt", "near_answer") if leak[k]} == kinds
    assert leak["leaking_rows"] == bool(kinds) == found["leaking"] and leak["rows"] == 2
    assert verdict(found).startswith("LEAK: 1 of 2 rows of valid" if kinds else "No question")


def test_what_is_in_a_file_is_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", TRAIN + [("", "x"), ("Call me?", "On +1 202-555-0143."), TRAIN[1]])
    path.write_text(path.read_text() + "\nnot json\n" + json.dumps({"messages": [{"role": r, "content": f"{r} {i}"} for i in range(2) for r in ("user", "assistant")]}))
    file = audit_files({"train": path})["files"]["train"]
    assert (file["rows_in"], file["accepted"], sum(file["rejected"].values()), file["dialogues"], file["echoes"]) == (10, 8, 2, 1, 1)
    assert file["personal"] == {"phone": 1} and file["duplicates"]["pair"] == 1 and file["duplicates"]["prompt"] == 2
    assert sum(file["words"]["prompt"]["histogram"]) == 8 and file["words"]["answer"]["max"] == 21 and file["languages"]["en"] >= 6
    assert file["topics"]["sleep"] == 3 and file["sleep_or_stress"] == 3


def test_the_original_split_leaks_and_counsel_chat_does_not(tmp_path):
    leaky = [shared(f"original_counselling/con_{n}.jsonl") for n in ("train", "valid")]
    done = zenbot("audit", "--train", leaky[0], "--valid", leaky[1], "--json", "--html", tmp_path / "page.html", home=tmp_path)
    leak = json.loads(done.stdout)["leaks"][0]
    assert done.returncode == 1 and (leak["prompt"], leak["pair"], leak["rows"]) == (794, 372, 1000)
    assert "794 of 1,000" in (tmp_path / "page.html").read_text()
    clean = [shared(f"counsel_chat/{n}.jsonl") for n in ("train", "valid")]
    done = zenbot("audit", "--train", clean[0], "--valid", clean[1], home=tmp_path)
    assert done.returncode == 0 and "No question, no answer" in done.stdout


@pytest.mark.parametrize("args, code, words", [
    (["a.jsonl"], 0, "One file"), (["a.jsonl", "b.jsonl"], 1, "LEAK"), (["--train", "a.jsonl", "--test", "b.jsonl"], 1, "LEAK"), ([], 2, "Name files"), (["nothing.jsonl"], 2, "no file or folder"),
    (["a.jsonl", "--train", "b.jsonl"], 2, "either"), (["--valid", "b.jsonl"], 2, "--train"), (["a.jsonl", "--columns", "prompt=Context"], 2, "no usable row"), (["a.jsonl", "b.jsonl", "--mask", "c.jsonl"], 2, "one file"),
    (["a.jsonl", "sub/a.jsonl"], 1, "LEAK"), (["a.jsonl", "--html", "sub"], 2, "is a folder"), (["a.jsonl", "--mask", "a.jsonl"], 2, "a file that is read"), (["x" * 300 + ".jsonl"], 2, "too long")])
def test_the_command(args, code, words, tmp_path):
    write(tmp_path / "a.jsonl", TRAIN)
    write(tmp_path / "b.jsonl", TRAIN[:1])
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub/a.jsonl", TRAIN)
    done = zenbot("audit", *args, home=tmp_path)
    assert done.returncode == code and words in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_masked_copy_can_be_written(tmp_path):
    write(tmp_path / "a.jsonl", [("Who are you?", "Sleep well.\n\nWarm regards,\nAnna Example, LPC")])
    assert zenbot("audit", "a.jsonl", "--mask", "b.jsonl", home=tmp_path).returncode == 0
    assert json.loads((tmp_path / "b.jsonl").read_text())["messages"][1]["content"] == "Sleep well.\n\nWarm regards,\n[name], LPC"


@pytest.mark.parametrize("text, found", [
    ("Hope this helps. Be well...Robin Q. Sample, DBH, LPCC", [("name", "Robin Q. Sample")]), ("You matter.\n\nBest wishes,\nKaren", [("name", "Karen")]), ("Take it slow! ~Mark (www. example.com)", [("name", "Mark")]),
    ("It gets easier. Dr. T", [("name", "Dr. T")]), ("mail anna.b@example.co.uk, please", [("email", "anna.b@example.co.uk")]), ("ring 020 7946 0958 or +44 20 7946 0958", None),
    ("Cognitive-Behavioral Therapy (CBT) helps; I live in Boston, MA", []), ("I love Paris", []), ("Thanks Everyone!", []), ("Be well,Robin Sample, MA, LPC", [("name", "Robin Sample")]),
    ("I went to bed at 11 and woke at 3, 4 and 5 in 2019 and 2020.", []), ("Best wishes to you.", []), ("My GP said Take Care and Sleep Well", []), ("Write 1 2 3 4 5 6 7 8 9 on a page.", [])])
def test_personal_data(text, found):
    spans = personal(text)
    if found is None:
        assert {k for k, *_ in spans} == {"phone"}
    else:
        assert [(k, text[a:b]) for k, a, b in spans] == found
    assert personal(mask(text)) == []


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("aA bB.,-@+0123456789()\n~Dr"), max_size=80))
def test_any_text_can_be_searched_and_masked(text):
    spans = personal(text)
    assert all(0 <= a < b <= len(text) for _, a, b in spans) and all(x[2] <= y[1] for x, y in zip(spans, spans[1:]))
    assert isinstance(mask(text), str)


def test_each_near_copy_of_a_training_row_is_counted(tmp_path):
    """Also where the held-out rows resemble each other more than train."""
    held = [(f"{LONG} and so I ask number{i}", f"Nothing alike {i} {i * 7}.") for i in range(200)]
    leak = audit_files({"train": write(tmp_path / "a.jsonl", TRAIN), "valid": write(tmp_path / "b.jsonl", held)})["leaks"][0]
    assert leak["near_prompt"] >= 198 and leak["examples"][0].startswith("I lie awake")


def test_topics_and_echoes():
    assert topics_of("Since the DIVORCE I lie awake at night; my exam is next week.") == ["sleep", "relationships", "work and study"]
    assert topics_of("A bedside edition of the newsletter") == [] and topics_of("that night he hit me") == [] and list(topics())[0] == "sleep"
    assert is_echo("Why do I wake at three?", "why do i wake at three") and not is_echo("Why do I wake at three?", "Because sleep is lighter by then.") and not is_echo("Hi", "Hi there")


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from("one two three four five six seven eight nine ten".split()), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=25))
def test_near_pairs_are_near(keys):
    pairs = near_pairs(sketch(keys), keys.__getitem__)
    assert all(i < j and jaccard(keys[i], keys[j]) >= 0.8 for i, j in pairs.tolist())
    same = {(i, j) for j in range(len(keys)) for i in range(j) if keys[i] == keys[j]}
    linked = {}
    for i, j in pairs.tolist():
        linked.setdefault(i, set()).add(j), linked.setdefault(j, set()).add(i)
    assert all(linked.get(i) and linked.get(j) for i, j in same), "equal texts are always found"


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_short_cut_of_normalise_changes_nothing(text):
    import re
    assert normalise(text) == (" ".join(re.findall(r"\w+", text.casefold())) or text.strip())
    assert len(shingles(normalise(text))) == max(0, 2 * len(normalise(text).split()) - 1)


def test_the_page_escapes_what_people_wrote(tmp_path):
    rows = [("<script>alert(1)</script> & more?", "Yes.")]
    found = audit_files({"train": write(tmp_path / "a.jsonl", rows), "valid": write(tmp_path / "b.jsonl", rows)})
    found["leaks"][0]["examples"] = ["<script>alert(2)</script>"]
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and all(row[""] in page for row in table(found))
