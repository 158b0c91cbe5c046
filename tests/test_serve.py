"""The server: what OpenAI's client expects, nobody's answer mixed up with another's, the guard on every way in and out, and no request that brings it down."""
import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
import uvicorn

from zenbot.batcher import Batcher
from zenbot.chat import fit
from zenbot.core import BadInput
from zenbot.generation import spell, stream_answer
from zenbot.models import load_model
from zenbot.opening import open_model
from zenbot.prompts import render
from zenbot.serve import make_app, serve, until

CRISIS = "Nobody would miss me. I have said my goodbyes."


def user(text): return [dict(role="user", content=text)]


@pytest.fixture(scope="module")
def opened():
    return open_model("tiny")._replace(model=load_model("tiny", torch.float32))   # in bf16 a row may round otherwise beside others


class Listening:
    """An app behind a free port of this machine."""
    def __init__(self, app):
        self.app, self.socket = app, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started: time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)

    def post(self, **body): return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture(scope="module")
def listening(opened):
    with Listening(make_app(opened, country="GB")) as found: yield found


@pytest.fixture(scope="module")
def client(listening):
    from openai import OpenAI
    return OpenAI(base_url=f"{listening.url}/v1", api_key="any", max_retries=0)


def alone(opened, text, seed, tokens=12, temperature=0.7):
    prompt = render(user(text), opened.tokenizer, True)
    return "".join(stream_answer(opened.model, opened.tokenizer, text, tokens, temperature, 1.0, 1.1, seed)), zlib.crc32(prompt.encode())


def test_the_openai_client_gets_the_same_answer_whole_and_in_pieces(client, opened):
    ask = dict(model="tiny", messages=user("I lie awake until four."), max_tokens=12, seed=3)
    whole = client.chat.completions.create(**ask)
    pieces = list(client.chat.completions.create(**ask, stream=True, stream_options=dict(include_usage=True)))
    text = whole.choices[0].message.content
    assert text == "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == alone(opened, "I lie awake until four.", 3)[0]
    assert whole.zenbot["route"] == "support" and pieces[-2].model_extra["zenbot"]["tier"] == 0
    assert pieces[-1].usage == whole.usage and whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length"
    assert [m.id for m in client.models.list()] == ["tiny"]


def test_fifty_clients_with_four_questions_each_get_their_own_answers(listening, opened):
    questions = [(f"I woke {i} times and counted {j} sheep.", i * 4 + j) for i in range(50) for j in range(4)]
    expected = {q: alone(opened, *q)[0] for q in questions}
    def ask(i):
        found = {}
        for q in questions[4 * i:4 * i + 4]:
            got = listening.post(model="zenbot", messages=user(q[0]), max_tokens=12, seed=q[1])
            assert got.status_code == 200, got.text
            found[q] = got.json()["choices"][0]["message"]["content"]
        return found
    with ThreadPoolExecutor(50) as pool: found = {q: a for part in pool.map(ask, range(50)) for q, a in part.items()}
    assert {q: a for q, a in found.items() if expected[q]} == {q: a for q, a in expected.items() if a} and len(set(found.values())) > 150   # an empty answer is replaced


def test_in_danger_the_guard_answers_whole_and_in_pieces(listening):
    asked = []
    ask = listening.app.state.batcher.ask
    listening.app.state.batcher.ask = lambda *a, **k: asked.append(a) or ask(*a, **k)
    try:
        whole = listening.post(messages=user(CRISIS))
        streamed = listening.post(messages=user(CRISIS), stream=True)
        later = listening.post(messages=[*user(CRISIS), dict(role="assistant", content="I am here."), *user("What is the weather like?")])
    finally: listening.app.state.batcher.ask = ask
    assert not asked
    for got in (whole, streamed): assert (got.headers["x-zenbot-route"], got.headers["x-zenbot-tier"]) == ("crisis", "3")
    assert "116 123" in whole.json()["choices"][0]["message"]["content"] and "116 123" in streamed.text
    assert later.headers["x-zenbot-tier"] == "3", "danger stays through the conversation"


