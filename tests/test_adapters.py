"""Methods, adapters and their merges: what is saved, merged or launched is what was trained; what is frozen stays."""
import hashlib

import pytest
import torch
from peft import PeftModel

from zenbot.adapters import METHODS, add_lora, adapter_config, empty_like, keep, load_base, merge, save_adapter
from zenbot.core import BadInput, Run
from zenbot.doctor import fit_rows
from zenbot.kernels import handwritten, labelled_loss
from zenbot.models import load_model
from zenbot.prompts import load_prompter, tokenize_rows
from zenbot.rows import load_rows
from zenbot.training import train


@pytest.fixture(scope="module")
def tok():
    return load_prompter("tiny")


@pytest.fixture(scope="module")
def rows(tok):
    return fit_rows(tokenize_rows(load_rows("sample/counsel.jsonl")[0], tok, 192)[0])[0][:40]


def weights_of(model) -> str:
    """Hash of everything that is frozen."""
    sha = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad: sha.update(name.encode() + p.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def learn(model, tok, rows, folder, **settings):
    options = dict(learning_rate=1e-2, max_steps=24, batch_size=4, eval_steps=100, report_to="none") | settings
    return train(Run(folder), "learn", model, tok, rows[:32], rows[32:], **options)


def loss_curve(log): return [e["loss"] for e in log if "loss" in e]


OPTIONS = [dict(), dict(rslora=True, targets="all-linear"), dict(dora=True), dict(init="pissa"), dict(init="eva"), dict(init="gaussian"), dict(new_tokens=(5, 9))]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: str(o) or "lora")
def test_saved_or_merged_it_is_what_was_trained(tok, rows, tmp_path, options):
    """Trained for real, the adapter loaded again beside a fresh base and the merged model give the same logits; nothing frozen has moved."""
    model = add_lora(load_base("tiny", "full"), r=4, dropout=0.0, **options | (dict(rows=rows[:8]) if options.get("init") == "eva" else {}))
    before, ids = weights_of(model), torch.tensor([rows[0]["input_ids"]])
    learn(model, tok, rows, tmp_path / "run", max_steps=6)
    assert weights_of(model) == before
    with torch.no_grad():
        logits = model.eval()(ids).logits
        save_adapter(model, tok, tmp_path / "adapter", "tiny")
        again = PeftModel.from_pretrained(load_model("tiny", torch.float32), tmp_path / "adapter").eval()(ids).logits
        merged, _ = merge(model, rows[:2])
        assert (logits - load_model("tiny", torch.float32)(ids).logits).abs().max() > 0.1, "it has learned something"
        assert (logits - again).abs().max() < 1e-3
        assert (logits - merged(ids).logits).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["qlora8", "qlora4"])
def test_quantised_lora_learns_as_dense_lora_does(tok, rows, tmp_path, method):
    falls = {}
    for m in ("lora", method):
        model = add_lora(load_base("tiny", m), r=8, dropout=0.0, targets="all-linear")
        assert m == "lora" or handwritten(model)
        before = weights_of(model)
        log = learn(model, tok, rows, tmp_path / m)
        assert weights_of(model) == before, "the base is frozen"
        losses = [e["eval_loss"] for e in log if "eval_loss" in e]
        falls[m] = losses[0] - losses[-1]
    assert falls["lora"] > 0.05 and abs(falls[method] / falls["lora"] - 1) < 0.05, falls
    merged, report = merge(model, rows[32:], base="tiny")
    assert report["base"] in ("full precision", "dequantised") and report["loss"][report["base"]] == min(report["loss"].values())
    assert not getattr(merged, "is_quantized", False) and abs(min(report["loss"].values()) - report["loss_before_merge"]) < 0.05
    with pytest.raises(BadInput, match="which model"):
        merge(model, rows)


