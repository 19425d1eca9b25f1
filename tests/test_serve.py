import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from doors import ITEMS, USERS, FakeRecommender, fake_bundle, real_bundle
from starlette.testclient import TestClient

from recsys.batch import run_batch
from recsys.bundle import Bundle
from recsys.cli import main
from recsys.data.ingest import Dataset
from recsys.errors import ModelError, SpecError
from recsys.lm.replay import ScriptedLM
from recsys.serve.app import MAX_BODY, claim_port, create_app
from recsys.serve.rank import MAX_HISTORY


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path / "bundle")


@pytest.fixture
def client(bundle: Bundle) -> Iterator[TestClient]:
    with TestClient(create_app(bundle)) as client:
        yield client


def test_the_answer_for_a_user_is_the_recommenders_slate(bundle: Bundle, client: TestClient) -> None:
    for user in USERS:
        answer = client.post("/v1/rank", json={"user_id": user, "k": 4})
        assert answer.status_code == 200
        expected = bundle.recommender.recommend(bundle.queries([user]), 4).frame
        columns = ["item_id", "rank", "score", "reason", "served_by"]
        got = [[item[column] for column in columns] for item in answer.json()["items"]]
        assert got == [list(row) for row in expected.select(columns).iter_rows()]


def test_a_batch_over_everybody_equals_the_single_requests(bundle: Bundle, client: TestClient) -> None:
    batch = bundle.recommender.recommend(bundle.queries(USERS), 5).frame
    for (user,), rows in batch.group_by("query_id"):
        items = client.post("/v1/rank", json={"user_id": user, "k": 5}).json()["items"]
        assert [item["item_id"] for item in items] == rows.sort("rank")["item_id"].to_list()


@pytest.fixture(scope="module")
def real(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return real_bundle(tmp_path_factory.mktemp("serve"), tiny, ScriptedLM())


def test_on_a_real_bundle_a_request_is_a_batch_of_one(real: Bundle, tmp_path: Path) -> None:
    users = real.log.frame["user_id"].unique().sort().to_list()[:9]
    run_batch(real, users, k=5, out=tmp_path, shard_size=4)
    batch = pl.read_parquet(tmp_path / "part-*.parquet")
    columns = ["item_id", "rank", "score", "reason", "served_by"]
    with TestClient(create_app(real)) as client:
        for user in [*users[:8], str(users[8])]:
            answer = client.post("/v1/rank", json={"user_id": user, "k": 5}).json()
            expected = batch.filter(pl.col("user_id").cast(pl.String) == str(user))
            assert [[item[name] for name in columns] for item in answer["items"]] == [
                list(row) for row in expected.select(columns).iter_rows()
            ]
            assert answer["served_by"] == "reranker"


def test_on_a_real_bundle_bad_ids_are_named_and_a_visitor_is_served(real: Bundle) -> None:
    known = real.catalog.frame["item_id"][0]
    with TestClient(create_app(real)) as client:
        for user in (10**9, "nobody", "", "1 ", "ü", -1):
            answer = client.post("/v1/rank", json={"user_id": user})
            assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (404, ["body", "user_id"])
            assert str(real.path) not in answer.text
        answer = client.post("/v1/rank", json={"history": [known, "no such item"]})
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "history"])
        for history in ([], [known], [known, known]):
            items = client.post("/v1/rank", json={"history": history, "k": 3}).json()["items"]
            assert len(items) == 3
            assert known not in {item["item_id"] for item in items} or not history


def test_the_answer_for_a_history_leaves_the_history_out_and_carries_titles(client: TestClient) -> None:
    answer = client.post("/v1/rank", json={"history": [100, 103], "k": 3}).json()
    assert [item["item_id"] for item in answer["items"]] == [102, 104, 101]
    assert answer["items"][0]["title"] == "Item 102"
    assert answer["served_by"] == "reranker"
    assert re.fullmatch("fake-[0-9a-f]{12}", answer["bundle"])


def test_a_visitor_without_a_past_gets_a_slate(client: TestClient) -> None:
    assert len(client.post("/v1/rank", json={"history": [], "k": 3}).json()["items"]) == 3


def test_k_is_10_unless_said(client: TestClient) -> None:
    assert len(client.post("/v1/rank", json={"history": []}).json()["items"]) == 10