def test_an_answer_that_must_not_be_said_is_replaced(opened, monkeypatch):
    import zenbot.serve
    monkeypatch.setattr(zenbot.serve.Turn, "write", lambda self, messages: iter(["You have clinical depression. ", "Take all your pills."]))
    with Listening(make_app(opened)) as listening:
        got = listening.post(messages=user("I feel flat and tired")).json()
        streamed = listening.post(messages=user("I feel flat and tired"), stream=True).text
    assert got["zenbot"]["replaced"] == {"diagnosis": 1} and "depression" not in got["choices"][0]["message"]["content"] and "depression" not in streamed


@pytest.mark.parametrize("body, status", [
    ({}, 400), ({"messages": []}, 400), ({"messages": [{"role": "user"}]}, 400), ({"messages": [{"role": "wizard", "content": "Hi"}]}, 400), ({"messages": "Hi"}, 400),
    ({"messages": user("Hi"), "temperature": "hot"}, 400), ({"messages": user("Hi"), "temperature": 9}, 400), ({"messages": user("Hi"), "max_tokens": 0}, 400), ({"messages": user("Hi"), "n": 2}, 400),
    ({"messages": [dict(role="assistant", content="Hello")]}, 400), ({"messages": user("I sleep well. " * 3000), "max_tokens": 8}, 400),
    ({"messages": user("Hi"), "model": "../../etc/passwd"}, 404), ({"messages": user("Hi"), "model": "/etc/passwd\x00"}, 404), ({"messages": user("Hi"), "model": "runs/../tiny"}, 404)])
def test_what_cannot_be_answered_is_said_in_openais_shape(listening, body, status):
    got = listening.post(**body)
    assert got.status_code == status and got.json()["error"].keys() == {"message", "type", "param", "code"}, got.text
    assert "Traceback" not in got.text and "root:" not in got.text


def test_broken_bodies_and_cut_connections_leave_the_server_alive(listening):
    url = f"{listening.url}/v1/chat/completions"
    for raw in (b"{", b"\xff\xfe", b"[1, 2", b'{"messages": NaN}', b"[" * 5000):
        got = httpx.post(url, content=raw, headers={"content-type": "application/json"})
        assert got.status_code == 400 and got.json()["error"]["message"], raw[:10]
    large = json.dumps(dict(messages=user("x" * 10_000_000))).encode()
    assert httpx.post(url, content=large, timeout=30).status_code == 413
    assert httpx.post(url, content=(large[i:i + 65536] for i in range(0, len(large), 65536)), timeout=30).status_code == 413   # no Content-Length
    for n in (20, 200):   # in the head, in the body
        with socket.create_connection(listening.socket.getsockname()) as s: s.sendall((b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"{" * 500)[:n])
    assert httpx.get(f"{listening.url}/healthz").json()["status"] == "ok" and listening.post(messages=user("Hi"), max_tokens=2).status_code == 200


def test_who_goes_away_frees_the_row(opened):
    with Listening(make_app(opened, most_tokens=1900)) as listening:
        batcher = listening.app.state.batcher
        opened.tokenizer.eos_token_id, eos = 0, opened.tokenizer.eos_token_id   # this answer would be long
        try:
            for stream in (True, False):
                body = json.dumps(dict(messages=user("I lie awake"), max_tokens=1900, stream=stream)).encode()
                with socket.create_connection(listening.socket.getsockname()) as s:
                    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    while not batcher.writing: time.sleep(0.005)
                    count = batcher.running.asked[0]
                until_ = time.monotonic() + 5
                while batcher.writing and time.monotonic() < until_: time.sleep(0.02)
                assert not batcher.writing and count.count < 1900, "the row was left to itself"
        finally: opened.tokenizer.eos_token_id = eos


