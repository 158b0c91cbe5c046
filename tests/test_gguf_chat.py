"""A GGUF file speaks through llama.cpp as any other model does: guarded, in pieces, in turn. Needs llama-cpp-python."""
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from test_serve import CRISIS, Listening, user

from zenbot.chat import guarded, writer
from zenbot.core import BadInput
from zenbot.llamacpp import to_gguf
from zenbot.models import locate
from zenbot.opening import open_model
from zenbot.serve import make_app


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    to_gguf(locate("tiny"), file, "f16")
    return open_model(file)


@pytest.fixture(scope="module")
def listening(opened):
    with Listening(make_app(opened, country="GB")) as found: yield found


def said(opened, messages, **rules):
    decision, pieces, _ = guarded(writer(opened, 12, **rules), messages)
    return decision["route"], "".join(pieces)


def test_it_says_the_same_twice_and_not_to_somebody_in_danger(opened):
    assert opened.kind == "gguf" and len(opened.sha256) == 64
    route, text = said(opened, user("I lie awake until four."))
    assert route == "support" and text == said(opened, user("I lie awake until four."))[1]
    asked = []
    decision, pieces, _ = guarded(lambda messages: asked.append(messages), user(CRISIS))
    assert decision["route"] == "crisis" and "".join(pieces) == decision["reply"] and not asked


def test_a_long_conversation_loses_its_oldest_turns_and_a_long_message_is_refused(opened):
    room = opened.model.n_ctx()
    turns = [t for i in range(room // 20) for t in (dict(role="user", content=f"I could not sleep in week {i} of this year."), dict(role="assistant", content="Thank you for telling me about it."))]
    assert len(opened.model.tokenize(" ".join(t["content"] for t in turns).encode())) > room
    assert "".join(writer(opened, 4)(turns + user("And now?"))) is not None
    with pytest.raises(BadInput, match="llama.cpp cannot answer this.*Send it in parts"):
        list(writer(opened, 4)(user("I cannot sleep. " * room)))


def test_a_damaged_file_is_an_error(opened, tmp_path):
    whole = opened.path.read_bytes()
    for name, content in (("cut", whole[:len(whole) // 2]), ("empty", b""), ("text", b"hello")):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(BadInput, match="gguf"): open_model(tmp_path / f"{name}.gguf")


def test_the_server_answers_whole_in_pieces_and_many_at_once(listening):
    ask = dict(messages=user("I lie awake until four."), max_tokens=8, temperature=0)
    whole = listening.post(**ask)
    assert whole.status_code == 200 and whole.headers["x-zenbot-route"] == "support"
    with httpx.stream("POST", f"{listening.url}/v1/chat/completions", json=ask | dict(stream=True), timeout=60) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    pieces = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines if line != "[DONE]"]
    assert lines[-1] == "[DONE]" and "".join(pieces) == whole.json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: listening.post(**ask).json()["choices"][0]["message"]["content"], range(8)))
    assert set(answers) == {whole.json()["choices"][0]["message"]["content"]}
    assert listening.post(messages=user(CRISIS)).headers["x-zenbot-route"] == "crisis"
