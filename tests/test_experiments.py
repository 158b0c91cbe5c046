"""The small experiments: mixtures of adapters are what they say, pairs are fair, and both notebooks run from end to end on the tiny model."""
import os
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import PeftModel

from zenbot.adapters import add_lora
from zenbot.core import BadInput, Run, read_json, read_jsonl
from zenbot.duplicates import leaks
from zenbot.mixtures import combined, labelled, mixing_error, same_tokens, set_aside, with_adapters
from zenbot.models import load_model
from zenbot.plain_words import FOLDER
from zenbot.preferences import answer_pairs, apart, margins, pair_losses, pair_rows, preference, prefers, swapped_pairs, tune_by_preferences
from zenbot.prompts import load_prompter
from zenbot.rows import load_rows

IDS = torch.arange(20, 52)[None]


@pytest.fixture(scope="module")
def counsel():
    return [r for r in load_rows("sample/counsel.jsonl")[0] if len(r["messages"]) == 2]


@pytest.fixture(scope="module")
def pairs():
    return {part: answer_pairs(read_jsonl(FOLDER / f"answers_{part}.jsonl")) for part in ("dev", "test")}


def adapter(folder, seed: int, rslora: bool = False):
    """As if it had been trained: B is not 0."""
    model = add_lora(load_model("tiny", torch.float32), r=4, alpha=8, dropout=0.0, rslora=rslora, seed=seed)
    torch.manual_seed(100 + len(folder.name))
    for name, p in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.05)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model): return model.eval()(IDS).logits


@pytest.mark.parametrize("rslora", [False, True])
def test_a_mixture_is_what_its_weights_say(tmp_path, rslora):
    many = with_adapters("tiny", {"a": adapter(tmp_path / "a", 0, rslora), "b": adapter(tmp_path / "bb", 1, rslora)}, torch.float32)
    alone, base = logits(many), logits(load_model("tiny", torch.float32))
    assert (alone - base).abs().max() > 0.1
    for how in ("cat", "linear"):
        assert torch.allclose(logits(combined(many, dict(a=1.0, b=0.0), how)), alone, atol=1e-4), f"{how} with weights 1 and 0 is the adapter itself"
        assert torch.allclose(logits(combined(many, dict(a=0.0, b=0.0), how)), base, atol=1e-4), "an earlier mixture must not stay"
    half = dict(a=0.5, b=0.5)
    assert mixing_error(combined(many, half), half) < 1e-5, "cat is the sum of the products"
    said = logits(many)
    assert mixing_error(combined(many, half, "svd", svd_rank=8), half) < 1e-4, "and so is svd where the rank is not cut"
    assert mixing_error(combined(many, half, "linear"), half) > 0.3, "linear is not"
    combined(many, half).save_pretrained(tmp_path / "saved", selected_adapters=["mixed"])
    again = PeftModel.from_pretrained(load_model("tiny", torch.float32), str(tmp_path / "saved" / "mixed"))
    assert torch.allclose(logits(again), said, atol=1e-4), "a saved mixture comes back as it was"


def test_linear_is_twice_the_sum_where_both_have_the_same_a(tmp_path):
    many = with_adapters("tiny", {"a": adapter(tmp_path / "a", 0), "b": adapter(tmp_path / "bb", 0)}, torch.float32)
    assert mixing_error(combined(many, dict(a=0.5, b=0.5), "linear"), dict(a=1.0, b=1.0)) < 1e-5


def test_rows_are_split_and_matched(counsel):
    train, held = set_aside(counsel, 0.1, 3)
    assert len(train) + len(held) == len(counsel) and abs(len(held) - 0.1 * len(counsel)) < 5 and leaks(train=train, held=held) == 0
    assert set_aside(counsel[::-1], 0.1, 3) == (train, held), "it depends on the seed and not on the order of the file"
    row = lambda n: dict(input_ids=[1] * n, labels=[-100] + [1] * (n - 1))
    same = same_tokens(dict(few=[row(11)] * 4, many=[row(8)] * 50))
    assert len(same["few"]) == 4 and len(same["many"]) == 6 and abs(labelled(same["few"]).sum() - labelled(same["many"]).sum()) <= 7


def test_pairs_differ_and_no_prompt_crosses_the_split(pairs, counsel):
    swapped = swapped_pairs(counsel[:40])
    for name, ps in (*pairs.items(), ("swapped", swapped)):
        assert len(ps) >= 30 and all(p["chosen"] != p["rejected"] and p["prompt"][-1]["role"] == "user" for p in ps), name
    held = pairs["test"] + swapped
    learned = apart(pairs["dev"], held)
    assert learned and leaks(learn=[r for s in ("chosen", "rejected") for r in pair_rows(learned, s)], held=[r for s in ("chosen", "rejected") for r in pair_rows(held, s)]) == 0
    copy = dict(held[0], prompt=[dict(role="user", content=held[0]["prompt"][-1]["content"].upper() + "!")])
    other = preference([dict(role="user", content="a question of its own")], "an answer that nobody else gives", held[0]["rejected"] + "!", "x")
    assert apart([copy, *learned, other], held) == learned, "a copied question and a copied answer are found"