def test_by_hand_a_quantised_step_is_the_plain_one(rows):
    """The hand-written layers unpack NF4 weights as bitsandbytes does; the plain way is the model's own forward."""
    from zenbot.prompts import collate
    batch = collate(rows[:4], 0)
    grads = []
    for by_hand in (True, False):
        model = add_lora(load_base("tiny", "qlora4"), r=4, dropout=0.0, seed=1).train()
        for n, p in model.named_parameters():
            if "lora_B" in n: p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))) * 0.1
        if by_hand: total = labelled_loss(model, batch)[0]
        else:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
            total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
        total.backward()
        grads.append(torch.cat([p.grad.float().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.999


def test_full_fine_tuning_moves_every_weight(tok, rows, tmp_path):
    model = load_base("tiny", "full")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    log = learn(model, tok, rows, tmp_path / "run", learning_rate=1e-3)
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters()) and {p.dtype for p in model.parameters()} == {torch.float32}
    losses = [e["eval_loss"] for e in log if "eval_loss" in e]
    assert losses[-1] < losses[0] - 0.05
    assert keep(model, tok, rows[:2], tmp_path / "adapter", tmp_path / "whole", "tiny") == {}
    assert load_model(tmp_path / "whole") is not None and (tmp_path / "adapter" / "full.json").exists()


def test_lora_plus_gives_b_its_own_rate(tok, rows, tmp_path):
    """With a ratio of 1 it is plain LoRA; with 16 the B weights move further in the first steps."""
    moved = {}
    for ratio in (1.0, 16.0):
        model = add_lora(load_base("tiny", "full"), r=4, dropout=0.0)
        learn(model, tok, rows, tmp_path / str(ratio), max_steps=3, lora_plus=ratio, learning_rate=1e-4, warmup=0, schedule="constant")
        moved[ratio] = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora_B" in n]).norm()
    assert 10 < moved[16.0] / moved[1.0] < 22


def test_neftune_is_on_in_training_and_off_in_validation(tok, rows, tmp_path):
    logs = {alpha: learn(add_lora(load_base("tiny", "full"), r=4, dropout=0.0), tok, rows, tmp_path / str(alpha), max_steps=2, neftune_noise_alpha=alpha) for alpha in (None, 20.0)}
    assert loss_curve(logs[None])[0] != loss_curve(logs[20.0])[0]
    assert logs[None][0]["eval_loss"] == logs[20.0][0]["eval_loss"], "before the first step the two are one model"


def test_a_described_adapter_can_be_made_again():
    for options in (dict(), dict(rslora=True, targets="all-linear"), dict(dora=True), dict(new_tokens=(5, 9))):
        base = load_base("tiny", "lora")
        model = add_lora(base, r=4, alpha=8, dropout=0.1, **options)
        from zenbot.models import locate
        again = empty_like(locate("tiny"), base.dtype, adapter_config(model))
        def shapes(m): return {n: (p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()}
        assert shapes(again) == shapes(model) and adapter_config(again) == adapter_config(model)
    assert adapter_config(load_base("tiny", "full")) == {}


def test_early_stopping_and_the_best_weights(tok, rows, tmp_path):
    """With a rate that ruins the model the validation loss rises: training stops early, and the weights of the best validation come back."""
    model = add_lora(load_base("tiny", "full"), r=8, dropout=0.0, targets="all-linear")
    log = learn(model, tok, rows, tmp_path / "run", learning_rate=0.3, schedule="constant", max_steps=60, eval_steps=2, best="eval_loss", patience=3)
    losses = {e["step"]: e["eval_loss"] for e in log if "eval_loss" in e and e["step"]}
    best = min(losses, key=losses.get)
    assert log[-1]["steps"] < 60 and log[-1]["best_step"] == best
    from zenbot.measures import response_losses
    nats, counts = response_losses(model, rows[32:], 4)
    assert abs(nats.sum() / counts.sum() - losses[best]) < 1e-4


@pytest.mark.parametrize("wrong, said", [(dict(init="pizza"), "default, gaussian, pissa"), (dict(targets=["q_project"]), "names of linear layers"), (dict(init="eva"), "give it some"),
                                         (dict(init="pissa", dora=True), "neither with DoRA")])
def test_what_cannot_be_added_is_told(wrong, said):
    with pytest.raises(BadInput, match=said):
        add_lora(load_base("tiny", "full"), **wrong)


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(BadInput, match="full, lora, qlora8, qlora4"):
        load_base("tiny", "qlora2")
    assert set(METHODS) == {"full", "lora", "qlora8", "qlora4"}
