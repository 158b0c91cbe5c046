"""Many answers at once say what one at a time says: on every architecture, with penalties, adapters, draws and rows that leave."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (FalconConfig, Gemma2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, OPTConfig, Phi3Config, AutoModelForCausalLM)

import zenbot.generation
from zenbot.adapters import add_lora
from zenbot.decoder import CachedModel, LlamaCache, decoder_for
from zenbot.generation import batches, generate_answers, next_tokens, rules, stream_answer
from zenbot.models import load_model
from zenbot.prompts import load_prompter

SIZE = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.5)
WIDE = SIZE | dict(intermediate_size=48, num_key_value_heads=2)
SHAPES = dict(llama=LlamaConfig(**WIDE), biased=LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True), heads=MistralConfig(**WIDE | dict(num_attention_heads=6), head_dim=8, sliding_window=None),
              window=MistralConfig(**WIDE, sliding_window=8), neox=GPTNeoXConfig(**SIZE, intermediate_size=48), opt=OPTConfig(**SIZE | dict(max_position_embeddings=256), ffn_dim=48, word_embed_proj_dim=32),
              phi=Phi3Config(**WIDE), falcon=FalconConfig(**SIZE), gemma=Gemma2Config(**WIDE, head_dim=8, sliding_window=8))


def build(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.float32, attn_implementation="eager" if name == "gemma" else "sdpa").eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))   # biases too
    return model


MODELS = {name: build(name) for name in SHAPES}


def one_at_a_time(model, prompt, new, eos, **how):
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=new, do_sample=False, eos_token_id=eos, pad_token_id=0, **how)
    return out[0, len(prompt):].tolist()


def together(model, prompts, new, eos, seeds=None, **how):
    said = [[] for _ in prompts]
    for step in next_tokens(model, prompts, eos, new, rules(**how), seeds or [0] * len(prompts)):
        for i, token in step.items():
            said[i].append(token)
    return said


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_together_is_one_at_a_time(name, data):
    model = MODELS[name]
    head = data.draw(st.lists(st.integers(3, 59), max_size=6))
    prompts = [head + tail for tail in data.draw(st.lists(st.lists(st.integers(3, 59), min_size=1, max_size=12), min_size=1, max_size=6))]
    penalty = data.draw(st.sampled_from([1.0, 1.3]))
    plain = one_at_a_time(model, prompts[0], 10, None, repetition_penalty=penalty)
    eos = data.draw(st.sampled_from(plain))   # a token that comes, so that rows end at different steps
    assert together(model, prompts, 10, eos, repetition_penalty=penalty) == [one_at_a_time(model, p, 10, eos, repetition_penalty=penalty) for p in prompts]


def test_what_is_a_plain_llama_is_written_out_and_nothing_else():
    kinds = {name: type(decoder_for(model)) for name, model in MODELS.items()}
    assert {name for name, kind in kinds.items() if kind is LlamaCache} == {"llama", "biased", "heads"}
    assert {kind for kind in kinds.values()} == {LlamaCache, CachedModel}


def test_an_adapter_is_part_of_the_answer():
    model = add_lora(build("llama"), 4, 8, 0.0, ["q_proj", "v_proj", "down_proj"]).eval()
    before = together(model, [[5, 6, 7], [9, 8]], 8, -1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    after = together(model, [[5, 6, 7], [9, 8]], 8, -1)
    assert after != before and after == [one_at_a_time(model, p, 8, None) for p in ([5, 6, 7], [9, 8])]


def test_a_draw_does_not_depend_on_who_else_is_there():
    model, prompts = MODELS["llama"], [[3, 4, 5], [9], [7, 7, 7, 7, 7, 8]]
    how = dict(temperature=0.8, top_p=0.9)
    drawn = together(model, prompts, 12, 2, [11, 12, 13], **how)
    assert drawn == [together(model, [p], 12, 2, [s], **how)[0] for p, s in zip(prompts, [11, 12, 13])]
    assert drawn != together(model, prompts, 12, 2, [21, 22, 23], **how)


@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 64), st.integers(1, 20_000))
def test_batches_hold_every_prompt_once_within_the_budget(lengths, size, budget):
    found = batches(lengths, 16, size, budget)
    assert sorted(i for b in found for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or (len(b) <= size and len(b) * (max(lengths[i] for i in b) + 16) <= budget) for b in found)


def test_stream_is_the_answer_in_pieces():
    model, tok = load_model("tiny", torch.float32), load_prompter("tiny")
    pieces = list(stream_answer(model, tok, "I wake at three.", 24, temperature=0.7, seed=3))
    assert len(pieces) > 3 and "".join(pieces).strip() == generate_answers(model, tok, [[dict(role="user", content="I wake at three.")]], 24, temperature=0.7, seed=3)[0]["answer"]


def test_stream_never_shows_half_a_character(monkeypatch):
    tok = load_prompter("tiny")
    ids = tok("tea ☕ é").input_ids
    monkeypatch.setattr(zenbot.generation, "next_tokens", lambda *_: [{0: t} for t in ids])
    pieces = list(stream_answer(None, tok, "Hm."))
    assert len(pieces) < len(ids) and "".join(pieces) == "tea ☕ é" and not any("\ufffd" in p for p in pieces)
