"""The command around the loop: plan, train from YAML, launch; and a run that is told to stop."""
import difflib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import zenbot
from hypothesis import given, settings
from hypothesis import strategies as st

from zenbot.core import BadInput, package_dir, read_json
from zenbot.plan import DEVICES, memory_mb, plan, shape_of
from zenbot.script import KEYS, full_key, loop_settings, method_of, read_configs, read_overrides, resolve_keys

VALUES = {"int": st.integers(1, 10**6), "float": st.floats(1e-9, 1e3), "bool": st.booleans(), "str": st.sampled_from(["a", "b/c"]), "list": st.lists(st.sampled_from(["q_proj", "up_proj"]), min_size=1)}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_key_keeps_its_value_from_a_file_and_from_the_line(data):
    key = data.draw(st.sampled_from([k for k in KEYS if k != "evaluation_strategy"]))
    kind = KEYS[key][0]
    value = data.draw(VALUES[kind])
    assert resolve_keys({key: yaml.safe_load(yaml.safe_dump(value))})[key] == value
    text = str(value) if kind != "list" else "[" + ",".join(value) + "]"
    assert resolve_keys(read_overrides([f"--{key}", text]))[key] == value
    assert resolve_keys(read_overrides([f"--{key.split('.')[-1]}={text}"]))[key] == value


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(KEYS)), st.integers(0, 40), st.sampled_from("xyz"))
def test_a_typo_is_refused_with_the_key_that_was_meant(key, position, letter):
    typo = key[:position % len(key)] + letter + key[position % len(key):]
    if full_key(typo) in KEYS: return
    with pytest.raises(BadInput) as e:
        resolve_keys({typo: 1})
    assert f"'{typo}'" in str(e.value) and f"'{difflib.get_close_matches(typo, KEYS, 1)[0]}'" in str(e.value)


@pytest.mark.parametrize("given_, method", [({}, "lora"), ({"lora.use_lora": False}, "full"), ({"qlora.use_qlora": True}, "qlora4"), ({"qlora.use_qlora": True, "qlora.use_4bit": False}, "qlora8")])
def test_the_keys_name_the_method(given_, method):
    assert method_of(resolve_keys(given_)) == method


def test_every_setting_is_one_that_the_loop_takes():
    import inspect

    from transformers import TrainingArguments
    from zenbot.training import train
    known = set(inspect.signature(train).parameters) | set(TrainingArguments.__dataclass_fields__)
    assert set(loop_settings(resolve_keys({}))) <= known
    stopping = loop_settings(resolve_keys({"early_stopping_patience": 3, "metric_for_best_model": "perplexity", "evaluation_strategy": "epoch", "save_steps": 7}))
    assert stopping["best"] == "eval_perplexity" and stopping["eval_steps"] == 0 and stopping["save_steps"] == 0


@pytest.mark.parametrize("text, said", [("a: [", "not YAML"), ("- 1", "key: value"), ("learning_rate: fast", "learning_rate must be of type float"), ("num_train_epoch: 5", "did you mean 'num_train_epochs'"),
                                        ("lora: {rank: 8}", "no key 'lora.rank'"), ("evaluation_strategy: never", "steps, epoch or no")])
def test_a_wrong_file_is_one_sentence(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        resolve_keys(read_configs(tmp_path))


def test_a_key_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"): (tmp_path / f"{name}.yaml").write_text("seed: 1")
    with pytest.raises(BadInput, match="a.yaml and in b.yaml"):
        read_configs(tmp_path)


CONFIG = dict(model_name_or_path="tiny", max_input_length=256, max_steps=6, learning_rate="5e-3", evaluation_strategy="steps", eval_steps=3, logging_steps=2, report_to="none",
              per_device_train_batch_size=4, lora=dict(use_lora=True, r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]), load_best_model_at_end=True, adam_beta2=0.99)


def test_a_training_from_yaml(home, tmp_path):
    """What the second original project's users type; the adapter and the merged model load with plain peft and transformers."""
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    told = ["train", "--config_dir", tmp_path, "--train_file", "sample/counsel.jsonl", "--valid_file", "sample/unknown.jsonl", "--output_dir", tmp_path / "out", "--lora.r", "4", "--json"]
    done = zenbot(*told, home=home)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    out, log = Path(said["output_dir"]), read_json(tmp_path / "out/training_log.json")
    assert said["log"]["steps"] == 6 and said["rejected"] == len((out / "rejected.jsonl").read_text().splitlines())
    assert [e["step"] for e in log if "loss" in e] == [2, 4, 6] and {"perplexity", "learning_rate"} <= set(next(e for e in log if "loss" in e))
    assert {"tokens_per_s", "trainable_parameters", "peak_memory_mb", "best_step"} <= set(log[-1])
    config = read_json(out / "adapter/adapter_config.json")
    assert config["r"] == 4 and config["lora_alpha"] == 16 and sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    from transformers import AutoModelForCausalLM
    assert AutoModelForCausalLM.from_pretrained(out / "merged") and (out / "figures/loss.png").stat().st_size > 5000
    wrong = zenbot(*told, "--num_train_epoch", "5", home=home)
    assert wrong.returncode == 2 and "num_train_epochs" in wrong.stderr and "Traceback" not in wrong.stderr
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    nothing = zenbot("train", "--config_dir", tmp_path, "--train_file", empty, "--valid_file", "sample/unknown.jsonl", home=home)
    assert nothing.returncode == 2 and str(empty) in nothing.stderr and "Traceback" not in nothing.stderr


