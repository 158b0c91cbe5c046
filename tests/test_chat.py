"""A model that is what it says it is, and a conversation in which nobody hears the model unguarded."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from zenbot.adapters import add_lora, save_adapter
from zenbot.chat import PRESETS, fit, guarded, writer
from zenbot.core import BadInput
from zenbot.models import load_model, save_model
from zenbot.opening import models_here, open_model
from zenbot.prompts import load_prompter, render
from zenbot.terminal import HELP, converse, printable

CRISIS = "Nobody would miss me. I have said my goodbyes."


@pytest.fixture(scope="module")
def tok(): return load_prompter("tiny")


@pytest.fixture
def adapter(tmp_path, tok) -> Path:
    """An adapter of `tiny` that changes its answers."""
    model = add_lora(load_model("tiny", torch.float32), r=4, seed=1)
    for name, p in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=0.05)
    save_adapter(model, tok, tmp_path / "adapter", "tiny")
    return tmp_path / "adapter"


def user(text): return [dict(role="user", content=text)]


def test_a_whole_adapter_is_loaded_and_differs_from_its_base(adapter, tok):
    from peft import PeftModel
    found = open_model(adapter)
    assert (found.kind, found.base) == ("adapter", "tiny") and found.differs > 0.1
    reference = PeftModel.from_pretrained(load_model("tiny"), adapter).eval()
    ids = tok("I cannot sleep", return_tensors="pt").input_ids
    with torch.no_grad(): assert torch.equal(found.model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("damage, said", [
    (lambda f, w: f.unlink(), "no adapter_model.safetensors"),
    (lambda f, w: f.write_bytes(f.read_bytes()[:900]), "damaged"),
    (lambda f, w: f.write_bytes(b""), "damaged"),
    (lambda f, w: save_file(dict(list(w.items())[1:]), f), "1 tensors are missing"),
    (lambda f, w: save_file(w | {"more": torch.ones(2)}, f), "1 are foreign"),
    (lambda f, w: save_file({n: t[:1] if "lora_A" in n else t for n, t in w.items()}, f), "does not fit"),
    (lambda f, w: save_file({n: t * 0 for n, t in w.items()}, f), "changes nothing"),
    (lambda f, w: (f.parent / "adapter_config.json").write_text("{}"), "does not say which model"),
])
def test_a_damaged_adapter_is_an_error_and_never_its_base(adapter, damage, said):
    file = adapter / "adapter_model.safetensors"
    damage(file, load_file(file))
    with pytest.raises(BadInput, match=said): open_model(adapter)


def test_a_damaged_model_is_an_error(tmp_path, tok):
    save_model(load_model("tiny"), tok, tmp_path / "m")
    assert open_model(tmp_path / "m").kind == "model"
    file = tmp_path / "m/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cannot be loaded"): open_model(tmp_path / "m")


def test_a_run_stands_for_its_last_model(smoke, home, monkeypatch):
    monkeypatch.setenv("ZENBOT_HOME", str(home))
    assert open_model("runs/smoke").path == smoke / "final_merged_pruned"
    assert "runs/smoke/final_merged_pruned" in models_here() and "runs/smoke/lora_adapters" in models_here()
    assert open_model("runs/smoke/lora_adapters").base == str(smoke / "stage1_merged")
    (home / "runs/empty").mkdir()
    (home / "runs/empty/run.json").write_text("{}")
    with pytest.raises(BadInput, match="no model yet"): open_model("runs/empty")


def test_in_danger_the_model_is_not_asked():
    def write(messages): raise AssertionError("the model was asked")
    decision, pieces, replaced = guarded(write, user(CRISIS), "GB")
    assert decision["route"] == "crisis" and "".join(pieces) == decision["reply"] and not replaced


def test_an_answer_is_checked_and_counted():
    decision, pieces, replaced = guarded(lambda m: iter(["You have clinical depression."]), user("I feel flat and tired"), "GB")
    assert "".join(pieces) == decision["reply"] and replaced == {"diagnosis": 1}
    assert "".join(guarded(lambda m: iter(["That sounds ", "hard."]), user("I feel flat and tired"))[1]) == "That sounds hard."


@pytest.mark.parametrize("messages", [[], [dict(role="assistant", content="Hello")]])
def test_somebody_must_have_written(messages):
    with pytest.raises(BadInput, match="last message"): guarded(lambda m: iter([]), messages)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abc d", max_size=80), min_size=1, max_size=6), st.integers(60, 300))
def test_what_is_sent_to_the_model_fits_and_ends_with_the_question(tok, texts, room):
    messages = [dict(role="user" if i % 2 == 0 else "assistant", content=t) for i, t in enumerate(texts + [""] * (len(texts) % 2 == 0))]
    try: kept = fit(messages, tok, room, 8)
    except BadInput: assert len(tok(render(messages[-1:], tok, True), add_special_tokens=False).input_ids) > room - 8
    else:
        assert kept == messages[-len(kept):] and len(tok(render(kept, tok, True), add_special_tokens=False).input_ids) <= room - 8


def test_the_terminal_obeys_people_and_not_models(tmp_path):
    typed, shown = iter(["I lie awake", "/retry", "/save " + str(tmp_path / "a.json"), "/save " + str(tmp_path / "a.json"), "/what", "/new", "I dream", "/quit", "never"]), []
    messages = converse(lambda m: iter([f"\x1b[2J{m[-1]['content']}."]), lambda: next(typed), shown.append, system="Be kind.")
    assert [m["content"] for m in messages][0:2] == ["Be kind.", "I dream"] and next(typed) == "never"
    assert [m["role"] for m in json.loads((tmp_path / "a.json").read_text())] == ["system", "user", "assistant"]
    said = "".join(shown)
    assert "\x1b" not in said and said.count("I lie awake.") == 2 and "exists" in said and HELP in said
    assert printable("a\x00b\u202ec\n") == "abc\n"


def test_an_answer_stops_at_ctrl_c_and_the_conversation_goes_on():
    typed, shown = iter(["I lie awake", "And now?"]), []
    def ask():
        try: return next(typed)
        except StopIteration: raise EOFError from None
    def write(messages):
        yield "First. "
        if len(messages) == 1: raise KeyboardInterrupt
        yield "Second."
    messages = converse(write, ask, shown.append)
    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["First. ", "First. Second."] and "".join(shown).count("…") == 1


def test_a_seed_repeats_an_answer():
    opened = open_model("tiny")
    once, again, other = ("".join(writer(opened, 12, seed=s, **PRESETS["creative"])(user("I lie awake"))) for s in (1, 1, 2))
    assert once == again != other


def test_the_command_talks_and_names_what_is_wrong(tmp_path):
    command = [str(Path(sys.executable).parent / "zenbot"), "chat"]
    done = subprocess.run([*command, "tiny", "--country", "GB", "--max-new-tokens", "8"], input=f"I lie awake\n{CRISIS}\n", capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "Samaritans" in done.stdout and "tier 3, crisis" in done.stdout and "is an AI" in done.stderr, done.stderr
    for args, said in ((["nowhere"], "neither a folder nor a named model"), (["tiny", "--preset", "wild"], "no preset 'wild'"), (["tiny", "--country", "Narnia"], "is no country")):
        failed = subprocess.run([*command, *args], capture_output=True, text=True, cwd=tmp_path, input="")
        assert failed.returncode == 2 and said in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
