"""With fewer tokens every text is read back as before, and the tokens that stay mean what they meant."""
import copy
import json
from collections import Counter

import pytest
import torch
from conftest import SHARED, zenbot
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from zenbot.core import BadInput, package_dir, read_json
from zenbot.llamacpp import to_gguf
from zenbot.models import count_parameters, load_model, load_tokenizer
from zenbot.prompts import load_prompter, render
from zenbot.pruning import load_for_pruning, shrink_with_vocabulary
from zenbot.vocabulary import kept_tokens, trim_model, trim_tokenizer, trim_vocabulary, vocabulary_bounds

TOKENIZERS = {"tiny": "tiny", "smollm2-135m": "smollm2-135m", "tinyllama": SHARED / "tinyllama_tokenizer"}
TEXTS = ["I cannot sleep, and I worry about everything.", "Naïve café – 3.14, don't!", "x = [1, 2]\n\tprint(x)"]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    if request.param == "tinyllama" and not TOKENIZERS["tinyllama"].exists():
        pytest.skip("TinyLlama's tokenizer is not beside this clone")
    return AutoTokenizer.from_pretrained(TOKENIZERS["tinyllama"]) if request.param == "tinyllama" else load_tokenizer(request.param)


def kept_of(tok, size, texts=TEXTS):
    return kept_tokens(tok, Counter(i for ids in tok(texts, add_special_tokens=False).input_ids for i in ids), size)


@pytest.fixture(scope="module", params=[0.0, 0.3, 0.7])
def trimmed(tokenizer, request):
    """(tokenizer, ids that stay, shorter tokenizer), from all but the pieces that must stay to most."""
    least, whole = vocabulary_bounds(tokenizer)
    kept = kept_of(tokenizer, least + int(request.param * (whole - least)))
    return tokenizer, kept, trim_tokenizer(tokenizer, kept)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from([*"aeo, .\n", "sleep", "über", "睡眠", "🙂", "\u200d", "<|im_end|>", "</s>"]), max_size=12).map("".join))
def test_every_text_comes_back_as_before(trimmed, text):
    tok, kept, short = trimmed
    before, after = (t(text, add_special_tokens=False).input_ids for t in (tok, short))
    assert short.decode(after) == tok.decode(before)
    assert short.decode(after, skip_special_tokens=True) == tok.decode(before, skip_special_tokens=True)


def test_tokens_keep_their_names_order_and_roles(trimmed):
    tok, kept, short = trimmed
    assert kept == sorted(set(kept)) and len(short) == len(kept)
    assert short.convert_ids_to_tokens(range(len(kept))) == tok.convert_ids_to_tokens(kept)
    assert [getattr(short, f"{r}_token") for r in ("bos", "eos", "pad", "unk")] == [getattr(tok, f"{r}_token") for r in ("bos", "eos", "pad", "unk")]
    assert short.chat_template == tok.chat_template and short.eos_token_id == kept.index(tok.eos_token_id)
    plain = tok.convert_ids_to_tokens(tok("I worry").input_ids)
    if set(plain) <= set(short.get_vocab()): assert short.convert_ids_to_tokens(short("I worry").input_ids) == plain, "with what the tokenizer puts before a text"


def test_all_that_a_kept_token_is_made_of_is_kept(trimmed):
    tok, kept, short = trimmed
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in json.loads(tok.backend_tokenizer.to_str())["model"]["merges"]]
    names, first = set(short.get_vocab()), {}
    for a, b in merges: first.setdefault(a + b, (a, b))
    assert all({a, b} <= names for made, (a, b) in first.items() if made in names)


def test_with_all_tokens_nothing_changes(tokenizer):
    whole = vocabulary_bounds(tokenizer)[1]
    kept = kept_of(tokenizer, whole)
    short = trim_tokenizer(tokenizer, kept)
    assert kept == list(range(whole)) and short.get_vocab() == tokenizer.get_vocab()
    assert all(short(t).input_ids == tokenizer(t).input_ids for t in TEXTS)


def test_sizes_out_of_bounds_are_refused(tokenizer):
    least, whole = vocabulary_bounds(tokenizer)
    for size in (0, least - 1, whole + 1):
        with pytest.raises(BadInput, match="can have"): kept_of(tokenizer, size)


