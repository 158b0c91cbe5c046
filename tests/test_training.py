"""The loss, the blocks, the adapters and the heads against references, on real (if small) models."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.core import Run
from zenbot.generation import generate_answers
from zenbot.measures import response_losses
from zenbot.models import load_model
from zenbot.prompts import load_prompter
from zenbot.pruning import head_norms, safe_zero_prune
from zenbot.scores import score
from zenbot.surgery import silence_heads
from zenbot.stage1 import pack
from zenbot.adapters import add_lora, merge
from zenbot.kernels import _ChunkedCrossEntropy
from zenbot.training import train


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 40), vocab=st.integers(2, 50), chunk=st.integers(1, 50), seed=st.integers(0, 99), head=st.booleans())
def test_chunked_loss_equals_full_logits(n, vocab, chunk, seed, head):
    g = torch.Generator().manual_seed(seed)
    states, weight = torch.randn(n, 8, generator=g, requires_grad=True), torch.randn(vocab, 8, generator=g, requires_grad=head)
    targets = torch.randint(vocab, (n,), generator=g)
    leaves = [states] + [weight] * head
    ours = _ChunkedCrossEntropy.apply(states, weight, targets, chunk)
    full = F.cross_entropy(states @ weight.T, targets, reduction="sum")
    assert torch.allclose(ours, full, atol=1e-4)
    for a, b in zip(torch.autograd.grad(ours * 3, leaves), torch.autograd.grad(full * 3, leaves)):
        assert torch.allclose(a, b, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(3, 9), max_size=20), max_size=8), st.integers(2, 16))
def test_packing_loses_no_token(documents, size):
    blocks = pack(documents, eos_token_id=2, block_size=size)
    stream = [t for d in documents for t in d + [2]]
    packed = [t for b in blocks for t in b["input_ids"]]
    assert packed == stream[:len(packed)] and len(stream) - len(packed) <= 1, "only a last block of one token has nothing to predict"
    assert all(len(b["input_ids"]) == size for b in blocks[:-1]) and all(b["labels"] == b["input_ids"] for b in blocks)


@pytest.fixture
def stories():
    """A trained model of 260 k parameters, and rows of a story as if they were answers."""
    from transformers import AutoTokenizer
    folder = shared("stories260k")
    tok = AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big red ball."
    ids = tok(text).input_ids
    rows = [dict(input_ids=ids[i:], labels=[-100] * 5 + ids[i + 5:]) for i in range(1, 9)]
    return load_model(folder, torch.float32), tok, rows


def test_the_loss_does_not_depend_on_the_batch(stories):
    model, tok, rows = stories
    one, many = (response_losses(model, rows, b, 0)[0] for b in (1, 8))
    assert np.allclose(one, many, rtol=1e-5) and one.sum() / sum(len(r["labels"]) - 5 for r in rows) < 2.5, "it knows this kind of story"


def test_accumulated_batches_give_the_step_of_one_large_batch(stories, tmp_path):
    """Rows of unequal length: normalising each batch by its own tokens would weight them differently."""
    _, tok, rows = stories
    rows = [dict(input_ids=r["input_ids"][:10 + 4 * i], labels=r["labels"][:10 + 4 * i]) for i, r in enumerate(rows)]
    weights = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = add_lora(load_model(shared("stories260k"), torch.float32), r=4, dropout=0.0)
        tok.pad_token_id = 0
        train(Run(tmp_path / str(batch)), "step", model, tok, rows, rows[:2], learning_rate=1e-2, max_steps=3, batch_size=batch, accumulate=accumulate,
              eval_steps=10, report_to="none", text=True)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.allclose(*weights, atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(stories, tmp_path, monkeypatch, dropout):
    """By hand the rows are shuffled, under autograd grouped by length; in neither may one epoch repeat the order of another."""
    from zenbot import training
    _, tok, rows = stories
    tok.pad_token_id, seen, loss = 0, [], training.ZenTrainer.compute_loss
    def watch(self, model, inputs, **kw):
        seen.append(tuple(sorted(inputs["attention_mask"].sum(1).tolist())))   # the rows have lengths of their own
        return loss(self, model, inputs, **kw)
    monkeypatch.setattr(training.ZenTrainer, "compute_loss", watch)
    model = add_lora(load_model(shared("stories260k"), torch.float32), r=4, dropout=dropout)
    train(Run(tmp_path), "order", model, tok, rows, rows[:2], epochs=4, batch_size=2, eval_steps=100, report_to="none", text=True)
    epochs = [seen[i:i + 4] for i in range(0, 16, 4)]
    assert len(seen) == 16 and all(sorted(n for b in e for n in b) == sorted(len(r["input_ids"]) for r in rows) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


def test_a_checkpoint_of_another_training_is_not_taken(stories, tmp_path):
    """Killed, then started with another LoRA scale or another base: the result is that of a fresh run."""
    from zenbot import training
    _, tok, rows = stories
    tok.pad_token_id = 0

    def weights(run, alpha=32, base_shift=0.0, kill=False):
        base = load_model(shared("stories260k"), torch.float32)
        base.get_decoder().layers[0].mlp.up_proj.weight.data += base_shift
        model = add_lora(base, r=4, alpha=alpha, dropout=0.0)
        real = training._Progress.on_step_end
        def dies(self, args, state, control, **kw):
            if state.global_step == 3: raise KeyboardInterrupt
        if kill: training._Progress.on_step_end = dies
        try: train(run, "same", model, tok, rows, rows[:2], learning_rate=1e-2, max_steps=4, batch_size=4, eval_steps=2, report_to="none", text=True)
        except KeyboardInterrupt: return None
        finally: training._Progress.on_step_end = real
        return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora" in n])

    weights(Run(tmp_path / "killed"), kill=True)
    assert list((tmp_path / "killed/checkpoints").glob("*/checkpoint-2/complete.json"))
    for change in (dict(alpha=8), dict(base_shift=0.01)):
        assert torch.equal(weights(Run(tmp_path / "killed"), **change), weights(Run(tmp_path / f"fresh{change}"), **change))


def test_a_model_whose_head_does_more_is_refused(stories):
    from zenbot.core import BadInput
    from zenbot.models import _with_plain_head
    model, _, _ = stories
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: 30 * torch.tanh(head(x) / 30)
    with pytest.raises(BadInput, match="Choose a Llama-like model"):
        _with_plain_head(model, "capped")


def test_merged_equals_adapter_and_a_bad_merge_is_refused(stories):
    _, _, rows = stories
    model = add_lora(load_model(shared("stories260k"), torch.float32), targets="all-linear")
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n: p.normal_(std=0.05)
    _, report = merge(model, rows)
    assert report["max_logit_difference"] < 1e-3 and report["top1_agreement"] == 1.0
    broken = add_lora(load_model(shared("stories260k"), torch.float32))
    broken.merge_and_unload = lambda safe_merge: silence_heads(broken.get_base_model(), [(l, h) for l in range(5) for h in range(8)]) and broken.get_base_model()
    with pytest.raises(ValueError, match="differs from the adapter"):
        merge(broken, rows)


def test_silencing_all_heads_of_a_layer_is_skipping_its_attention(stories):
    model, tok, rows = stories
    ids = torch.tensor([rows[0]["input_ids"]])
    silence_heads(model, [(2, h) for h in range(8)])
    zeroed = model(ids).logits
    model.get_decoder().layers[2].self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
    assert torch.equal(zeroed, model(ids).logits)


def test_importance_finds_the_heads_that_matter(stories):
    """Silencing the least important heads must hurt less than silencing the most important ones."""
    model, tok, rows = stories
    importance = score(model, rows)["heads"]
    ranked = sorted(((l, h) for l in range(5) for h in range(8)), key=lambda lh: importance[lh].item())
    losses = []
    for heads in (ranked[:10], ranked[-10:]):
        model = load_model(shared("stories260k"), torch.float32)
        silence_heads(model, heads)
        losses.append(response_losses(model, rows)[0].sum())
    assert losses[0] < losses[1]


def test_safe_pruning_steps_back_until_the_tolerance_holds(stories):
    model, tok, rows = stories
    generous = safe_zero_prune(load_model(shared("stories260k"), torch.float32), rows, rows, last_n=5, fraction=0.5, tolerance=99.0)
    strict = safe_zero_prune(model, rows, rows, last_n=5, fraction=0.5, tolerance=0.02)
    assert len(generous["silenced"]) == generous["wanted"] == 20
    assert len(strict["silenced"]) < 20 and strict["loss_after"] <= strict["loss_before"] + 0.02
    batch = {"input_ids": torch.tensor([rows[0]["input_ids"]]), "attention_mask": torch.ones(1, len(rows[0]["input_ids"]), dtype=torch.long)}
    assert (head_norms(model, batch) == 0).sum() == len(strict["silenced"]), "so many heads are really silent"


def test_batched_answers_equal_single_ones():
    model, tok = load_model("tiny", torch.float32), load_prompter("tiny")
    questions = [[{"role": "user", "content": "why " * n}] for n in (1, 9, 3, 30, 2)]
    batched = generate_answers(model, tok, questions, max_new_tokens=16, batch_size=5)
    single = [generate_answers(model, tok, [q], max_new_tokens=16)[0] for q in questions]
    assert [b["answer"] for b in batched] == [s["answer"] for s in single] and [b["tokens"] for b in batched] == [s["tokens"] for s in single]
