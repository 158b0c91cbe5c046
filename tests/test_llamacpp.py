"""What stands in a GGUF is what stood in the folder: weights, tokenizer, template; and, where llama.cpp is installed, it says the same."""
import importlib.util
import json
import re

import gguf
import numpy as np
import pytest
import torch
from conftest import shared, zenbot_here
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM

from zenbot.budget import choose
from zenbot.core import BadInput
from zenbot.hub import files_to_push, push
from zenbot.llamacpp import _PATTERNS, frames, interleave, modelfile, piece_scores, to_gguf
from zenbot.models import load_model, load_tokenizer, locate, save_model
from zenbot.prompts import load_prompter
from zenbot.scores import score
from zenbot.smoothing import input_peaks, smoothing
from zenbot.surgery import remove

needs_llama = pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module", params=["tiny", "stories260k", "odd heads", "smollm2-135m"])
def model_folder(request, tmp_path_factory):
    """Folders of several kinds: SentencePiece and byte-level tokenizers, tied and untied heads, a Mistral with 6 heads on a width of 64."""
    if request.param == "stories260k":
        return shared("stories260k")
    if request.param != "odd heads":
        return locate(request.param)
    model, folder = load_model("tiny", torch.float32), tmp_path_factory.mktemp("odd") / "model"
    small = remove(model, choose(score(model, [], "random"), dict(layers=3, kv=3, heads=1, mlp=96)))
    assert small.config.model_type == "mistral"
    save_model(small, load_tokenizer("tiny"), folder)
    return folder