def test_in_a_catalog_of_fewer_than_10_items_k_is_all_of_them_unless_said(tmp_path: Path) -> None:
    small = fake_bundle(tmp_path / "bundle", FakeRecommender(items=ITEMS[:4]))
    with TestClient(create_app(small)) as client:
        assert len(client.post("/v1/rank", json={"history": []}).json()["items"]) == 4
        refused = client.post("/v1/rank", json={"history": [], "k": 10})
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["msg"].startswith("k = 10 does not fit: the catalog holds 4 items")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, None),
        ({"user_id": 7, "history": [100]}, 422, None),
        ({"user_id": None, "history": None}, 422, None),
        ({"user_id": 999}, 404, "user_id"),
        ({"user_id": ""}, 404, "user_id"),
        ({"user_id": True}, 422, "user_id"),
        ({"user_id": 7.5}, 422, "user_id"),
        ({"user_id": [7]}, 422, "user_id"),
        ({"user_id": {"id": 7}}, 422, "user_id"),
        ({"user_id": 10**30}, 422, "user_id"),
        ({"user_id": "x" * 1001}, 422, "user_id"),
        ({"user_id": 7, "k": 0}, 422, "k"),
        ({"user_id": 7, "k": -1}, 422, "k"),
        ({"user_id": 7, "k": len(ITEMS) + 1}, 422, "k"),
        ({"user_id": 7, "k": 10**30}, 422, "k"),
        ({"user_id": 7, "k": "5"}, 422, "k"),
        ({"user_id": 7, "k": 2.5}, 422, "k"),
        ({"user_id": 7, "k": True}, 422, "k"),
        ({"user_id": 7, "k": None}, 422, "k"),
        ({"history": [100, 999]}, 422, "history"),
        ({"history": 100}, 422, "history"),
        ({"history": "100"}, 422, "history"),
        ({"history": [100, None]}, 422, "history"),
        ({"history": [100, 1.5]}, 422, "history"),
        ({"history": [100] * (MAX_HISTORY + 1)}, 422, "history"),
        ({"user_id": 7, "limit": 5}, 422, "limit"),
        ({"user_id": 7, "segment": "FR"}, 422, None),
        ({"history": [], "segment": ["FR"]}, 422, "segment"),
        ({"history": [], "segment": 1.5}, 422, "segment"),
        ({"history": [], "segment": True}, 422, "segment"),
        ({"history": [], "segment": "x" * 1001}, 422, "segment"),
        ([], 422, None),
        ("7", 422, None),
    ],
)
def test_a_bad_request_names_its_field(
    bundle: Bundle, client: TestClient, body: Any, status: int, field: str | None
) -> None:
    answer = client.post("/v1/rank", json=body)
    assert answer.status_code == status
    (detail,) = answer.json()["detail"]
    assert detail["loc"][:2] == (["body"] if field is None else ["body", field])
    assert set(detail) == {"loc", "msg", "type"}
    assert str(bundle.path) not in answer.text


@pytest.mark.parametrize("body", [{"k": 3}, {"request": " "}, {"user_id": None, "segment": None}])
def test_the_message_for_nobody_names_what_would_do(client: TestClient, body: Any) -> None:
    detail = client.post("/v1/rank", json=body).json()["detail"]
    message = "give 'user_id' or 'history'; for a visitor without a past 'segment' or 'request' will do"
    assert detail[0]["msg"] == message


def test_a_newcomer_is_served_by_a_segment_or_a_request_alone(client: TestClient) -> None:
    for known in ({"segment": "FR"}, {"request": "something light"}, {"segment": 1, "request": "something light"}):
        assert (
            client.post("/v1/rank", json=known).json() == client.post("/v1/rank", json={"history": [], **known}).json()
        )
        assert len(client.post("/v1/rank", json=known).json()["items"]) == 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"k": NaN, "user_id": 7}',
        b'{"user_id": "\\ud800"}',
        b'{"user_id": "\xff"}',
        b'{"history": ["\\udfff"]}',
    ],
)
def test_what_is_no_json_or_no_text_is_refused_without_a_crash(client: TestClient, content: bytes) -> None:
    answer = client.post("/v1/rank", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]


def test_a_body_without_the_json_header_is_told_so(client: TestClient) -> None:
    answer = client.post("/v1/rank", content=b'{"user_id": 7}')
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"][0]["msg"]


def test_a_huge_body_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/rank", content=b" " * (MAX_BODY + 1), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_twenty_concurrent_requests_get_their_own_answers(tmp_path: Path) -> None:
    class Unsafe(FakeRecommender):
        """Notices when two threads are inside at once, as a model with buffers would."""

        inside = 0

        def recommend(self, queries: Any, k: int) -> Any:
            type(self).inside += 1
            try:
                time.sleep(0.005)
                if type(self).inside > 1:
                    raise AssertionError("two requests in the model at once")
                return super().recommend(queries, k)
            finally:
                type(self).inside -= 1

    bundle = fake_bundle(tmp_path / "bundle", Unsafe())
    expected = {
        user: bundle.recommender.recommend(bundle.queries([user]), 3).frame["item_id"].to_list() for user in USERS
    }
    with TestClient(create_app(bundle)) as client, ThreadPoolExecutor(20) as pool:
        users = [USERS[n % len(USERS)] for n in range(60)]
        answers = list(pool.map(lambda user: client.post("/v1/rank", json={"user_id": user, "k": 3}), users))
    assert [answer.status_code for answer in answers] == [200] * 60
    for user, answer in zip(users, answers, strict=True):
        assert [item["item_id"] for item in answer.json()["items"]] == expected[user]


