"""The remote model against a real small server on this machine that answers like OpenAI's API."""

import contextlib
import dataclasses
import json
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from recsys.errors import ModelError, SpecError
from recsys.lm import LMConfig, RemoteLM, ReplayLM, load_lm
from recsys.protocols import LanguageModel, Score
from recsys.settings import Settings

KEY = "sk-very-secret-0123456789"


def logprob(text: str, at: int) -> float:
    """The server's language model: a letter is a token; its log probability depends on the letter before."""
    return -((ord(text[at]) + 3 * ord(text[at - 1])) % 50 + 1) / 10


def after(prompt: str, answer: str) -> Score:
    whole = prompt + answer
    return Score(sum(logprob(whole, at) for at in range(max(len(prompt), 1), len(whole))), len(answer) - (not prompt))


NEXT = {" B": -0.5, "▁A": -2.0, "A": -1.5, "the": -3.0, "C.": -4.0}
"""The server's likeliest next tokens, whatever the prompt."""


class Server(ThreadingHTTPServer):
    """`ways`: which ways of scoring are offered; `plan`: statuses to answer first, before all goes well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ways: set[str] = {"echo"}
        self.plan: list[int] = []
        self.delay = 0.0
        self.raw: bytes | None = None
        self.says = f"no: key {KEY} is bad"
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.add(self.headers["Authorization"])
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
            status = self.server.plan.pop(0) if self.server.plan else 200
        time.sleep(self.server.delay)
        if status != 200:
            self.answer(status, {"error": {"message": self.server.says}})
        elif self.server.raw is not None:
            self.answer(200, self.server.raw)
        elif self.path == "/v1/chat/completions":
            text = body["messages"][0]["content"].upper() + ". and more"
            if "choice" in self.server.ways and "structured_outputs" in body:
                text = body["structured_outputs"]["choice"][-1]
            message = {"role": "assistant", "content": text if "mute" not in text.lower() else None}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            if "next in chat" in self.server.ways and body.get("logprobs"):
                rows = [{"token": token, "logprob": value, "bytes": None} for token, value in NEXT.items()]
                choice["logprobs"] = {"content": [{**rows[0], "top_logprobs": rows}], "refusal": None}
            facts = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            self.answer(200, facts | self.usage(len(text)))
        elif self.path in ("/v1/rerank", "/v1/score"):
            self.relevance(body)
        else:
            self.complete(body)
        with self.server.lock:
            self.server.busy -= 1

    def usage(self, received: int) -> dict[str, Any]:
        counted = {"prompt_tokens": 1000, "completion_tokens": received, "total_tokens": 1000 + received}
        return {"usage": counted} if "usage" in self.server.ways else {}

    def relevance(self, body: dict[str, Any]) -> None:
        """A document's score is its length less the query's; rows come best first, as servers send them."""
        way = self.path.rsplit("/", 1)[1]
        if way not in self.server.ways:
            return self.answer(404, {"error": {"message": "no such path"}})
        query, texts = (
            body["query" if way == "rerank" else "text_1"],
            body["documents" if way == "rerank" else "text_2"],
        )
        key = "relevance_score" if way == "rerank" else "score"
        rows = [{"index": i, key: len(text) - len(query)} for i, text in enumerate(texts) if "@@lost" not in text]
        rows.sort(key=lambda row: -row[key])
        self.answer(200, {"id": "1", "model": "m", "results" if way == "rerank" else "data": rows} | self.usage(0))

    def complete(self, body: dict[str, Any]) -> None:
        text, choice = body["prompt"], {"index": 0, "finish_reason": "length", "text": "!", "logprobs": None}
        if body.get("echo") and "refuses echo" in self.server.ways:
            return self.answer(400, {"error": {"message": "echo is not supported"}})
        values = [None, *(logprob(text, at) for at in range(1, len(text)))]
        if body.get("echo") and "echo" in self.server.ways:
            choice["text"] = text + "!"
            choice["logprobs"] = {
                "tokens": [*text, "!"],
                "token_logprobs": [*values, -9.0],
                "text_offset": list(range(len(text) + 1)) if "offsets" in self.server.ways else None,
                "top_logprobs": None,
            }
        if "next" in self.server.ways and body.get("logprobs") == 20:
            choice["logprobs"] = {
                "tokens": ["!"],
                "token_logprobs": [-1.0],
                "text_offset": [0],
                "top_logprobs": [NEXT if "@@far" not in text else {"!": -1.0}],
            }
        if "prompt_logprobs" in body and "prompt_logprobs" in self.server.ways:
            choice["prompt_logprobs"] = [
                None if value is None else {str(ord(c)): {"logprob": value, "rank": 1, "decoded_token": c}}
                for c, value in zip(text, values, strict=True)
            ]
        self.answer(200, {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    def answer(self, status: int, content: dict[str, Any] | bytes) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client gave up waiting
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def lm(server: Server) -> Iterator[RemoteLM]:
    settings = Settings(lm_url=server.url, lm_api_key=SecretStr(KEY), lm_timeout_s=20)
    lm = load_lm(LMConfig(kind="remote", model="m"), settings)
    assert isinstance(lm, RemoteLM)
    with lm.client:
        yield lm


PROMPTS = ["Next: ", "", "I liked Heat. Next: "]
ANSWERS = [["Ran", "M", ""], ["Ran"], ["Stalker", "Ran"]]


def test_writes_in_the_order_of_the_prompts_some_at_a_time(lm: RemoteLM, server: Server) -> None:
    assert isinstance(lm, LanguageModel)
    server.delay = 0.05
    prompts = [f"prompt {i}" for i in range(20)]
    assert lm.generate(prompts, max_tokens=7, stop=[". and"]) == [p.upper() for p in prompts]
    assert 1 < server.most_busy <= 8
    assert {(r["model"], r["temperature"], r["max_tokens"]) for r in server.requests} == {("m", 0, 7)}


def test_more_stops_than_the_api_takes_still_cut(lm: RemoteLM, server: Server) -> None:
    assert lm.generate(["a"], stop=["1", "2", "3", "4", ". and"]) == ["A"]
    assert len(server.requests[0]["stop"]) == 4


@pytest.mark.parametrize(
    "ways", [{"echo"}, {"echo", "offsets"}, {"prompt_logprobs"}, {"refuses echo", "prompt_logprobs"}]
)
def test_scores_by_whichever_way_the_server_offers(lm: RemoteLM, server: Server, ways: set[str]) -> None:
    server.ways = ways
    found = lm.score(PROMPTS, ANSWERS)
    for prompt, answers, scores in zip(PROMPTS, ANSWERS, found, strict=True):
        for answer, score in zip(answers, scores, strict=True):
            expected = after(prompt, answer) if answer else Score(0.0, 0)
            assert score.tokens == expected.tokens
            assert score.logprob == pytest.approx(expected.logprob)


def test_a_prompt_is_sent_once_for_all_its_answers(lm: RemoteLM, server: Server) -> None:
    lm.score(["Next: "], [["a", "b", "a"]])
    sent = [r["prompt"] for r in server.requests]
    assert sorted(set(sent)) == ["Next: ", "Next: a", "Next: b"]
    assert len(sent) == 4  # the first also finds out how this server scores


def test_a_server_without_log_probabilities_is_told_apart(lm: RemoteLM, server: Server) -> None:
    for ways in (set(), {"refuses echo"}):
        server.ways = ways
        with pytest.raises(ModelError, match="gives no log probabilities of a prompt"):
            lm.score(["p"], [["a"]])


def test_nothing_to_score_asks_nothing(lm: RemoteLM, server: Server) -> None:
    assert lm.score(["p", "q"], [[], [""]]) == [[], [Score(0.0, 0)]]
    assert server.requests == []


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_not_forever(lm: RemoteLM, server: Server) -> None:
    server.plan = [500, 429]
    assert lm.generate(["a"], stop=["."]) == ["A"]
    server.plan = [500] * 10
    with pytest.raises(ModelError, match=r"m@127\.0\.0\.1:[0-9]+: answered 500"):
        lm.generate(["a"])
    assert len(server.requests) == 3 + 3


def test_the_key_is_sent_and_never_shown(lm: RemoteLM, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.plan = [401]
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError, match="answered 401") as raised:
        lm.generate(["a"])
    assert server.keys == {f"Bearer {KEY}"}
    assert "***" in str(raised.value)
    assert KEY not in str(raised.value) + caplog.text + repr(lm) + lm.model_id


def test_white_space_around_the_key_is_not_part_of_it(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """As a key read from a secret's file comes: an HTTP header could not carry the line break."""
    lm = RemoteLM.connect("m", server.url, Settings(lm_api_key=SecretStr(f" {KEY}\n")), retries=0)
    with lm.client, caplog.at_level(logging.DEBUG):
        assert lm.generate(["a"], stop=["."]) == ["A"]
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", [f"{KEY}\nsecond line", f"{KEY}é", f"{KEY}\0"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(server: Server, key: str) -> None:
    with pytest.raises(SpecError, match="RECSYS_LM_API_KEY") as raised:
        RemoteLM.connect("m", server.url, Settings(lm_api_key=SecretStr(key)))
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("given", [None, SecretStr(""), SecretStr(" \n")])
def test_without_a_key_no_other_services_key_is_sent_and_messages_stay_whole(
    server: Server, given: SecretStr | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    lm = RemoteLM.connect("m", server.url, Settings(lm_api_key=given), retries=0)
    server.plan, server.says = [400], "none of it"
    with lm.client, pytest.raises(ModelError, match="none of it"):
        lm.generate(["a"])
    assert server.keys == {"Bearer none"}


class Breaking:
    """A client whose connection breaks, and whose error says what was sent, as the library below it does."""

    def __init__(self, says: str) -> None:
        self.says = says
        self.chat = self.completions = self

    def create(self, **_: Any) -> Any:
        raise openai.APIConnectionError(request=None) from ValueError(self.says)  # type: ignore[arg-type]


HARD = 'sk-very"secret\\0123'


@pytest.mark.parametrize("sent", [HARD, f"{HARD}\n"])
def test_no_form_of_the_key_is_shown_whatever_fails(lm: RemoteLM, server: Server, sent: str) -> None:
    """As it is, escaped as a string, as bytes and in JSON; in an answer, and in what the connection says."""
    forms = [sent, repr(sent), repr(f"Bearer {sent}".encode()), json.dumps(sent), f"'{sent.strip()}'"]
    hard = dataclasses.replace(lm, key=SecretStr(sent))
    for form in forms:
        server.plan, server.says = [401], f"no: {form} is bad"
        with pytest.raises(ModelError, match="answered 401") as refused:
            hard.generate(["a"])
        broken = dataclasses.replace(hard, client=Breaking(f"Illegal header value {form}"))
        with pytest.raises(ModelError, match="cannot be reached: Illegal header value") as lost:
            broken.generate(["a"])
        for raised in (refused, lost):
            assert "***" in str(raised.value)
            shown = "".join(traceback.format_exception(raised.value))
            assert "sk-very" not in shown
            assert "0123" not in shown


def test_recorded_answers_are_asked_and_paid_for_once(server: Server, tmp_path: Path) -> None:
    settings = Settings(lm_url=server.url, cache_dir=tmp_path)
    for asked in (1, 1):
        lm = load_lm(LMConfig(kind="remote", model="m", record=True), settings)
        assert isinstance(lm, ReplayLM)
        assert isinstance(lm.lm, RemoteLM)
        with lm.lm.client:
            assert lm.generate(["a"], stop=["."]) == ["A"]
        assert len(server.requests) == asked
    assert [p.name for p in (tmp_path / "replay").iterdir()] == ["answers.sqlite"]


@pytest.mark.parametrize("raw", [b"<html>Welcome</html>", b"", b"[]"])
def test_an_answer_of_another_shape_is_a_model_error(lm: RemoteLM, server: Server, raw: bytes) -> None:
    server.raw = raw
    with pytest.raises(ModelError, match="answered nonsense"):
        lm.generate(["a"])
    with pytest.raises(ModelError, match="answered nonsense"):
        lm.score(["a"], [["b"]])


def test_an_answer_without_text_is_a_model_error(lm: RemoteLM) -> None:
    with pytest.raises(ModelError, match="answered nonsense: its answer holds no text"):
        lm.generate(["mute"])


def test_a_slow_server_is_given_up(server: Server) -> None:
    server.delay = 0.5
    settings = Settings(lm_timeout_s=0.1)
    slow = RemoteLM.connect("m", server.url, settings, retries=0)
    with slow.client, pytest.raises(ModelError, match=r"no answer in 0\.1 s \(RECSYS_LM_TIMEOUT_S\)"):
        slow.generate(["a"])


def test_a_server_that_is_not_there_is_named() -> None:
    gone = RemoteLM.connect("m", "http://127.0.0.1:9/v1", Settings(), retries=0)
    with gone.client, pytest.raises(ModelError, match=r"m@127\.0\.0\.1:9: cannot be reached"):
        gone.generate(["a"])


def test_the_first_failure_cancels_what_is_not_yet_sent(server: Server) -> None:
    server.plan = [400] * 100
    few = RemoteLM.connect("m", server.url, Settings(), retries=0, workers=2)
    with few.client, pytest.raises(ModelError, match="answered 400"):
        few.generate([str(i) for i in range(100)])
    assert len(server.requests) < 50
