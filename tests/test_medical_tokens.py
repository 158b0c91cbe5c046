"""New words: the tokenizer that takes them, the rows that carry them, and the loss that trains these rows and nothing else."""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, zenbot
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.core import BadInput, Run, package_dir, read_json
from zenbot.measures import labelled_bytes
from zenbot.models import load_model, load_tokenizer
from zenbot.prompts import load_prompter, tokenize_and_mask
from zenbot.stage1 import add_rows, add_words, mine_words, pack, word_pieces
from zenbot.adapters import add_lora, merge, save_adapter
from zenbot.kernels import _ChunkedCrossEntropy, labelled_loss
from zenbot.training import train

TOKENIZERS = {"tiny": "tiny", "smollm2": "smollm2-135m", "tinyllama": SHARED / "tinyllama_tokenizer"}
TEXTS = [p.read_text(encoding="utf-8") for p in sorted((package_dir() / "sample/primer").glob("*.md"))]
WORDS = ["insomnia", "apnoea", "apnoeic", "breathlessness", "Spielman", "naïveté"]   # two share stems; one has letters outside ASCII


def plain(name):
    if name != "tinyllama":
        return load_tokenizer(TOKENIZERS[name])
    if not TOKENIZERS[name].exists():
        pytest.skip("TinyLlama's tokenizer is not beside this clone")
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(TOKENIZERS[name])


@pytest.fixture(scope="module", params=TOKENIZERS)
def extended(request):
    """(plain tokenizer, extended tokenizer, pieces, words, pairs that the appended merges join)"""
    tok = plain(request.param)
    words = [w for w in WORDS if not any(t.startswith("<0x") for t in word_pieces([w], tok)[0])]
    words += [m["word"] for m in mine_words(TEXTS, tok, 20)]
    new, pieces = add_words(tok, words)
    old_merges, merges = ([tuple(m) for m in json.loads(t.backend_tokenizer.to_str())["model"]["merges"]] for t in (tok, new))
    assert merges[:len(old_merges)] == old_merges, "the old merges keep their ranks"
    return tok, new, pieces, words, set(merges[len(old_merges):])


def ids(tok, text):
    return tok(text, add_special_tokens=False).input_ids


def test_a_new_word_is_one_token_wherever_it_stands_after_a_space(extended):
    tok, new, pieces, words, joined = extended
    broken = [w for w in words if len(word_pieces([w], tok)[0]) > 1]
    assert len(broken) > 15 and min(pieces) == len(tok) and sorted(pieces) == list(range(len(tok), len(new)))
    for word in broken:
        (token,) = word_pieces([word], new)[0]
        text = f"They said that {word} is {word} and no more."
        assert new.convert_tokens_to_ids(token) in pieces and new.convert_ids_to_tokens(ids(new, text)).count(token) == 2
        assert new.decode(ids(new, text)) == tok.decode(ids(tok, text))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_other_text_is_cut_as_before_and_all_text_comes_back(extended, data):
    tok, new, pieces, words, joined = extended
    anything = st.text(max_size=20)
    parts = data.draw(st.lists(st.one_of(anything, st.sampled_from(words), st.sampled_from([" ", "\n", "s ", "sleep ", " ap", " insomn"])), max_size=12))
    text = data.draw(st.sampled_from(["", " "])).join(parts)
    before, after = ids(tok, text), ids(new, text)
    assert new.decode(after) == tok.decode(before)
    tokens = tok.convert_ids_to_tokens(before)
    if not joined & set(zip(tokens, tokens[1:])):
        assert after == before, "where no two joined pieces meet, nothing changes"
    assert [p for t in after for p in pieces.get(t, [t])] == before, "a new token stands for its very pieces"