def test_a_key_is_asked_for_and_too_many_are_told_to_come_again(opened):
    with Listening(make_app(opened, key="secret", most_requests=1)) as listening:
        url = f"{listening.url}/v1/models"
        assert httpx.get(url).status_code == httpx.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Bearer secret"}).status_code == 200 and httpx.get(f"{listening.url}/healthz").status_code == 200
        assert listening.post(messages=user(CRISIS)).status_code == 401
        ask = lambda i: httpx.post(f"{listening.url}/v1/chat/completions", json=dict(messages=user("I lie awake"), max_tokens=60), headers={"Authorization": "Bearer secret"}, timeout=60)
        with ThreadPoolExecutor(8) as pool: got = list(pool.map(ask, range(8)))
        codes = {g.status_code for g in got}
        assert codes == {200, 503} and all(g.headers["retry-after"] for g in got if g.status_code == 503)


def test_a_model_that_fails_gives_a_sentence_and_lives_on(opened):
    with Listening(make_app(opened)) as listening:
        batcher, model = listening.app.state.batcher, opened.model
        batcher.model = None
        whole, streamed = listening.post(messages=user("I lie awake")), listening.post(messages=user("I lie awake"), stream=True)
        batcher.model = model
        assert whole.status_code == 500 and "findahelpline.com" in whole.json()["error"]["message"] and "Traceback" not in whole.text
        assert "findahelpline.com" in streamed.text and listening.post(messages=user("I lie awake"), max_tokens=2).status_code == 200


def test_a_guard_that_fails_answers_kindly(listening, monkeypatch):
    import zenbot.guard
    monkeypatch.setattr(zenbot.guard, "read_message", lambda *a, **k: 1 / 0)
    got = listening.post(messages=user("I lie awake"))
    assert got.headers["x-zenbot-route"] == "check_in" and "are you safe" in got.json()["choices"][0]["message"]["content"]


def test_script_in_a_message_comes_back_as_text_only(listening):
    got = listening.post(messages=user("<script>alert(1)</script> I cannot sleep"), max_tokens=4)
    assert got.headers["content-type"] == "application/json" and got.headers["x-content-type-options"] == "nosniff"
    echo = listening.post(model="<script>alert(1)</script>", messages=user("Hi"))
    assert echo.status_code == 404 and "<script>" not in echo.text


def test_fields_of_other_clients_are_understood_or_passed_over(listening):
    plain = dict(messages=[dict(role="system", content="Be kind."), *user("I lie awake until four.")], max_tokens=12, seed=3)
    parts = dict(messages=[dict(role="developer", content="Be kind."), dict(role="user", content=[dict(type="text", text="I lie awake until four.")])], max_completion_tokens=12, seed=3, n=None, stream=None, user="me", frequency_penalty=0, tools=[])
    one, other = listening.post(**plain).json(), listening.post(**parts).json()
    assert one["choices"] == other["choices"] and one["usage"] == other["usage"]
    word = one["choices"][0]["message"]["content"][2:5]
    cut = listening.post(**plain | dict(stop=word)).json()["choices"][0]
    assert cut["message"]["content"] == one["choices"][0]["message"]["content"].split(word)[0] and cut["finish_reason"] == "stop"


def test_an_answer_that_takes_too_long_ends_where_it_is(opened):
    with Listening(make_app(opened, most_tokens=1900, seconds=0.3)) as listening:
        opened.tokenizer.eos_token_id, eos = 0, opened.tokenizer.eos_token_id
        try: got = listening.post(messages=user("I lie awake")).json()
        finally: opened.tokenizer.eos_token_id = eos
    assert got["choices"][0]["finish_reason"] == "length" and 0 < got["usage"]["completion_tokens"] < 1900


def test_what_was_replaced_is_not_written_to_its_end(opened, monkeypatch):
    import zenbot.chat
    monkeypatch.setattr(zenbot.chat, "check_stream", lambda pieces, reply, tier, count: (count.update(["diagnosis"]), next(iter(pieces)), iter([reply]))[-1])
    with Listening(make_app(opened, most_tokens=1900)) as listening:
        opened.tokenizer.eos_token_id, eos = 0, opened.tokenizer.eos_token_id
        try:
            got = listening.post(messages=user("I lie awake")).json()
            until_ = time.monotonic() + 5
            while listening.app.state.batcher.writing and time.monotonic() < until_: time.sleep(0.02)
            assert not listening.app.state.batcher.writing
        finally: opened.tokenizer.eos_token_id = eos
    assert got["choices"][0]["finish_reason"] == "stop" and got["zenbot"]["replaced"] == {"diagnosis": 1} and got["usage"]["completion_tokens"] < 200


