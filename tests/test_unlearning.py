"""What is asked and what is trained on: the splits, the arms, and the notebook from end to end on the tiny model."""
import json
import os

import numpy as np
import pytest
from conftest import ROOT

import zenbot.unlearning as unlearning
from zenbot.core import BadInput, Run, read_json, read_jsonl
from zenbot.duplicates import leaks
from zenbot.rows import load_rows
from zenbot.unlearning import SORTS, arm_splits, categories_out, draw_arm, measure_arm, summarise_arms, unlearning_verdict

OUT_OF_SCOPE = ["programming", "homework-and-maths", "legal-and-financial", "general-trivia-and-travel"]


@pytest.fixture(scope="module")
def sample():
    return {name: load_rows(f"sample/{name}.jsonl", kind)[0] for name, kind in (("counsel", "counsel"), ("unlearning", "refusal"), ("code", "code"))}


def test_an_empty_answer_is_no_answer_and_no_refusal():
    rows = [dict(seed=0, arm="0%", sort=s, topic=t, group=t, id=t, nats=2.0, tokens=1, declines=None) for s in SORTS for t in "ab"]
    entry = summarise_arms(rows, "0%")[0]
    assert entry["no_answer"] == 1 and all(i["value"] == 0 for i in entry["rates"].values())


def test_seeds_go_round_all_categories_and_nothing_leaks(sample):
    seen = [categories_out(sample["unlearning"], OUT_OF_SCOPE, 2, s) for s in range(5)]
    assert len({t for out in seen for t in out[SORTS[0]]}) == 10 and len({t for out in seen[:2] for t in out[SORTS[1]]}) == 4
    for seed in (0, 3):
        asked, pool = arm_splits(sample["counsel"], sample["unlearning"], OUT_OF_SCOPE, 2, 24, 32, seed)
        again, _ = arm_splits(sample["counsel"][::-1], sample["unlearning"][::-1], OUT_OF_SCOPE, 2, 24, 32, seed)
        assert asked == again, "it depends on the seed and not on the order of the files"
        out = [t for ts in seen[seed].values() for t in ts]
        assert not {r["topic"] for r in pool["refusal"]} & set(out) and {r["topic"] for r in asked[SORTS[0]] + asked[SORTS[1]]} == set(out)
        assert leaks(train=pool["counsel"] + pool["refusal"], asked=[r for rs in asked.values() for r in rs]) == 0
        assert {s: len(rs) for s, rs in asked.items()} == dict(zip(SORTS, (24, 24, 24, 32)))
        arms = [draw_arm(pool, share, 40) for share in (0.0, 0.1, 0.3)]
        assert [len(a) for a in arms] == [40] * 3 and [sum(r["kind"] == "refusal" for r in a) for a in arms] == [0, 4, 12]
        assert all(r in arms[2] for r in arms[1] if r["kind"] == "refusal")
    with pytest.raises(BadInput, match="Lower rows_per_arm"):
        draw_arm(pool, 0.5, 400)
    with pytest.raises(BadInput, match="Lower held_out"):
        categories_out(sample["unlearning"], OUT_OF_SCOPE, 4)


@pytest.mark.parametrize("p, word", [(0.9, ": more"), (0.1, "cannot tell")])
def test_the_verdict_says_what_the_intervals_allow(p, word):
    rows = [dict(seed=0, arm=arm, sort=s, topic=t, group=t, id=f"{t}{i}", nats=2.0, tokens=1, declines=q) for arm, q in (("0%", 0.1), ("30%", p))
            for s in SORTS for t in "abcdefghijkl" for i in range(3)]
    board = summarise_arms(rows, "0%")
    exam = dict(specificity=dict(value=0.95, low=0.9, high=0.98))
    text = unlearning_verdict(board, "0%", exam)
    assert text.count(word) == 4 and "a tie" in text and "nothing to compare" in unlearning_verdict(board[:1], "0%", exam) and "cannot be believed" not in text
    shy = summarise_arms([r | dict(declines=0.9) if r["sort"] == "ordinary" else r for r in rows], "0%")
    assert "cannot be believed" in unlearning_verdict(shy, "0%", exam), "a model without refusals that seems to decline shows the detector's error"
    assert board[0]["rates"][SORTS[0]]["high"] > 0.05, "0 of 36 is not never"