def test_offsets_of_new_words_cover_them(extended):
    tok, new, pieces, words, joined = extended
    text = f"Tell me of {words[1]}, please."
    encoded = new(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [text[start:end].strip() for t, (start, end) in zip(encoded.input_ids, encoded.offset_mapping) if t in pieces]
    assert spans == [words[1]]


def test_labels_are_placed_by_the_extended_tokenizer_too(extended):
    from zenbot.prompts import set_template
    tok, new, pieces, words, joined = extended
    set_template(new, "chat")
    answer = f"Read of {words[0]} and {words[1]}."
    row = tokenize_and_mask([{"role": "user", "content": f"What is {words[0]}?"}, {"role": "assistant", "content": answer}], new, 1000)
    learned = [t for t in row["labels"] if t != -100]
    assert learned[-1] == new.eos_token_id and new.decode(learned[:-1]).strip() == answer and set(learned) & set(pieces)


def test_the_extended_tokenizer_is_the_same_after_saving(extended, tmp_path):
    from transformers import AutoTokenizer
    tok, new, pieces, words, joined = extended
    new.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == new.get_vocab() and type(again) is type(new)
    assert [ids(again, t) for t in TEXTS] == [ids(new, t) for t in TEXTS] != [ids(tok, t) for t in TEXTS]
    assert (again.pad_token_id, again.eos_token_id, again.padding_side) == (tok.pad_token_id, tok.eos_token_id, tok.padding_side)


def test_special_tokens_outside_the_vocabulary_keep_their_ids():
    """Chat models often have them after the last word: new words must not push them on."""
    tok = load_tokenizer("tiny")
    tok.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    new, pieces = add_words(tok, ["insomnia"])
    text = "<|user|>My insomnia is back.<|end|>"
    assert new.convert_tokens_to_ids("<|end|>") == 1025 and min(pieces) == 1026
    assert [p for t in ids(new, text) for p in pieces.get(t, [t])] == ids(tok, text) != ids(new, text)


def test_what_add_tokens_breaks():
    """The reason for the merges: the space before the word is cut off, and longer words are torn."""
    tok = load_tokenizer("smollm2-135m")
    new, _ = add_words(tok, ["apnoea"])
    tok.add_tokens(["apnoea"])
    assert tok.tokenize("Sleep apnoea, apnoeas") == ["Sleep", "Ġ", "apnoea", ",", "Ġ", "apnoea", "s"]
    assert new.tokenize("Sleep apnoea, apnoeas")[:3] == ["Sleep", "Ġapnoea", ","]


def test_mining_counts_whole_words_after_a_space():
    tok = load_tokenizer("tiny")
    texts = ["an apnoea, an apnoea. Apnoea apnoeas (apnoea) apnoea.org sleep-apnoea apnoea's the the the the", "more apnoea"]
    found = {m["word"]: m for m in mine_words(texts, tok, 99, min_count=1)}
    assert found["apnoea"]["count"] == 3 and found["apnoea"]["saved"] == 3 * (len(word_pieces(["apnoea"], tok)[0]) - 1)
    assert found["Apnoea"]["count"] == found["apnoeas"]["count"] == 1 and "the" not in found
    assert [m["word"] for m in mine_words(texts, tok, 1)] == ["apnoea"] and mine_words(texts, tok, 0) == [] == mine_words([""], tok, 5)
    assert not any("ï" in m["word"] for m in mine_words(["so naïveté"] * 9, tok, 9)), "tiny writes ï as bytes, which merges cannot join"


def test_a_tokenizer_of_another_kind_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]")), unk_token="[UNK]")
    with pytest.raises(BadInput, match="stage1.new_words=0"):
        add_words(other, ["ab"])


def test_no_words_change_nothing():
    tok = load_tokenizer("tiny")
    same, pieces = add_words(tok, [])
    model = load_model("tiny", torch.float32)
    table = model.get_input_embeddings().weight
    assert same is tok and pieces == {} and add_rows(model, {}).get_input_embeddings().weight is table
    plain_lora, no_words = add_lora(model), add_lora(load_model("tiny", torch.float32), new_tokens=())
    pairs = list(zip(plain_lora.named_parameters(), no_words.named_parameters()))
    assert all(a == b and torch.equal(p, q) and p.requires_grad == q.requires_grad for (a, p), (b, q) in pairs)
    assert no_words.peft_config["default"].trainable_token_indices is None


# ---- rows

def grown(tied: bool, dtype=torch.float32, seed: int = 0):
    """(model with rows for new words, extended tokenizer, pieces)"""
    tok, pieces = add_words(load_prompter("tiny"), [m["word"] for m in mine_words(TEXTS, load_tokenizer("tiny"), 6)])
    model = load_model("tiny", dtype)
    if not tied:
        model.config.tie_word_embeddings = False
        torch.manual_seed(seed)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.05)
    return add_rows(model, pieces), tok, pieces


def rows_of(tok, n=10, length=48):
    return pack([tok(t, add_special_tokens=False).input_ids for t in TEXTS[1:3]], tok.eos_token_id, length)[:n]


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_starts_as_the_mean_of_its_pieces(tied):
    before = load_model("tiny", torch.float32).get_input_embeddings().weight
    model, tok, pieces = grown(tied)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == tied and len(tables[0]) == len(tables[1]) == len(tok) == model.config.vocab_size
    assert torch.equal(tables[0][:len(before)], before), "old rows are untouched"
    for table in tables:
        assert all(torch.allclose(table[new], table[old].mean(0)) for new, old in pieces.items()) and max(map(len, pieces.values())) > 2