def test_no_log_holds_what_anybody_wrote(listening, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    listening.post(messages=user("I lie awake here in Zanzibar"), max_tokens=2)
    monkeypatch.setattr(listening.app.state.batcher, "model", None)
    assert listening.post(messages=user("I lie awake here in Zanzibar"), max_tokens=2).status_code == 500
    assert "Zanzibar" not in caplog.text and "A request failed" in caplog.text


def test_an_answer_given_up_lets_its_reader_go(opened):
    batcher = Batcher(opened.model, opened.tokenizer, rows=1)
    first, queued = (batcher.ask(opened.tokenizer("I lie awake").input_ids, n) for n in (500, 5))
    queued.give_up()
    assert list(queued) == []
    first.give_up()
    assert len(list(first)) < 500
    batcher.close()
    assert list(batcher.ask([5], 3)) == []


@pytest.mark.parametrize("pieces, stops, text", [(["ab", "cd"], [], "abcd"), (["ab", "cd"], ["bc"], "a"), (["a#", "#", "#b"], ["###"], "a"), (["a#", "#b"], ["###"], "a##b"), (["x"], ["longer than all"], "x"), (["ab"], ["b", "a"], "")])
def test_stop_words_end_the_text_before_them(pieces, stops, text):
    ended = []
    assert "".join(until(pieces, stops, lambda: ended.append(1))) == text and bool(ended) == (text != "".join(pieces))


def test_rows_that_come_and_go_hear_what_they_would_hear_alone(opened):
    """Different lengths, rules and moments; the cache forgets the columns of those who left."""
    tok, batcher = opened.tokenizer, Batcher(opened.model, opened.tokenizer, rows=5)
    asks = [("I wake. " * (1 + 7 * (i % 4)), 4 + 9 * (i % 3), [0.0, 0.8][i % 2], i) for i in range(24)]
    def prompt(text): return tok(render(user(text), tok, True), add_special_tokens=False).input_ids
    asked = []
    for i, (text, n, t, seed) in enumerate(asks):
        asked.append(batcher.ask(prompt(text), n, t, 1.0, 1.1, seed=seed + zlib.crc32(render(user(text), tok, True).encode())))
        if i % 3 == 0: time.sleep(0.02)
    got = ["".join(spell(tok, a)) for a in asked]
    assert got == ["".join(stream_answer(opened.model, tok, text, n, t, 1.0, 1.1, seed)) for text, n, t, seed in asks]
    batcher.close()


def test_others_can_only_reach_it_with_a_key(opened):
    with pytest.raises(BadInput, match="set a key"): serve(opened, host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(BadInput, match="another one with --port"): serve(opened, port=taken.getsockname()[1])


def test_the_app_too_asks_for_a_key_where_others_can_reach_it():
    from zenbot.app import launch_app
    with pytest.raises(BadInput, match="set a key"): launch_app(host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as free: port = free.getsockname()[1]
    page = launch_app(port, key="a secret", wait=False)
    try:
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/config").status_code == 401
        assert httpx.post(f"{url}/login", data=dict(username="zenbot", password="wrong")).status_code == 400
        with httpx.Client() as client:
            assert client.post(f"{url}/login", data=dict(username="zenbot", password="a secret")).status_code == 200 and client.get(f"{url}/config").status_code == 200
    finally: page.close()


def test_the_interface_is_what_it_says(opened):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(opened, most_tokens=2))
    checks = [not_a_server_error, content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance]
    called = []
    for operation in schema.get_all_operations():
        operation = operation.ok()
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        @given(case=operation.as_strategy())
        def check(case):
            called.append(operation.path)
            case.call_and_validate(checks=checks)
        check()
    assert {"/healthz", "/v1/models", "/v1/chat/completions"} == set(called)
