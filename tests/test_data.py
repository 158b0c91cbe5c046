"""Rows in = rows accepted + rows rejected, whatever comes; no split leaks, whatever the order."""
import io
import json

import numpy as np
import pytest
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zenbot.core import BadInput, Run, read_json, read_jsonl
from zenbot.data import SPLITS, build_data, cap, choose_rows, load_corpus, read_files
from zenbot.duplicates import answer_key, group, leaks, prompt_key
from zenbot.rows import Spool, _clean_once, _elements, canonical, clean, load_rows, read_texts, scan, strip_html

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=40)
values = st.recursive(st.none() | st.booleans() | st.floats() | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6)
pairs = st.fixed_dictionaries({"prompt": texts, "response": texts})
anything = pairs | st.dictionaries(st.sampled_from(["prompt", "response", "instruction", "output", "input", "messages", "conversations", "kind"]), values) | values


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


# --- reading ---------------------------------------------------------------------------------------------------------

@relaxed
@given(rows=st.lists(anything, max_size=8), array=st.booleans())
def test_every_row_is_accepted_or_rejected(rows, array, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows)) if array else write(path, rows)
    try:
        good, bad = load_rows(path)
    except BadInput as e:
        assert "no usable row" in str(e) or isinstance(rows[0], list) and "after its end" in str(e)   # a first line that is a list makes the file look like an array
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


@relaxed
@given(rows=st.lists(values, max_size=12), block=st.integers(1, 40), indent=st.sampled_from([None, 1]))
def test_an_array_is_read_through_a_small_window(rows, block, indent):
    found = list(_elements(io.StringIO(json.dumps(rows, indent=indent)), block + 1))
    assert json.dumps(found) == json.dumps(rows)