def test_a_table_with_spare_rows_is_not_resized():
    model = load_model("tiny", torch.float32)
    model.resize_token_embeddings(1100, mean_resizing=False)
    add_rows(model, {1024: [5, 6]})
    table = model.get_input_embeddings().weight
    assert len(table) == 1100 and torch.allclose(table[1024], table[[5, 6]].mean(0))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), vocab=st.integers(4, 50), chunk=st.integers(1, 50), seed=st.integers(0, 99), data=st.data())
def test_the_chunked_loss_gives_trained_rows_their_gradient(n, vocab, chunk, seed, data):
    where = torch.tensor(data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=4, unique=True)))
    g = torch.Generator().manual_seed(seed)
    states, weight = torch.randn(n, 8, generator=g, requires_grad=True), torch.randn(vocab, 8, generator=g)
    rows, targets = torch.randn(len(where), 8, generator=g, requires_grad=True), torch.randint(vocab, (n,), generator=g)
    whole = weight.index_copy(0, where, rows)
    ours = _ChunkedCrossEntropy.apply(states, whole.detach(), targets, chunk, rows, where)
    full = F.cross_entropy(states @ whole.T, targets, reduction="sum")
    assert torch.allclose(ours, full, atol=1e-4)
    for a, b in zip(torch.autograd.grad(ours * 3, [states, rows]), torch.autograd.grad(full * 3, [states, rows])):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_new_rows_equal_those_of_full_logits(tied):
    """Through the whole model, where a tied row is reached twice: as input and as output."""
    model, tok, pieces = grown(tied)
    model = add_lora(model, r=4, dropout=0.0, targets="all-linear", new_tokens=tuple(pieces)).train()
    ids = torch.tensor([r["input_ids"] for r in rows_of(tok, 40) if set(r["input_ids"]) & set(pieces)][:4])
    batch, grads = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids), []
    for loss in (lambda: labelled_loss(model, batch, chunk=33)[0],
                 lambda: F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")):
        model.zero_grad()
        value = loss()
        value.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad} | {"loss": value.detach()})
    names = [n for n in grads[0] if "trainable_tokens_delta" in n]
    assert len(names) == (1 if tied else 2) and all(grads[0][n].abs().sum() > 0 for n in names)
    for name in grads[0]:
        assert torch.allclose(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_only_new_rows_move_and_merged_equals_adapter_and_base_plus_adapter(tied, dtype, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model, tok, pieces = grown(tied, dtype)
    tables = lambda m: [m.get_input_embeddings().weight.detach().clone(), m.get_output_embeddings().weight.detach().clone()]
    before, rows = tables(model), rows_of(tok)
    model.save_pretrained(tmp_path / "grown")
    model = add_lora(model, r=4, targets="all-linear", new_tokens=tuple(pieces))
    train(Run(tmp_path / "run"), "rows", model, tok, rows, rows[:2], learning_rate=1e-2, batch_size=2, eval_steps=10, report_to="none", text=True)
    save_adapter(model, tok, tmp_path / "adapter", base="tiny")
    merged, report = merge(model, rows[:3])
    assert report["max_logit_difference"] < 1e-3
    for old, new in zip(before, tables(merged)):
        frozen = torch.ones(len(old), dtype=torch.bool).index_fill(0, torch.tensor(list(pieces)), False)
        assert torch.equal(old[frozen], new[frozen]), "frozen rows are the very same bits"
        read = sorted(set(pieces) & {t for r in rows for t in r["input_ids"]})
        assert read and not (old[read] == new[read]).all(1).any(), "the row of every new word that was read has learned"
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied

    # the way that the adapter's README tells: base, more room (whatever stands in it), adapter
    base = load_model("tiny", torch.float32)
    if not tied:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float32)
        for table in (base.get_input_embeddings().weight, base.get_output_embeddings().weight):
            table.data[list(pieces)] = 7.0
    readme = (tmp_path / "adapter/README.md").read_text()
    assert f"resize_token_embeddings({len(tok)})" in readme and "base_model: tiny\n" in readme and str(tmp_path) not in readme
    base.resize_token_embeddings(len(tok))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    apart = (loaded(ids).logits - merged.float()(ids).logits).abs().max().item()
    assert apart < (1e-4 if dtype == torch.float32 else 0.15), "bf16 merging rounds weights"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_interrupted_training_of_new_rows_ends_as_an_uninterrupted_one(dtype, tmp_path):
    from zenbot import training

    def weights(run, kill=False, ids=None):
        model, tok, pieces = grown(True, dtype)
        model = add_lora(model, r=4, new_tokens=ids or tuple(pieces))
        real, rows = training._Progress.on_step_end, rows_of(tok, 16)
        def dies(self, args, state, control, **kw):
            if state.global_step == 3: raise KeyboardInterrupt
        if kill: training._Progress.on_step_end = dies
        try: log = train(run, "same", model, tok, rows, rows[:2], learning_rate=1e-2, max_steps=4, batch_size=4, eval_steps=2, report_to="none", text=True)
        except KeyboardInterrupt: return None
        finally: training._Progress.on_step_end = real
        return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, log[-2]

    killed = Run(tmp_path / "killed")
    weights(killed, kill=True)
    (checkpoint,) = killed.path.glob("checkpoints/*/checkpoint-2")
    assert (checkpoint / "complete.json").exists() and (checkpoint / "adapter_model.safetensors").stat().st_size < 120_000, "the rows, and not the whole table"
    (resumed, log), (whole, log_whole) = weights(killed), weights(Run(tmp_path / "whole"))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[n], whole[n]) for n in whole) and log == log_whole
    other, _ = weights(killed, ids=(1024,))
    fresh, _ = weights(Run(tmp_path / "fresh"), ids=(1024,))
    assert all(torch.equal(other[n], fresh[n]) for n in fresh), "a checkpoint of other rows is not taken"