def test_who_does_not_read_the_question_is_right_in_half_of_the_swapped_pairs(counsel):
    rows = counsel[:41]
    swapped, topic = swapped_pairs(rows), {r["messages"][0]["content"]: r["topic"] for r in rows}
    assert sorted(p["chosen"] for p in swapped) == sorted(p["rejected"] for p in swapped)
    by_answer = {p["chosen"]: topic[p["prompt"][-1]["content"]] for p in swapped}
    assert all(by_answer[p["rejected"]] != topic[p["prompt"][-1]["content"]] for p in swapped)
    blind = {s: (np.array([sum(p[s].encode()) for p in swapped], float), np.array([len(p[s]) for p in swapped])) for s in ("chosen", "rejected")}
    assert prefers(blind).mean() == 0.5


def test_a_margin_is_what_was_gained_on_the_one_more_than_on_the_other():
    before = dict(chosen=(np.array([10.0, 10.0]), np.array([5, 5])), rejected=(np.array([8.0, 8.0]), np.array([2, 2])))
    after = dict(chosen=(np.array([9.0, 12.0]), np.array([5, 5])), rejected=(np.array([11.0, 9.0]), np.array([2, 2])))
    assert margins(after, before).tolist() == [4.0, -1.0] and margins(after, before, 0.5).tolist() == [2.0, -0.5] and not margins(before, before).any()
    assert prefers(before).tolist() == [1.0, 1.0], "per token 2 against 4 nats, though the sum is larger"


def test_preference_tuning_needs_trl(tmp_path, monkeypatch, pairs):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(BadInput, match="pip install"):
        tune_by_preferences(Run(tmp_path), None, None, pairs["dev"])


def test_our_margin_is_that_of_trl(tmp_path, pairs):
    pytest.importorskip("trl")
    tokenizer, learn = load_prompter("tiny"), pairs["dev"][:16]
    before = pair_losses(load_model("tiny"), learn, tokenizer, 512)
    policy = add_lora(load_model("tiny"), r=4, alpha=8, dropout=0.0)
    log = tune_by_preferences(Run(tmp_path), policy, tokenizer, learn, learn, 0.1, 1e-2, steps=8, batch_size=8, max_length=512)
    ours = margins(pair_losses(policy, learn, tokenizer, 512), before, 0.1)
    theirs = next(e for e in log[::-1] if "eval_rewards/margins" in e)
    assert ours.mean() > 0.05, "the pairs that it learned from are told apart"
    assert theirs["eval_rewards/margins"] == pytest.approx(ours.mean(), rel=0.2) and [*policy.peft_config] == ["default"]


SMALL = {"17a_mixtures": dict(passes=1, batches=2, weights=[0.5]),
         "17b_preferences": dict(max_pairs=16, counsel_rows=8, held_rows=8, max_asked=80, steps=4, learning_rate=5e-3, max_new_tokens=8, max_length=512)}


@pytest.fixture(params=SMALL, scope="module")
def executed(request, tmp_path_factory):
    """A notebook with small settings: its name, its results, what it printed."""
    import papermill as pm
    from zenbot.pipeline import _quiet
    folder = tmp_path_factory.mktemp("experiment")
    with _quiet():
        pm.execute_notebook(str(ROOT / f"nbs/{request.param}.ipynb"), str(folder / "out.ipynb"), SMALL[request.param] | dict(model="tiny", run=str(folder / "run")), kernel_name="python3", progress_bar=False,
                            cwd=str(folder), extra_arguments=["--log-level=40"], env=os.environ | dict(ZENBOT_BATCH="1", TQDM_DISABLE="1", ZENBOT_HOME=str(folder)))
    printed = "".join("".join(o.get("text", "")) for c in read_json(folder / "out.ipynb")["cells"] for o in c.get("outputs", []))
    return request.param, read_json(next((folder / "run/results").glob("*.json"))), printed


def test_the_notebook_from_end_to_end(executed):
    name, found, printed = executed
    if name == "17a_mixtures":
        assert {"base", "counsel alone", "code alone", "both", "both, half", "cat 0.5 + 0.5", "linear 0.5 + 0.5", "svd 0.5 + 0.5", "ties 0.5 + 0.5"} <= set(found["losses"])
        assert found["losses"]["counsel alone"]["counsel"]["value"] < found["losses"]["base"]["counsel"]["value"] and found["losses"]["code alone"]["code"]["value"] < found["losses"]["base"]["code"]["value"]
        assert found["errors"]["cat"] < 0.02 < found["errors"]["linear"] and max(found["exact"].values()) < 1e-3
    else:
        assert found["pairs"] == 16 and found["held"] == 75 and ("DPO" in found["answers"]) == ("The arm DPO is left out" not in printed)
        assert found["exam"]["good answers stopped"]["high"] < found["exam"]["bad answers stopped"]["low"], "else the check is no judge"
        assert all(0 <= i["low"] <= i["value"] <= i["high"] <= 1 for arm in found["answers"].values() for k, i in arm.items() if k != "words")
        assert "margin > 0" not in "".join(found["pairs_board"]["base"]) and found["pairs_board"]["more"]["bad: margin > 0"]["n"] == 75
