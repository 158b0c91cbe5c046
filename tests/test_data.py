"""Rows in = rows accepted + rows rejected, whatever comes; no split leaks, whatever the order."""
import json
from collections import Counter

import pytest
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zenbot.core import BadInput
from zenbot.data import answer_key, canonical, clean, leaks, load_corpus, load_rows, make_splits, prompt_key, split

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=40)
values = st.recursive(st.none() | st.booleans() | st.floats() | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6)
pairs = st.fixed_dictionaries({"prompt": texts, "response": texts})
anything = pairs | st.dictionaries(st.sampled_from(["prompt", "response", "instruction", "output", "input", "messages", "kind"]), values) | values


@relaxed
@given(rows=st.lists(anything, max_size=8))
def test_every_row_is_accepted_or_rejected(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    try:
        good, bad = load_rows(path)
    except BadInput:
        return
    assert len(good) + len(bad) == len(rows)


@relaxed
@given(blob=st.binary(max_size=400))
def test_bytes_never_raise_anything_but_bad_input(blob, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(blob)
    try:
        load_rows(path)
    except BadInput as e:
        assert str(e).count("\n") == 0


words = st.text(alphabet="abc ,.", min_size=1, max_size=4).filter(str.strip)


@relaxed
@given(pairs=st.lists(st.tuples(words, words), min_size=3, max_size=30, unique=True), seed=st.integers(0, 5), data=st.data())
def test_splits_do_not_leak_and_do_not_depend_on_the_order(pairs, seed, data):
    rows = [canonical({"prompt": p, "response": r}, "f") for p, r in pairs]
    rows = list({r["id"]: r for r in rows}.values())
    shuffled = data.draw(st.permutations(rows))
    shares = {"test": 0.2, "valid": 0.2, "train": 0.6}
    parts = split(rows, shares, seed)
    assert sorted(r["id"] for rs in parts.values() for r in rs) == sorted(r["id"] for r in rows)
    assert parts == split(shuffled, shares, seed)
    assert leaks(**parts) == 0
    for key in (prompt_key, answer_key):
        seen = [set(map(key, rs)) for rs in parts.values()]
        assert sum(map(len, seen)) == len(set().union(*seen)), "a prompt or an answer stands in two splits"


@relaxed
@given(text=st.text())
def test_cleaning_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize("row, reason", [
    ({"prompt": "a"}, "assistant text is missing"), ({"prompt": "", "response": "b"}, "empty user"), ({"prompt": "a", "response": " \n"}, "empty assistant"),
    ({"prompt": 3, "response": "b"}, "no text"), ({"text": "a"}, "no field"), ([], "not an object"), ({"messages": "hi"}, "not a list"),
    ({"messages": [{"role": "assistant", "content": "b"}]}, "turns"), ({"messages": [{"role": "user", "content": "a"}]}, "turns"),
    ({"prompt": "a" * 30000, "response": "b"}, "longer than"), ({"prompt": "a", "response": "b", "kind": "spam"}, "kind"),
])
def test_why_a_row_is_rejected(row, reason):
    with pytest.raises(ValueError, match=reason):
        canonical(row, "f")


def test_all_forms_of_a_row_mean_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    row = {"prompt": "I wake at 3.", "response": "Many do."}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": row["prompt"], "input": "", "output": row["response"]}]))
    (tmp_path / "c.jsonl").write_text("\ufeff" + json.dumps({"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}))
    (tmp_path / "d.csv").write_text('Context,Response\n"I wake at 3.",Many do.\n')
    pq.write_table(pa.table({"Context": [row["prompt"]], "Response": [row["response"]]}), tmp_path / "e.parquet")
    ids = {load_rows(tmp_path / n, columns="prompt=Context, response=Response" if n[0] in "de" else "")[0][0]["id"] for n in ("a.jsonl", "b.json", "c.jsonl", "d.csv", "e.parquet")}
    assert len(ids) == 1


@pytest.mark.parametrize("name, content, columns, words", [
    ("broken.parquet", b"PAR1 nothing", "", "cannot be read as parquet"), ("rows.jsonl", b'{"prompt": "a", "response": "b"}', "prompt", "not of the form")])
def test_tables_and_columns_that_cannot_be_read(name, content, columns, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        load_rows(tmp_path / name, columns=columns)


def test_a_binary_file_is_no_corpus(tmp_path):
    for name, content in (("book.pdf", b"%PDF-1.7 words"), ("noise.txt", bytes(range(128, 256)) * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="holds no text"):
            load_corpus(tmp_path / name)


def test_a_single_document_is_split_and_nothing_of_it_is_lost(tmp_path):
    text = " ".join(f"word{i}" for i in range(100))
    (tmp_path / "one.txt").write_text(text)
    rows, _ = load_corpus(tmp_path / "one.txt")
    assert " ".join(r["text"] for r in rows) == text and [r["split"] for r in rows] == ["train", "valid"]


def test_a_rejected_document_is_kept_and_counted(tmp_path):
    from zenbot.core import Run, read_jsonl
    from zenbot.data import build_data
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / f"texts/{name}.txt").write_text("the same words" if name != "c" else "other words")
    run = Run(tmp_path / "run")
    card = build_data(run, "sample/counsel.jsonl", "", "", "", tmp_path / "texts")
    assert card["corpus"]["rejected"] == 1 and [r["reason"] for r in read_jsonl(run / "data/rejected.jsonl")] == ["duplicate document"]


def test_given_files_keep_the_held_out_rows_and_quarantine_the_leaking_ones():
    rows = [canonical({"prompt": f"question {i}", "response": f"answer {i}"}, "f") for i in range(20)]
    same = [canonical({"prompt": "Question 3!", "response": "another answer"}, "g")]
    parts, gone = make_splits(rows, same + [canonical({"prompt": "new", "response": "thing"}, "g")], [], [], 0.2, 0)
    assert len(parts["valid"]) + len(parts["test"]) == 2 and len(gone) == 1 and len(parts["train"]) == 19
    assert leaks(**parts) == 0


def test_the_leak_of_the_original_project_is_found():
    train, valid = (load_rows(shared(f"original_counselling/con_{n}.jsonl"))[0] for n in ("train", "valid"))
    seen = {prompt_key(r) for r in train}
    raw = [json.loads(line)["prompt"] for line in shared("original_counselling/con_valid.jsonl").open()]
    kept = Counter(prompt_key(canonical({"prompt": p, "response": "x"}, "f")) in seen for p in raw)
    assert kept[True] == 794
    assert leaks(train=train, valid=valid) > 0
    parts, _ = make_splits(train, valid, [], [], 0.2, 0)
    assert leaks(**parts) == 0


def test_the_json_array_of_the_other_original_is_read_whole():
    good, bad = load_rows(shared("original_sleep_stress/sleep_stress_dataset.json"))
    assert len(good) + len(bad) == 1593