@pytest.mark.parametrize("kind, tolerance", [("f16", 0.02), ("q8_0", 0.4)])
def test_transformers_reads_the_file_back(model_folder, tmp_path, kind, tolerance):
    """The reader of transformers is not ours: names, order of rows, shape and numbers must all be right for its logits to be those of the folder."""
    to_gguf(model_folder, tmp_path / "m.gguf", kind)
    if json.loads((model_folder / "config.json").read_text())["model_type"] == "mistral":
        pytest.skip("transformers reads the architecture llama as LlamaConfig, which refuses this number of heads; llama.cpp does not")
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)).eval()
    model = load_model(model_folder, torch.float32)
    ids = torch.randint(3, min(model.config.vocab_size, 20000), (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): a, b = (m(ids).logits for m in (model, back))
    assert (a - b).abs().max() <= tolerance * a.std(), "relative to the spread of the logits"


def test_every_number_is_in_the_file(model_folder, tmp_path):
    """Also where transformers cannot read it back: the queries of the first layer, put back in their order."""
    to_gguf(model_folder, tmp_path / "m.gguf")
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    model = load_model(model_folder, torch.float32)
    for name, heads, weight in (("attn_q", model.config.num_attention_heads, model.model.layers[0].self_attn.q_proj.weight), ("attn_k", model.config.num_key_value_heads, model.model.layers[0].self_attn.k_proj.weight)):
        back = stored[f"blk.0.{name}.weight"].reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        assert np.array_equal(back, weight.detach().numpy().astype(np.float16))
    assert sum(a.size for a in stored.values()) == sum(p.numel() for p in model.parameters())


def test_the_file_says_all_that_the_tokenizer_said(model_folder, tmp_path):
    to_gguf(model_folder, tmp_path / "m.gguf")
    fields = {name: f.contents() for name, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    tok = load_tokenizer(model_folder)
    assert fields["tokenizer.ggml.eos_token_id"] == tok.eos_token_id and fields.get("tokenizer.chat_template") == tok.chat_template
    tokens = fields["tokenizer.ggml.tokens"]
    assert all(tokens[i] == tok.convert_ids_to_tokens(i) for i in range(0, len(tok), max(1, len(tok) // 500)))
    assert fields["tokenizer.ggml.token_type"][tok.eos_token_id] == gguf.TokenType.CONTROL


@settings(max_examples=30, deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 6), width=st.integers(1, 4))
def test_interleaving_puts_partners_side_by_side(heads, half, width):
    w = np.arange(heads * 2 * half * width).reshape(-1, width)
    out = interleave(w, heads).reshape(heads, 2 * half, width)
    for h, head in enumerate(w.reshape(heads, 2 * half, width)):
        assert all((out[h, 2 * i] == head[i]).all() and (out[h, 2 * i + 1] == head[half + i]).all() for i in range(half))


def test_scores_of_pieces_are_sentencepieces_own():
    """TinyLlama's own model file has the scores; those from its merges must put pieces in the same order."""
    folder = shared("tinyllama_tokenizer")
    tok = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in tok["merges"]]
    scores, own = piece_scores(tok["vocab"], merges), sentencepiece_scores((folder / "tokenizer.model").read_bytes())
    made = sorted({"".join(m) for m in merges}, key=lambda p: -scores[p])
    assert all(own[a] >= own[b] for a, b in zip(made, made[1:]))


def sentencepiece_scores(blob: bytes) -> dict:
    """Piece -> score from a SentencePiece model: field 1 of the message holds pieces, each with a text (1) and a float (2)."""
    def varint(i):
        value = shift = 0
        while True:
            value, shift, i = value | (blob[i] & 127) << shift, shift + 7, i + 1
            if not blob[i - 1] & 128: return value, i
    i, scores = 0, {}
    while i < len(blob) and blob[i] == 10:
        size, i = varint(i + 1)
        length, j = varint(i + 1)
        scores[blob[j:j + length].decode()] = np.frombuffer(blob[j + length + 1:j + length + 5], "<f4")[0]
        i += size
    return scores


def spoken(text: str, messages: list) -> str:
    """What Ollama's template makes of a conversation: Go's range and if, as far as our files use them."""
    body = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    inner, after = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*?)", body, re.DOTALL).groups()
    parts = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', inner, re.DOTALL))
    system = re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    if system and messages[0]["role"] != "system": messages = [dict(role="system", content=system[1]), *messages]
    return "".join(parts[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + after


TALK = [dict(role="user", content="I wake at three."), dict(role="assistant", content="That is hard."), dict(role="user", content="What can I do?")]


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m"])
@pytest.mark.parametrize("template", ["own", "chat", "scenario"])
def test_ollama_would_hear_what_the_template_says(name, template):
    tok = load_prompter(name, template)
    text = modelfile(tok, "m.gguf")
    assert f'PARAMETER stop "{tok.eos_token}"' in text and text.startswith("FROM ./m.gguf")
    for talk in (TALK[:1], TALK, [dict(role="system", content="Be kind."), *TALK]):
        try: said = tok.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        except Exception: continue
        if talk[0]["role"] == "system" and "Be kind." not in said: continue
        assert spoken(text, talk) == said.removeprefix(tok.bos_token if tok("").input_ids else "")


def test_a_template_that_cannot_be_taken_apart_is_left_out():
    assert frames(lambda messages, prompt: str(len(messages))) == {}


def test_bad_input_is_one_sentence_and_leaves_no_file(tmp_path):
    folder = tmp_path / "model"
    save_model(load_model("tiny"), load_tokenizer("tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    for change, words in ((dict(model_type="gpt2"), "only llama and mistral"), (dict(rope_parameters=dict(rope_type="yarn")), "yarn"), (dict(model_type="mistral", sliding_window=64), "sliding window"),
                          (dict(quantization_config=dict(quant_method="bitsandbytes")), "quantised")):
        (folder / "config.json").write_text(json.dumps(config | change))
        done = zenbot_here("export", folder, tmp_path / "out.gguf", home=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    (folder / "config.json").write_text(json.dumps(config))
    for args, words in (([tmp_path / "out.bin"], ".gguf"), ([tmp_path / "out.gguf", "--quant", "q3"], "no kind 'q3'"), ([], "Name either"), (["--hub", "nobody"], "ORG/NAME")):
        done = zenbot_here("export", folder, *args, home=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in zenbot_here("export", folder, tmp_path / "out.gguf", home=tmp_path).stderr
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_dry_run_names_what_would_go_up_and_refuses_pickles(tmp_path):
    folder = tmp_path / "model"
    save_model(load_model("tiny"), load_tokenizer("tiny"), folder)
    (folder / "optimizer.json").write_text("{}")
    done = push(folder, "somebody/model")
    assert done["url"] is None and {f["file"] for f in done["files"]} >= {"model.safetensors", "config.json", "tokenizer.json"} and "optimizer.json" not in str(done)
    with pytest.raises(BadInput, match="no model card"): push(folder, "somebody/model", dry_run=False)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match="pickles"): files_to_push(folder)


def test_a_push_sends_exactly_what_the_dry_run_named(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save_model(load_model("tiny"), load_tokenizer("tiny"), folder, {"README.md": "# card"})
    sent = {}

    class Api:
        def create_repo(self, repo, private, exist_ok): sent.update(repo=repo, private=private)
        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            sent["files"] = allow_patterns
            return type("Commit", (), dict(commit_url="https://huggingface.co/somebody/model/commit/1"))
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    done = push(folder, "somebody/model", dry_run=False)
    assert sent == dict(repo="somebody/model", private=True, files=[f["file"] for f in done["files"]]) and done["url"].endswith("/1")


@pytest.mark.parametrize("heads, kv, bias", [(4, 4, False), (6, 3, False), (8, 2, True)])
def test_smoothing_changes_no_answer(heads, kv, bias):
    """The factors of what writes a channel and of what reads it cancel, for any sharing of values between heads, with biases too; and the large channels do become smaller."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=heads * 8, intermediate_size=64, num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=kv, attention_bias=bias, mlp_bias=bias)
    model, texts = LlamaForCausalLM(config).eval(), [torch.randint(0, 97, (40,)).tolist() for _ in range(3)]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"): p.normal_()
            if "layernorm" in name: p[3] = 30
        before = model(torch.tensor(texts)).logits
        peaks = input_peaks(model, texts)
        factors = smoothing(model, peaks)
        for name, p in model.named_parameters(): p.mul_(factors.get(name, 1))
        assert (model(torch.tensor(texts)).logits - before).abs().max() < 1e-4 * before.abs().max()
    spread = lambda found: max(float(p.max() / p.median()) for n, p in found.items() if n.endswith("q_proj"))
    assert spread(input_peaks(model, texts)) < 0.6 * spread(peaks)


# ---- llama.cpp itself ----

@pytest.fixture(scope="module")
def llama(model_folder, tmp_path_factory):
    from llama_cpp import Llama
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    to_gguf(model_folder, path)
    return Llama(str(path), n_ctx=512, logits_all=True, verbose=False), load_model(model_folder, torch.float32), load_tokenizer(model_folder)


@needs_llama
def test_llama_cpp_says_what_transformers_says(llama):
    engine, model, _ = llama
    ids = torch.randint(3, min(model.config.vocab_size, 20000), (1, 64), generator=torch.Generator().manual_seed(0))
    engine.reset()
    engine.eval(ids[0].tolist())
    with torch.no_grad(): reference = model(ids).logits[0]
    found = torch.tensor(np.array(engine.scores[:64]))
    assert (found - reference).abs().max() <= 0.1 * reference.std() and (found.argmax(-1) == reference.argmax(-1)).float().mean() >= 0.98


@needs_llama
@pytest.mark.parametrize("text", ["Hello  world, it's 2024!", "I wake at three\nand worry — naïve café 🙂", "  leading", "tabs\tand\n\nlines", "日本語 текст", "1,234.56 don't"])
def test_llama_cpp_cuts_texts_alike(llama, text):
    engine, _, tok = llama
    assert engine.tokenize(text.encode(), add_bos=False, special=False) == tok(text, add_special_tokens=False).input_ids


@needs_llama
def test_k_quants(tmp_path):
    done = to_gguf(locate("smollm2-135m"), tmp_path / "m.gguf", "q4_k_m")
    assert done["mb"] < 130 and sum(done["tensors"].values()) == 272 and [p.name for p in tmp_path.iterdir() if "f16" in p.name] == []