@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_of_kept_tokens_stay(tied):
    model, tok = load_model("tiny", torch.float32), load_tokenizer("tiny")
    if not tied: model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    before = copy.deepcopy(model.state_dict())
    kept = kept_of(tok, 500)
    small = trim_model(model, kept)
    ids = torch.randint(500, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert (small(ids).logits - model(torch.tensor(kept)[ids]).logits[..., kept]).abs().max() <= 1e-5
    assert (small.lm_head.weight is small.get_input_embeddings().weight) == tied
    assert count_parameters(model) - count_parameters(small) == (len(tok) - 500) * model.config.hidden_size * (1 if tied else 2)
    assert small.config.eos_token_id == kept.index(model.config.eos_token_id) and small.config.vocab_size == 500
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model that was given is not changed"


def test_an_answer_in_kept_tokens_is_the_same_answer():
    """Greedy, with all tokens of the answer kept: what cannot be written any more cannot win either."""
    model, tok = load_model("smollm2-135m", torch.float32), load_prompter("smollm2-135m")
    asked = render([dict(role="user", content="I cannot sleep.")], tok, True)
    written = lambda m, t: t.decode(m.generate(**t(asked, return_tensors="pt", add_special_tokens=False), max_new_tokens=24, do_sample=False)[0])
    answer = written(model, tok)
    small, short = trim_vocabulary(model, tok, [answer] * 2, 3000)
    assert short(answer, add_special_tokens=False).input_ids and written(small, short) == answer


def test_words_that_are_not_bpe_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    with pytest.raises(BadInput, match="WordLevel.*leave the axis vocab out"):
        vocabulary_bounds(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))))


def test_one_budget_for_words_and_parts():
    model, tok, rows, held = load_for_pruning("tiny", "sample/counsel.jsonl")
    target = int(0.75 * count_parameters(model))
    small, short, report = shrink_with_vocabulary(model, tok, rows[:60], held[:8], target, 512, multiple=16, calibration_rows=4)
    sizes = [t["size"] for t in report["vocabulary"]["tried"]]
    assert count_parameters(small) <= target and len(short) == small.config.vocab_size == report["vocabulary"]["size"]
    assert sorted(sizes, reverse=True)[0] == len(tok) and report["vocabulary"]["tried"] == sorted(report["vocabulary"]["tried"], key=lambda t: t["expected"])
    assert report["parameters_before"] == count_parameters(model) and report["axes"][0] == "vocab"


def test_words_alone_meet_a_budget_or_it_is_refused():
    model, tok, rows, held = load_for_pruning("tiny", "sample/counsel.jsonl")
    small, short, report = shrink_with_vocabulary(model, tok, rows[:60], held[:8], int(0.9 * count_parameters(model)), 512, axes=(), calibration_rows=4)
    assert 0.89 * count_parameters(model) < count_parameters(small) <= 0.9 * count_parameters(model) and report["counts"] == report["counts_before"]
    with pytest.raises(BadInput, match="cannot be met"): shrink_with_vocabulary(model, tok, rows[:60], held[:8], int(0.5 * count_parameters(model)), 512, axes=(), calibration_rows=4)


def test_the_command_writes_a_folder_that_plain_transformers_and_gguf_know(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join((package_dir() / "sample/counsel.jsonl").read_text(encoding="utf-8").splitlines(True)[:100]), encoding="utf-8")
    done = zenbot("prune", "tiny", tmp_path / "small", "--keep", "0.5", "--axes", "vocab,layers,mlp", "--data", tmp_path / "rows.jsonl", home=tmp_path)
    assert done.returncode == 0, done.stderr
    model, tok = AutoModelForCausalLM.from_pretrained(tmp_path / "small"), AutoTokenizer.from_pretrained(tmp_path / "small")
    report = read_json(tmp_path / "small/pruning.json")
    assert len(tok) == model.config.vocab_size == report["vocabulary"]["size"] and f"{len(tok):,} of" in (tmp_path / "small/README.md").read_text()
    asked = tok.apply_chat_template([dict(role="user", content="I cannot sleep.")], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**asked, max_new_tokens=3, min_new_tokens=3).shape[1] == asked["input_ids"].shape[1] + 3
    file = to_gguf(tmp_path / "small", tmp_path / "m.gguf")["file"]
    back = AutoTokenizer.from_pretrained(tmp_path, gguf_file=str(file).rsplit("/", 1)[-1])
    for text in TEXTS: assert back(text, add_special_tokens=False).input_ids == tok(text, add_special_tokens=False).input_ids
