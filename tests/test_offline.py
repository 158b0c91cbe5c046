"""No default path calls anybody: the pipeline, the chat, the server and the app with all sockets closed but those of this machine."""
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from conftest import offline

COMMAND = str(Path(sys.executable).parent / "zenbot")


def called(home: Path) -> str: return (home / "offline.log").read_text() if (home / "offline.log").exists() else ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s: return s.getsockname()[1]


def test_the_network_is_really_closed(tmp_path):
    for call in ("socket.create_connection(('192.0.2.1', 80), 1)", "socket.getaddrinfo('example.org', 80)", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"):
        done = subprocess.run([sys.executable, "-c", f"import socket; {call}"], env=offline(tmp_path), capture_output=True, text=True)
        assert done.returncode == 1 and "closed for this test" in done.stderr
    assert called(tmp_path) == "192.0.2.1\nexample.org\n192.0.2.1\n"


def test_the_pipeline_calls_nobody(smoke, home):
    assert called(home) == ""   # nor did any command of the tests before this one


def test_the_chat_calls_nobody(tmp_path):
    done = subprocess.run([COMMAND, "chat", "tiny", "--max-new-tokens", "4"], input="I lie awake\n", env=offline(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and called(tmp_path) == "", done.stderr


@pytest.mark.parametrize("command, page", [(["serve", "tiny"], "/v1/models"), (["app"], "/")])
def test_what_listens_calls_nobody_and_listens_only_here(tmp_path, command, page):
    port = free_port()
    process = subprocess.Popen([COMMAND, *command, "--port", str(port)], env=offline(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 90
        while True:
            try: got = httpx.get(f"http://127.0.0.1:{port}{page}")
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < until, process.stderr.read()
                time.sleep(0.2)
            else: break
        import psutil
        listening = {c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN}
        assert got.status_code == 200 and listening == {"127.0.0.1"}
    finally:
        process.terminate()
        process.wait(20)
    assert called(tmp_path) == ""