def test_health_answers_while_every_thread_waits_for_the_model(tmp_path: Path) -> None:
    gate = threading.Event()

    class Stuck(FakeRecommender):
        def recommend(self, queries: Any, k: int) -> Any:
            if len(self.asked) > 1:  # not the warm-up
                gate.wait(30)
            return super().recommend(queries, k)

    recommender = Stuck()
    with (
        TestClient(create_app(fake_bundle(tmp_path / "bundle", recommender))) as client,
        ThreadPoolExecutor(60) as pool,
    ):
        client.post("/v1/rank", json={"user_id": 7})
        waiting = [pool.submit(client.post, "/v1/rank", json={"user_id": 7}) for _ in range(60)]
        time.sleep(0.3)
        started = time.monotonic()
        assert client.get("/health/live").json() == {"status": "live"}
        took = time.monotonic() - started
        gate.set()
        assert {answer.result().status_code for answer in waiting} == {200}
    assert took < 5


def test_the_model_has_answered_once_before_the_first_request(bundle: Bundle) -> None:
    create_app(bundle)
    assert bundle.recommender.asked == [[min(USERS)]]


def test_a_model_that_fails_at_the_warm_up_stops_the_start(tmp_path: Path) -> None:
    broken = FakeRecommender(fail_on=min(USERS), failure=ModelError("the endpoint is gone"))
    with pytest.raises(ModelError, match="the endpoint is gone"):
        create_app(fake_bundle(tmp_path / "bundle", broken))


def test_a_model_that_fails_later_is_503_and_the_reason_stays_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = FakeRecommender(fail_on=7, failure=ModelError("http://inside:8080 refused"))
    with TestClient(create_app(fake_bundle(tmp_path / "bundle", broken))) as client:
        answer = client.post("/v1/rank", json={"user_id": 7})
        assert client.post("/v1/rank", json={"user_id": 3}).status_code == 200
    assert answer.status_code == 503
    assert "inside" not in answer.text
    assert "http://inside:8080 refused" in caplog.text


def test_ready_names_the_bundle_that_answers(client: TestClient) -> None:
    ready = client.get("/health/ready").json()
    assert ready == {"status": "ready", "bundle": client.post("/v1/rank", json={"user_id": 7}).json()["bundle"]}


def test_the_access_log_has_one_json_line_per_request_and_no_bodies(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="recsys.serve"):
        client.post("/v1/rank?token=hush", json={"user_id": "somebody-private"})
        client.get("/health/live")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "recsys.serve"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/rank", 404),
        ("GET", "/health/live", 200),
    ]
    assert lines[0]["ms"] > 0
    assert "hush" not in caplog.text
    assert "somebody-private" not in " ".join(
        record.getMessage() for record in caplog.records if record.name == "recsys.serve"
    )


def test_a_port_in_use_is_one_line_that_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(SpecError, match=f"--host 127.0.0.1 --port {port}: Address already in use"),
            claim_port("127.0.0.1", port),
        ):
            pass


def test_a_claimed_port_is_taken_before_its_server_runs() -> None:
    with claim_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SpecError, match="Address already in use"), claim_port("127.0.0.1", port):
            pass


def test_the_command_notices_a_taken_port_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["recsys", "serve", "--bundle", "nowhere", "--port", str(port)])
        with pytest.raises(SystemExit, match="1"):
            main()
    err = capsys.readouterr().err
    assert err == f"error: --host 127.0.0.1 --port {port}: Address already in use; choose another\n"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("203.0.113.1", 8000)])
def test_an_address_that_cannot_be_had_is_one_line(host: str, port: int) -> None:
    with pytest.raises(SpecError, match=f"--port {port}: "), claim_port(host, port):
        pass


def test_a_real_server_answers_and_ends_in_order_on_sigterm(tmp_path: Path) -> None:
    program = f"""
        from pathlib import Path
        from doors import fake_bundle
        from recsys.serve.app import claim_port, create_app, run

        with claim_port("127.0.0.1", 0) as sock:
            app = create_app(fake_bundle(Path({str(tmp_path / "bundle")!r})))
            print(sock.getsockname()[1], flush=True)
            run(app, sock)
        print("closed", flush=True)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            base = f"http://127.0.0.1:{int(process.stdout.readline())}"
            answer = _ask(f"{base}/v1/rank", {"user_id": 7, "k": 2})
            assert [item["rank"] for item in answer["items"]] == [1, 2]
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "closed\n")
    assert json.loads(err.splitlines()[0])["path"] == "/v1/rank"
    assert "Traceback" not in err


def _ask(url: str, body: dict[str, Any]) -> Any:
    import httpx2

    deadline = time.monotonic() + 20
    while True:
        try:
            return httpx2.post(url, json=body, timeout=10).json()
        except httpx2.ConnectError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_bundle_whose_path_is_an_ordinary_word_is_named_once() -> None:
    with TestClient(create_app(fake_bundle(Path("bundle")))) as client:
        name = client.post("/v1/rank", json={"user_id": USERS[0]}).json()["bundle"]
        (problem,) = client.post("/v1/rank", json={"user_id": 99999}).json()["detail"]
        assert problem["msg"].endswith(f" is not in the log of bundle {name}")
