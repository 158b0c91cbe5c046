"""Shared by all tests: a finished smoke run, real data where it is there, and an environment that calls nobody."""
import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
STAGES = ["data", "stage1", "stage2", "pruning", "evaluation", "guard", "robustness"]


def shared(name: str) -> Path:
    """A file of the real data beside the clone; the test is skipped where it is not there."""
    if not (SHARED / name).exists():
        pytest.skip(f"real data {name} is not beside this clone")
    return SHARED / name


def offline(home: Path) -> dict:
    """An environment in which every Python can reach this machine and no other; who wanted to is in the file offline.log."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests/offline"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"ZENBOT_HOME": str(home), "ZENBOT_OFFLINE_LOG": str(home / "offline.log"), "PYTHONPATH": path}


def zenbot(*args, home: Path, **kwargs) -> subprocess.CompletedProcess:
    """Runs the command as a user would, with the network closed."""
    return subprocess.run([str(Path(sys.executable).parent / "zenbot"), *map(str, args)], capture_output=True, text=True, env=offline(home), cwd=home, **kwargs)


def zenbot_here(*args, home: Path) -> subprocess.CompletedProcess:
    """The same in this process, which need not load its libraries again: for commands that refuse."""
    from zenbot.cli import main
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("ZENBOT_HOME", str(home))
        patch.chdir(home)
        try: code = main([str(a) for a in args]) or 0
        except SystemExit as e: code = e.code or 0
    assert Path.cwd() == before
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def smoke(home) -> Path:
    """The folder of a smoke run: every stage notebook, executed by papermill through the command."""
    done = zenbot("run", "smoke", home=home)
    assert done.returncode == 0, done.stderr
    return home / "runs" / "smoke"