@pytest.mark.parametrize("content", ['[{"prompt": "a", "response": "b"}', '[{"prompt": "a"} what', "[" * 100_000, '[{"a": tru}]', '["\ud800'])
def test_a_broken_array_is_bad_input(content, tmp_path):
    (tmp_path / "rows.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(BadInput, match="begins like a JSON array but is none"):
        list(scan(tmp_path / "rows.json"))


@pytest.mark.parametrize("row, reason", [
    ({"prompt": "a"}, "assistant text is missing"), ({"prompt": "", "response": "b"}, "empty user"), ({"prompt": "a", "response": " \n"}, "empty assistant"),
    ({"prompt": "a", "response": "<p> </p>"}, "empty assistant"), ({"conversations": [{"from": "gpt", "value": "b"}]}, "turns"), ({"conversations": [3]}, "no text"),
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
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    write(tmp_path / "a.jsonl", [row])
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": row["prompt"], "input": "", "output": row["response"]}]))
    (tmp_path / "c.jsonl").write_text("\ufeff" + json.dumps({"messages": turns}))
    (tmp_path / "d.csv").write_text('Context,Response\n"I wake at 3.",Many do.\n')
    pq.write_table(pa.table({"Context": [row["prompt"]], "Response": [row["response"]]}), tmp_path / "e.parquet")
    (tmp_path / "f.tsv").write_text("prompt\tresponse\nI wake at 3.\tMany do.\n")
    write(tmp_path / "g.jsonl", [{"conversations": [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["response"]}]}])
    ids = {load_rows(p, columns="prompt=Context, response=Response" if p.stem in "de" else "")[0][0]["id"] for p in tmp_path.iterdir()}
    assert len(ids) == 1 and len(list(tmp_path.iterdir())) == 7


def test_a_hub_set_is_streamed(tmp_path, monkeypatch):
    """A folder in the place of a Hub id: the same loader, without a network."""
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train.jsonl", [{"Context": f"question {i}", "Response": f"answer {i}"} for i in range(5)])
    rows, rejected = load_rows(f"hub:{tmp_path / 'set'}", columns="prompt=Context, response=Response")
    assert len(rows) == 5 and not rejected
    with pytest.raises(BadInput, match="The Hub does not give"):
        load_rows(f"hub:{tmp_path / 'set'}:nonsense")


def test_debug_rows_stop_early(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(50)])
    assert len(load_rows(path, limit=7)[0]) == 7


@pytest.mark.parametrize("name, content, columns, words", [
    ("broken.parquet", b"PAR1 nothing", "", "cannot be read as parquet"), ("rows.jsonl", b'{"prompt": "a", "response": "b"}', "prompt", "not of the form")])
def test_tables_and_columns_that_cannot_be_read(name, content, columns, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        load_rows(tmp_path / name, columns=columns)


def test_the_json_array_of_the_other_original_is_read_whole():
    good, bad = load_rows(shared("original_sleep_stress/sleep_stress_dataset.json"))
    assert len(good) + len(bad) == 1593


# --- repairing -------------------------------------------------------------------------------------------------------

@relaxed
@given(text=st.text())
def test_cleaning_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)


@relaxed
@given(text=st.text(alphabet=st.characters(min_codepoint=9, max_codepoint=126)))
def test_the_short_cut_for_plain_text_changes_nothing(text):
    import ftfy
    import zenbot.rows as rows
    once = _clean_once(text, True)
    never = rows.re.compile(r"(?!)")
    plain, rows._PLAIN = rows._PLAIN, never
    try:
        assert _clean_once(text, True) == once, ftfy.fix_text(text)
    finally:
        rows._PLAIN = plain


@pytest.mark.parametrize("before, after", [
    ("<p>One.</p><p>Two &amp; three.</p>", "One.\nTwo & three."), ("a<br>b<br />c", "a\nb\nc"), ("<div>x <b>bold</b>&nbsp;y</div><script>alert(1)</script>", "x bold y"),
    ("I <3 you", "I <3 you"), ("if x < y and y > z", "if x < y and y > z"), ("<ul><li>one</li><li>two</li></ul>", "one\ntwo"), ("canâ€™t", "can't")])
def test_html_and_mojibake(before, after):
    assert clean(before) == after


def test_code_keeps_its_tags():
    row = {"prompt": "Write a heading.", "response": "<h1>Sleep</h1>", "kind": "code"}
    assert canonical(row, "f")["messages"][1]["content"] == "<h1>Sleep</h1>" and strip_html("<h1>Sleep</h1>").strip() == "Sleep"


# --- texts -----------------------------------------------------------------------------------------------------------

def test_a_binary_file_is_no_corpus(tmp_path):
    for name, content in (("book.pdf", b"%PDF-1.7 words"), ("noise.txt", bytes(range(128, 256)) * 9), ("picture.png", b"\x89PNG")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="holds no text"):
            load_corpus(tmp_path / name)


def test_a_pdf_is_read_and_a_scan_is_told_apart(tmp_path):
    import matplotlib.pyplot as plt
    for name, text in (("book", "Light in the morning sets\nthe clock of the body, and reg-\nular hours keep it."), ("scan", "")):
        fig = plt.figure()
        fig.text(0.1, 0.5, text)
        fig.savefig(tmp_path / f"{name}.pdf")
        plt.close(fig)
    (tmp_path / "page.html").write_text("<h1>Naps</h1><p>Short ones&nbsp;help.</p>")
    found = {raw.file: raw.value or raw.reason for raw in read_texts(tmp_path)}
    assert found["book.pdf"] == "Light in the morning sets the clock of the body, and regular hours keep it."
    assert "OCR" in found["scan.pdf"] and found["page.html"] == "Naps\nShort ones help."


def test_a_single_document_is_split_and_nothing_of_it_is_lost(tmp_path):
    text = " ".join(f"word{i}" for i in range(100))
    (tmp_path / "one.txt").write_text(text)
    rows, _ = load_corpus(tmp_path / "one.txt")
    assert " ".join(r["text"] for r in rows) == text and [r["split"] for r in rows] == ["train", "valid"]


def test_near_duplicate_documents_stay_on_one_side(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        text = [f"word{w}" for w in rng.integers(0, 500, 120)]
        for k in range(2):
            text[5] = f"changed{k}"
            (tmp_path / f"{i}-{k}.txt").write_text(" ".join(text))
    rows, _ = load_corpus(tmp_path)
    sides = {i: {r["split"] for r in rows if r["source"].startswith(f"{i}-")} for i in range(12)}
    assert all(len(s) == 1 for s in sides.values()) and {"valid"} in sides.values() and len(rows) == 24


def test_a_rejected_document_is_kept_and_counted(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / f"texts/{name}.txt").write_text("the same words" if name != "c" else "other words")
    run = Run(tmp_path / "run")
    card = build_data(run, "sample/counsel.jsonl", corpus=tmp_path / "texts")
    assert card["corpus"]["rejected"] == 1 and [r["reason"] for r in read_jsonl(run / "data/rejected.jsonl")] == ["duplicate document"]


# --- splitting -------------------------------------------------------------------------------------------------------

words = st.text(alphabet="abc ,.", min_size=1, max_size=4).filter(str.strip)


def parted(folder, rows, seed=0, held_out=0.2):
    """The splits of rows in order of their lines, and the counts: the heart of the data stage, without its files and pictures."""
    audit = read_files(folder, write(folder / "rows.jsonl", rows))
    chosen, aside, counts = choose_rows(audit, {}, True, 0.8, "refuse", held_out, 0, 0, seed)
    assert len(list(aside)) == counts["rejected"].get("duplicate", 0) + counts["leaking"]
    return {name: [audit.rows[i] for i in at] for name, at in chosen.items()}, counts


def built(folder, rows, **settings):
    """The splits that the data stage makes of rows, as canonical rows, and its card."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("one<|doc|>two")
    run = Run(folder / "run")
    card = build_data(run, write(folder / "rows.jsonl", rows), corpus=folder / "corpus.txt", **settings)
    return {name: read_jsonl(run / f"data/{name}.jsonl") for name in SPLITS}, card


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(words, words), min_size=3, max_size=30), seed=st.integers(0, 5), data=st.data())
def test_splits_do_not_leak_lose_nothing_and_do_not_depend_on_the_order(pairs, seed, data, tmp_path):
    rows = [{"prompt": p, "response": r} for p, r in pairs]
    try:
        parts, card = parted(tmp_path, rows, seed, 0.4)
    except BadInput as e:
        assert "no usable row" in str(e)
        return
    shuffled, _ = parted(tmp_path, data.draw(st.permutations(rows)), seed, 0.4)
    ids = lambda parts: {name: [r["id"] for r in rs] for name, rs in parts.items()}
    assert ids(parts) == ids(shuffled)
    assert leaks(**parts) == 0 and len(rows) == sum(map(len, parts.values())) + sum(card["rejected"].values()) + card["leaking"]
    for key in (prompt_key, answer_key):
        seen = [set(map(key, rs)) for rs in parts.values()]
        assert sum(map(len, seen)) == len(set().union(*seen)), "a prompt or an answer stands in two splits"


def test_near_duplicates_are_one_group_and_strangers_are_not():
    rng = np.random.default_rng(1)
    text = lambda n: " ".join(f"w{w}" for w in rng.integers(0, 2000, n))
    rows = []
    for i in range(200):
        first = text(25).split()
        for prompt in (first, [*first[:3], "other", *first[4:]]):
            rows.append(canonical({"prompt": " ".join(prompt), "response": text(60)}, "f"))
    numbers = group(rows)
    together = sum(numbers[2 * i] == numbers[2 * i + 1] for i in range(200))
    assert together >= 198, "at a similarity of 0.88 one in a thousand is missed"
    assert len(set(numbers.tolist())) == 400 - together


def test_unlearning_rows_are_held_out_by_category(tmp_path):
    run = Run(tmp_path)
    build_data(run, "sample/counsel.jsonl", unlearn_file="sample/unlearning.jsonl", corpus="sample/primer")
    topics = {name: {r["topic"] for r in read_jsonl(run / f"data/{name}.jsonl") if r["kind"] == "refusal"} for name in SPLITS}
    assert all(topics.values()) and sum(map(len, topics.values())) == len(set().union(*topics.values())) == 14


def test_the_cap_keeps_the_mixture_also_with_given_files(tmp_path):
    rows = [{"prompt": f"held question {i}", "response": f"held answer {i}"} for i in range(40)]
    run = Run(tmp_path / "run")
    card = build_data(run, "sample/counsel.jsonl", valid_file=write(tmp_path / "valid.jsonl", rows), unlearn_file="sample/unlearning.jsonl", corpus="sample/primer",
                      unseen_categories=False, max_train_rows=200, max_eval_rows=20)
    for name, kinds in card["kinds"].items():
        left = {"train": 414 / (414 + 134), "valid": 20 / 37, "test": 20 / 37}[name]
        assert abs(kinds["counsel"] / sum(kinds.values()) - left) < 0.03, card["kinds"]


@given(kinds=st.lists(st.integers(0, 3), min_size=1, max_size=60), most=st.integers(1, 60), seed=st.integers(0, 3))
def test_a_cap_is_exact_and_fair(kinds, most, seed):
    ids, kinds = np.arange(len(kinds), dtype=np.uint64), np.array(kinds)
    chosen = cap(ids, kinds, most, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(most, len(kinds))
    for k in set(kinds.tolist()):
        assert abs((kinds[chosen] == k).sum() - len(chosen) * (kinds == k).mean()) < 1


def test_a_frozen_split_stays_when_rows_are_added(tmp_path):
    old = [{"prompt": f"question {i} about thing {i * 7}", "response": f"answer {i} of kind {i * 3}"} for i in range(60)]
    new = [{"prompt": f"a new question, {i}", "response": f"a new answer, {i}"} for i in range(300)]
    before, _ = built(tmp_path / "a", old)
    after, _ = built(tmp_path / "b", new + old, splits_file=tmp_path / "a/run/data/splits.json")
    for name in SPLITS:
        assert {r["id"] for r in before[name]} <= {r["id"] for r in after[name]}
    assert read_json(tmp_path / "a/run/data/splits.json")["test"] == [r["id"] for r in before["test"]]
    with pytest.raises(BadInput, match="no splits.json"):
        built(tmp_path / "c", old, splits_file=write(tmp_path / "other.json", [{"a": 1}]))


def test_one_huge_group_does_not_swallow_the_examination(tmp_path):
    rows = [{"prompt": f"how do I {w} now", "response": "I can't help with that."} for w in "abcdefghijklmnop"] + [{"prompt": f"question {i} {i * 7}", "response": f"answer {i} {i * 3}"} for i in range(16)]
    parts, _ = parted(tmp_path, rows)
    assert len(parts["train"]) > 20 and len(parts["test"]) >= 1 and all("help" not in r["messages"][1]["content"] for r in parts["test"] + parts["valid"])


@pytest.mark.parametrize("leaking", ["refuse", "drop", "allow"])
def test_files_that_share_rows(leaking, tmp_path):
    rows = [{"prompt": f"question {i} about {i * 7}", "response": f"answer {i} {i * 3}"} for i in range(20)]
    held = write(tmp_path / "valid.jsonl", [{"prompt": "Question 3, about 21!", "response": "another"}] + [{"prompt": f"new {i}", "response": f"thing {i}"} for i in range(5)])
    if leaking == "refuse":
        with pytest.raises(BadInput, match="1 of 6 rows of valid are known from train.*data.leaks=drop"):
            built(tmp_path / "a", rows, valid_file=held)
        assert not (tmp_path / "a/run/data").exists()
        return
    parts, card = built(tmp_path / "a", rows, valid_file=held, leaks=leaking)
    assert len(parts["valid"]) + len(parts["test"]) == 6
    assert (card["leaking"], len(parts["train"]), leaks(**parts), card["known_from_train"]) == ((1, 19, 0, 0) if leaking == "drop" else (0, 20, 1, 1))


def test_personal_data_can_be_masked(tmp_path):
    rows = [{"prompt": f"question {i} {i * 7}", "response": f"Rest well {i * 3}.\n\nWarm regards,\nAnna Example, LPC, anna@example.org"} for i in range(10)]
    parts, _ = built(tmp_path, rows, mask_personal=True)
    said = " ".join(r["messages"][1]["content"] for rs in parts.values() for r in rs)
    assert "Anna" not in said and "@" not in said and said.count("[name]") == said.count("[email]") == 10


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20)), max_size=20))
def test_a_spool_gives_back_what_was_put_on_it(rows):
    spool = Spool()
    for i, row in enumerate(rows):
        spool.append(row)
        assert spool[i] == row
    assert [spool[i] for i in range(len(spool))] == rows


# --- what a review found ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", ['[{"prompt": "a", "response": "b"}]\n{"prompt": "c", "response": "d"}', '[{"prompt": "a", "response": "b"}][3]'])
def test_nothing_after_an_array_is_lost_silently(content, tmp_path):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(BadInput, match="something stands after its end"):
        load_rows(tmp_path / "rows.json")


@pytest.mark.parametrize("line, reason", [("I wake at 3,Try tea, then bed", "more cells than columns"), ("can\u2019t,no", "not UTF-8"), ("good,row", None)])
def test_a_damaged_table_row_is_named_not_guessed(line, reason, tmp_path):
    (tmp_path / "ROWS.CSV").write_bytes(b"prompt,response\nfirst,one\n" + line.encode("cp1252") + b"\n")
    good, bad = load_rows(tmp_path / "ROWS.CSV")
    assert len(good) == (1 if reason else 2) and [reason in b["reason"] for b in bad] == [True] * bool(reason)


def test_an_open_quote_does_not_swallow_a_table(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,response\na,"open\n' + "b,c\n" * 50)
    with pytest.raises(BadInput, match="cannot be read as csv"):
        load_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize("row", [{"prompt": "a", "response": "b", "kind": None}, {"messages": None, "prompt": "a", "response": "b"}, {"instruction": None, "input": None, "prompt": "a", "response": "b"}])
def test_a_null_field_is_no_field(row):
    assert [m["content"] for m in canonical(row, "f")["messages"]] == ["a", "b"]


def test_an_input_that_is_no_text_is_rejected():
    for value in (3, float("nan"), ["x"]):
        with pytest.raises(ValueError, match="`input` is no text"):
            canonical({"instruction": "a", "input": value, "output": "b"}, "f")


def test_a_column_map_wins_over_other_fields(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"instruction": "no", "output": "no", "Context": "yes", "Response": "well"}])
    assert [m["content"] for m in load_rows(path, columns="prompt=Context, response=Response")[0][0]["messages"]] == ["yes", "well"]


@relaxed
@given(rows=st.lists(anything, min_size=1, max_size=6), lone=st.sampled_from(["", "\ud800"]))
def test_the_whole_stage_takes_any_rows(rows, lone, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b", "topic": "x" + lone}, {"prompt": lone, "response": ""}, *rows])
    audit = read_files(tmp_path, path)
    assert len(audit.rows) + len(audit.rejected) == len(rows) + 2 == audit.files["train"]["rows_in"]
    json.dumps([audit.rejected[i] for i in range(len(audit.rejected))]).encode()


@pytest.mark.parametrize("text", [" " * 200_000 + "x", "a" * 19_000 + " @", "é" * 2_000_000, "<p>Hi</p> <![oops, look"])
def test_no_text_takes_long(text, tmp_path):
    import time
    start = time.perf_counter()
    path = write(tmp_path / "rows.jsonl", [{"prompt": text, "response": "b"}, {"prompt": "a", "response": "b"}])
    assert len(read_files(tmp_path, path).rows) >= 1
    assert time.perf_counter() - start < 3, "this was quadratic once: a minute"


def test_held_out_rows_are_never_trained_on(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one<|doc|>two")
    held = [{"prompt": f"held {i} {i * 7}", "response": f"said {i} {i * 3}"} for i in range(20)] + [{"prompt": f"no {i} {i * 7}", "response": f"never {i} {i * 3}", "kind": "refusal"} for i in range(2)]
    for rows in (held, held[:2]):
        run = Run(tmp_path / f"run{len(rows)}")
        try:
            build_data(run, "sample/counsel.jsonl", valid_file=write(tmp_path / "valid.jsonl", rows), corpus=corpus)
        except BadInput as e:
            assert "too small" in str(e)
            continue
        assert not [r for r in read_jsonl(run / "data/train.jsonl") if r["source"] == "valid.jsonl"]


def test_a_frozen_split_survives_caps_and_bridges(tmp_path):
    numbered = lambda n, k: [{"prompt": f"{n} question {i} about thing {i * 7}", "response": f"{n} answer {i} of kind {i * 3}"} for i in range(k)]
    before, _ = built(tmp_path / "a", numbered("old", 60), max_eval_rows=5, max_train_rows=30)
    text = lambda row, n: row["messages"][n]["content"]
    bridge = {"prompt": text(before["train"][0], 0), "response": text(before["test"][0], 1)}
    after, card = built(tmp_path / "b", numbered("new", 200) + [bridge] + numbered("old", 60), max_eval_rows=5, max_train_rows=30, splits_file=tmp_path / "a/run/data/splits.json")
    assert {n: [r["id"] for r in rs] for n, rs in before.items()} == {n: [r["id"] for r in rs] for n, rs in after.items()} and card["leaking"] == 1
    with pytest.raises(BadInput, match="Not one row"):
        built(tmp_path / "c", numbered("other", 20), splits_file=tmp_path / "a/run/data/splits.json")


def test_one_instruction_before_all_questions_is_explained_and_has_a_way_out(tmp_path):
    rows = [{"instruction": " ".join(f"rule{i}" for i in range(60)), "input": f"question {i} of {i * 7}", "output": f"answer {i} for {i * 3}"} for i in range(40)]
    with pytest.raises(BadInput, match="40 of the 40 rows are one group.*data.near=1"):
        built(tmp_path / "a", rows)
    assert len(built(tmp_path / "b", rows, near=1)[0]["train"]) == 32


def test_a_kind_that_cannot_be_held_out_is_said(tmp_path):
    rows = [{"prompt": f"question {i} {i * 7}", "response": f"answer {i} {i * 3}"} for i in range(30)] + [{"prompt": f"do {w} {w * 3}", "response": "No.", "kind": "refusal"} for w in "abcdefgh"]
    assert built(tmp_path, rows)[1]["kinds_not_in_test"] == ["refusal"]


def test_a_file_is_never_written_over_a_folder(tmp_path):
    from zenbot.core import write_text
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(BadInput, match="is a folder"):
        write_text(tmp_path, "report")
    assert (tmp_path / "thesis.txt").read_text() == "precious"
