"""Whatever is given, the answer is one clear paragraph, the exit code says whose fault it was, and nothing is lost."""
import json

import pytest
from conftest import zenbot, zenbot_here

GOOD = [{"prompt": f"I wake at {n} o'clock and worry about thing {n * 7}.", "response": f"Then give worry {n} its own quarter of an hour by day."} for n in range(1, 13)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of every kind that nobody should give; the runs in it share their first stage."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.jsonl").touch()
    (folder / "garbage.jsonl").write_text("what\n{]\n\x00\x01\n")
    (folder / "no_text").mkdir()
    (folder / "no_text/picture.png").write_bytes(b"\x89PNG")
    (folder / "no_weights").mkdir()
    (folder / "no_weights/config.json").write_text('{"model_type": "llama"}')
    (folder / "broken.yaml").write_text("stage1: [1, 2")
    (folder / "list.yaml").write_text("- stage1")
    return folder


@pytest.mark.parametrize("args, words", [
    (["run", "demoo"], ["no profile 'demoo'", "did you mean 'demo'"]),
    (["run", "smoke", "-p", "stage2.epochz=3"], ["no parameter 'epochz'", "did you mean 'epochs'"]),
    (["run", "smoke", "-p", "stage2.epochs=many"], ["stage2.epochs must be of type float", "many"]),
    (["run", "smoke", "-p", "stagetwo.epochs=1"], ["no stage 'stagetwo'"]),
    (["run", "smoke", "-p", "epochs"], ["not of the form stage.key=value"]),
    (["run", "smoke", "--until", "stage9"], ["no stage 'stage9'"]),
    (["run", "smoke", "-p", "data.train_file=missing.jsonl"], ["no file or folder 'missing.jsonl'"]),
    (["run", "smoke", "-p", "data.train_file=empty.jsonl"], ["empty.jsonl has no usable row", "empty"]),
    (["run", "smoke", "-p", "data.train_file=garbage.jsonl"], ["garbage.jsonl has no usable row", "line 1: not JSON", "line 3"]),
    (["run", "smoke", "-p", "data.corpus=no_text"], ["no_text holds no text"]),
    (["run", "smoke", "-p", "data.train_file=no_text"], ["is a folder"]),
    (["run", "smoke", "-p", "stage1.model=no_weights"], ["no_weights holds no weights"]),
    (["run", "smoke", "-p", "stage1.model=no_text"], ["no_text holds no model", "config.json"]),
    (["run", "smoke", "-p", "stage1.model=nobody/knows-this-model"], ["neither a folder nor a named model"]),
    (["run", "smoke", "-p", "stage1.template=sonnet"], ["no template 'sonnet'"]),
    (["run", "smoke", "-p", "stage2.targets=[no_such_layer]"], ["LoRA cannot be added", "no_such_layer"]),
    (["run", "broken.yaml"], ["broken.yaml is not YAML"]),
    (["run", "list.yaml"], ["must hold a section per stage"]),
    (["status", "runs/nothing"], ["no run in"]),
    (["notebooks", "no_weights"], ["not an empty folder"]),
])
def test_bad_input_is_one_sentence(args, words, folder):
    done = zenbot_here(*args, home=folder)
    assert done.returncode == 2, done.stderr
    message = done.stderr[done.stderr.index("zenbot:"):]
    assert all(w in message for w in words), message
    assert "Traceback" not in done.stderr and len(message.strip().splitlines()) == 1
    assert not list(folder.rglob(".*.tmp"))


def test_a_file_that_is_half_garbage_gives_its_good_rows(tmp_path):
    lines = [x for row in GOOD for x in (json.dumps(row), "garbage")]
    (tmp_path / "half.jsonl").write_text("\n".join(lines))
    done = zenbot("run", "smoke", "--until", "data", "-p", "data.train_file=half.jsonl", "-p", "data.unlearn_file=", home=tmp_path)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "runs/smoke/data"
    count = lambda name: len((data / name).read_text().splitlines())
    assert count("rejected.jsonl") == 12 and sum(count(f"{s}.jsonl") for s in ("train", "valid", "test")) == 12
    assert json.loads((data / "rejected.jsonl").read_text().splitlines()[0])["line"] == 2