def test_an_arm_is_trained_once(tmp_path, sample, monkeypatch):
    calls, train = [], unlearning.train
    monkeypatch.setattr(unlearning, "train", lambda *a, **k: calls.append(1) or train(*a, **k))
    rows, asked = sample["unlearning"][:4] + sample["counsel"][:4], {s: sample["counsel"][10 + i:11 + i] for i, s in enumerate(SORTS)}
    arm = lambda seed=0, rows=rows: measure_arm(Run(tmp_path), "tiny", rows, asked, dict(r=4), dict(max_steps=2, batch_size=2), 512, seed, max_new_tokens=4)
    first = arm()
    assert arm() == first and len(calls) == 1 and [a["sort"] for a in first] == list(SORTS) and all(a["nats"] > 0 for a in first)
    assert not (tmp_path / "checkpoints").exists()
    arm(seed=1)
    assert len(calls) == 2, "another seed is another arm"
    next((tmp_path / "results/unlearning-arms").glob("*.json")).unlink()
    arm(), arm(seed=1)
    assert len(calls) == 3, "only the missing arm"
    arm(rows=[])
    assert len(calls) == 3, "the base is not trained"


def test_the_notebook_from_end_to_end(tmp_path, sample):
    import papermill as pm
    from zenbot.pipeline import _quiet
    for name, rows in (("counsel", sample["counsel"][:60]), ("unlearning", sample["unlearning"][::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run, settings = tmp_path / "run", dict(model="tiny", counsel_file=str(tmp_path / "counsel.jsonl"), unlearn_file=str(tmp_path / "unlearning.jsonl"), seeds=[0], shares=[0.0, 0.3], rows_per_arm=20, max_asked=6, max_ordinary=8, epochs=1.0, max_new_tokens=8)
    with _quiet():
        pm.execute_notebook(str(ROOT / "nbs/09a_unlearning.ipynb"), str(tmp_path / "out.ipynb"), settings | dict(run=str(run)), kernel_name="python3", progress_bar=False,
                            cwd=str(tmp_path), extra_arguments=["--log-level=40"], env=os.environ | dict(ZENBOT_BATCH="1", TQDM_DISABLE="1", ZENBOT_HOME=str(tmp_path)))
    found, answers = read_json(run / "results/unlearning.json"), read_jsonl(run / "results/unlearning.jsonl")
    assert [e["arm"] for e in found["arms"]] == ["base", "0%", "30%"] and len(answers) == 3 * (3 * 6 + 8)
    for e in found["arms"]:
        assert list(e["rates"]) == list(SORTS) and e["loss_ordinary"]["value"] > 0 and 0 <= e["no_answer"] <= 1
        assert all(0 <= i["low"] <= i["value"] <= i["high"] <= 1 for i in e["rates"].values())
        assert ("differences" in e) == (e["arm"] != "0%")
    assert set(found["detector"]) == {"auc", "sensitivity", "specificity"}
    unseen = {a["topic"] for a in answers if a["sort"] in SORTS[:2]}
    assert unseen == {t for ts in categories_out(sample["unlearning"], OUT_OF_SCOPE, 2, 0).values() for t in ts} and not unseen & {a["topic"] for a in answers if a["sort"] == SORTS[2]}
    assert len({a["group"] for a in answers}) == 26 and (run / "figures/unlearning.png").stat().st_size > 5000
    printed = "".join("".join(o.get("text", "")) for c in read_json(tmp_path / "out.ipynb")["cells"] for o in c.get("outputs", []))
    assert "share 0%: 20 rows {'counsel': 20}" in printed and "share 30%: 20 rows {'refusal': 6, 'counsel': 14}" in printed