# ---- measures and stages

def test_bytes_are_those_of_the_labelled_text():
    tok = load_prompter("tiny")
    new, _ = add_words(tok, ["insomnia"])
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because insomnia – naïve – is common."}]
    rows = [[tokenize_and_mask(messages, t, 500)] for t in (tok, new)]
    assert len(rows[0][0]["input_ids"]) > len(rows[1][0]["input_ids"])
    assert [labelled_bytes(r, t).tolist() for r, t in zip(rows, (tok, new))] == [[len(messages[1]["content"].encode())]] * 2


def test_models_with_unequal_words_are_compared_per_byte(smoke):
    """The smoke run adds words; the base does not know them, so a difference per token would mean nothing."""
    board = {e["model"]: e for e in read_json(smoke / "results/leaderboards_full.json")["metrics"]}
    rows = read_json(smoke / "results/test_results.json")
    by_model = {m: [r for r in rows if r["model"] == m] for m in board}
    assert [r["bytes"] for r in by_model["base"]] == [r["bytes"] for r in by_model["stage 2"]]
    assert [r["tokens"] for r in by_model["base"]] != [r["tokens"] for r in by_model["stage 2"]]
    assert "response_loss_vs_base" not in board["stage 2"]
    assert by_model["copy of the question"][0]["nats"] is None, "what is no language model has no loss"
    per_byte = {m: sum(r["nats"] for r in rs) / sum(r["bytes"] for r in rs) for m, rs in by_model.items() if m in ("base", "stage 2")}
    assert math.isclose(board["stage 2"]["loss_per_byte_vs_base"]["value"], per_byte["stage 2"] - per_byte["base"], abs_tol=1e-9)
    assert "nats per byte" in (smoke / "report.html").read_text()


def test_new_words_travel_through_all_stages(smoke):
    base = load_tokenizer("tiny")
    for folder in ("stage1_merged", "stage2_merged", "final_merged_pruned"):
        tok, model = load_tokenizer(smoke / folder), load_model(smoke / folder)
        assert len(tok) > len(base) and model.config.vocab_size == len(tok) == len(model.get_input_embeddings().weight)
    assert read_json(smoke / "tinyllama-medical-pretrained/adapter_config.json")["trainable_token_indices"]
    base_rows = load_model("tiny").get_input_embeddings().weight
    assert torch.equal(load_model(smoke / "stage2_merged").get_input_embeddings().weight[:len(base)], base_rows)


def test_without_new_words_the_vocabulary_stays(tmp_path):
    done = zenbot("run", "smoke", "-p", "stage1.new_words=0", "-p", "stage1.max_blocks=4", "--until", "stage1", home=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/smoke"
    assert load_tokenizer(run / "stage1_merged").get_vocab() == load_tokenizer("tiny").get_vocab()
    assert read_json(run / "tinyllama-medical-pretrained/adapter_config.json")["trainable_token_indices"] is None


def test_the_experiment_runs_on_a_small_model(tmp_path):
    import papermill as pm
    from zenbot.pipeline import notebooks_dir
    pm.execute_notebook(str(notebooks_dir() / "08a_medical_tokens.ipynb"), str(tmp_path / "out.ipynb"), kernel_name="python3", progress_bar=False, cwd=str(tmp_path),
                        parameters=dict(model="tiny", new_words=10, seeds=[0, 1], max_tokens=4000, block_size=128, learning_rate=2e-3))
    outputs = json.dumps([o for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"] for o in c.get("outputs", [])])
    assert "after  reading, all paragraphs" in outputs and "nats per byte" in outputs