def test_the_help_of_train_lists_every_key(home):
    said = zenbot("train", "--help", home=home).stdout
    assert all(key in said for key in KEYS)


def test_a_plan_is_told_before_anything_is_loaded(home):
    done = zenbot("plan", "--model", "tinyllama", "--method", "qlora4", "--device", "t4", "--batch", "4", "--json", home=home)
    p = json.loads(done.stdout)
    assert done.returncode == 0 and p["fits"] and abs(sum(p["parts_mb"].values()) - p["total_mb"]) <= 6
    big = zenbot("plan", "--model", "tinyllama", "--method", "full", "--device", "t4", "--batch", "64", "--length", "2048", home=home)
    assert big.returncode == 1 and "It fits with" in big.stdout
    wrong = zenbot("plan", "--model", "tinyllama", "--device", "t5", home=home)
    assert wrong.returncode == 2 and ", ".join(DEVICES) in wrong.stderr


def test_a_plan_grows_with_what_costs_memory_and_its_advice_is_true():
    llama = shape_of("tinyllama")
    def total(*a, **k): return sum(memory_mb(llama, *a, **k).values())
    assert total("full", 4, 64) > total("lora", 4, 64) > total("qlora8", 4, 64) > total("qlora4", 4, 64)
    assert total("lora", 8, 64) > total("lora", 4, 64) > total("lora", 4, 64, checkpointing=True)
    p = plan("tinyllama", "full", "t4", batch=16, length=1024)
    assert not p["fits"] and p["advice"].startswith("It fits with batch 4 ") and "method lora" in p["advice"]
    again = plan("tinyllama", "lora", "t4", batch=4, length=1024)
    assert again["fits"] and again["advice"] == "It fits."


def test_a_run_that_is_told_to_stop_saves_and_goes_on(home, tmp_path):
    """SIGTERM to the command in the middle of a training: the notebook's process saves, leaves, and the next command ends with the weights of an undisturbed run."""
    shas, command = [], [str(Path(sys.executable).parent / "zenbot"), "run", "smoke", "--until", "stage1", "-p", "stage1.eval_steps=1", "-p", "stage1.epochs=6"]
    for name in ("undisturbed", "stopped"):
        process = subprocess.Popen([*command, "--run", str(tmp_path / name)], env=os.environ | {"ZENBOT_HOME": str(home)}, stderr=subprocess.PIPE, text=True, cwd=home)
        if name == "stopped":
            while process.poll() is None and not list((tmp_path / name).glob("checkpoints/stage1-*/checkpoint-*/complete.json")): time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=60)[1]
            assert process.returncode == 1 and "SIGTERM" in said and "Traceback" not in said, said
            assert list((tmp_path / name).glob("checkpoints/stage1-*/checkpoint-*/complete.json"))
            assert not subprocess.run(["pgrep", "-f", str(tmp_path / name)], capture_output=True).stdout, "nobody is left behind"
            process = subprocess.Popen([*command, "--run", str(tmp_path / name)], env=os.environ | {"ZENBOT_HOME": str(home)}, stderr=subprocess.PIPE, text=True, cwd=home)
        assert process.communicate(timeout=300) and process.returncode == 0
        from zenbot.core import sha256
        shas.append(sha256(tmp_path / name / "stage1_merged"))
    assert shas[0] == shas[1]


def test_a_launched_stage_is_the_same_stage(home, tmp_path):
    """`--launch` hands only the training steps to two processes, which hold the weights twice or (FSDP2) half each; the loss curves are those of one, for blocks of equal length and for rows of any."""
    config = yaml.safe_load((package_dir() / "templates/fsdp2.yaml").read_text())
    (tmp_path / "fsdp2.yaml").write_text(yaml.safe_dump(config | dict(use_cpu=True)))
    command = ["run", "smoke", "--until", "stage2", "-p", "stage1.dropout=0.0", "-p", "stage2.method=full"]
    accelerate, curves = f"{Path(sys.executable).parent}/accelerate launch --num_processes 2", {}
    for name, launch in (("one", []), ("two", ["--launch", accelerate]), ("sharded", ["--launch", f"{accelerate} --config_file {tmp_path / 'fsdp2.yaml'}"])):
        done = zenbot(*command, *launch, "--run", tmp_path / name, home=home)
        assert done.returncode == 0, done.stderr
        logs = [read_json(tmp_path / name / "results" / file) for file in ("stage1_training_log.json", "training_log.json")]
        assert {log[-1]["processes"] for log in logs} == {1 + (name != "one")}
        first, second = ([e["loss"] for e in log if "loss" in e] for log in logs)
        curves[name] = first + second[:-1]   # 63 rows make no whole last step of 4, and accelerate repeats one so that both processes have as many
    for name in ("two", "sharded"):
        assert len(curves["one"]) == len(curves[name]) > 20 and max(abs(a - b) for a, b in zip(curves["one"], curves[name])) < 1e-3
    failed = zenbot(*command, "--launch", "acellerate launch", "--run", tmp_path / "wrong", home=home)
    assert failed.returncode == 2 and "is not a command here" in failed.stderr
