"""Requests in words at every door: in Python, the terminal, the batch and the endpoint; read, or said not to be."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from doors import NO_OPINION, OPINION, USERS, Ears, FakeRecommender, fake_bundle, listening, real_bundle
from polars.testing import assert_frame_equal
from starlette.testclient import TestClient
from typer.testing import CliRunner

from recsys.batch import run_batch
from recsys.bundle import Bundle
from recsys.cli import app
from recsys.data.ingest import Dataset
from recsys.errors import DataError, SpecError, StorageError
from recsys.rerank import Fallback, Fused, Identity
from recsys.rerank.fusion import LinearFusion
from recsys.serve.app import create_app
from recsys.tables import Queries, query_histories

WISH = "western please, no horror"


@pytest.fixture(scope="module")
def plain(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return real_bundle(tmp_path_factory.mktemp("requests"), tiny)


@pytest.fixture(scope="module")
def bundle(plain: Bundle) -> Bundle:
    return replace(plain, recommender=replace(plain.recommender, reranker=listening(Ears())))


def ran(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, *arguments: object) -> Any:
    monkeypatch.setattr("recsys.registry.open_bundle", lambda text, settings: bundle)
    runner = CliRunner(env={"COLUMNS": "250", "NO_COLOR": "1"})
    return runner.invoke(app, [str(argument) for argument in arguments])


def genres_of(bundle: Bundle, items: list[Any]) -> list[list[str]]:
    genres = dict(bundle.catalog.frame.select("item_id", "genres").iter_rows())
    return [genres[item] for item in items]


# In Python


def test_requests_stand_beside_their_users_cleaned(bundle: Bundle) -> None:
    frame = bundle.queries(["3", 1, 2], ["no\nhorror", "", " \t"]).frame
    assert frame.select("user_id", "request").rows() == [(3, "no horror"), (1, ""), (2, "")]
    assert bundle.queries([3]).frame["request"].to_list() == [""]
    assert bundle.adhoc([], request=" a\x00war ").frame["request"].to_list() == ["a war"]


def test_requests_that_do_not_fit_their_users_are_refused(bundle: Bundle) -> None:
    for users, requests in (([1], []), ([1, 1], ["a", "b"]), (None, ["a"])):
        with pytest.raises(SpecError, match="requests must be as many as users"):
            bundle.queries(users, requests)
    with pytest.raises(DataError, match="may have 500 characters"):
        bundle.queries([1], ["x" * 501])
    with pytest.raises(DataError, match="valid Unicode"):
        bundle.adhoc([], request="\udc80")


def test_what_was_asked_for_comes_first_and_the_reason_says_so(bundle: Bundle) -> None:
    frame = bundle.recommender.recommend(bundle.queries([1], [WISH]), 5).frame
    without = bundle.recommender.recommend(bundle.queries([1]), 5).frame
    assert ["Western" in some for some in genres_of(bundle, frame["item_id"].to_list())] == [True] * 5
    assert all(reason.startswith("As you asked: Western") for reason in frame["reason"])
    assert all(len(reason) <= 100 for reason in frame["reason"])
    assert not without["reason"].str.contains("As you asked").any()
    assert frame["item_id"].to_list() != without["item_id"].to_list()


@pytest.mark.parametrize("users", [[1], [1, 2]])
def test_a_request_that_nothing_reads_changes_nothing(plain: Bundle, users: list[int]) -> None:
    class Deaf(Ears):
        limits = False

        def understood(self, requests: Any) -> Any:
            raise AssertionError("nothing was learned of requests")

        def opinions(self, heads: Any, queries: Queries, profiles: Any, catalog: Any) -> Iterator[Any]:
            for head in heads:  # a list that reaches further is ordered otherwise
                yield np.argsort(np.argsort(head["item_id"].to_numpy())) % 7 - len(head) / 2

    weights = {"plain": OPINION, "request": LinearFusion({"score": -1.0, "lm": 1.0})}
    reranker = Fallback(Fused(Deaf(), 8, weights, {}, reach=3))  # type: ignore[arg-type]
    line = replace(plain.recommender, reranker=reranker, depth=8)
    without = line.recommend(plain.queries(users), 8).frame
    asked = line.recommend(plain.queries(users, [WISH, ""][: len(users)]), 8).frame
    assert_frame_equal(asked, without)
    nobody = replace(line, reranker=Fallback(Fused(Deaf(), 8, {**weights, "told": NO_OPINION}, {}, reach=3)))  # type: ignore[arg-type]
    assert_frame_equal(
        nobody.recommend(plain.adhoc([], request=WISH), 8).frame, nobody.recommend(plain.adhoc([]), 8).frame
    )


# In the terminal


def test_recommend_shows_what_was_understood(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ran(monkeypatch, bundle, "recommend", "--bundle", "any", "--user", 1, "--request", WISH, "--k", 3)
    assert done.exit_code == 0, done.output
    assert "understood: wants western; refuses horror\n" in done.stdout
    assert done.stdout.count("As you asked: Western") == 3
    assert done.stderr == ""
    done = ran(monkeypatch, bundle, "recommend", "--bundle", "any", "--user", 1)
    assert "understood" not in done.output


def test_recommend_serves_a_visitor_in_words(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ran(monkeypatch, bundle, "recommend", "--bundle", "any", "--request", WISH, "--segment", " FR ", "--k", 3)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("A visitor without a past\n")
    assert done.stdout.count("As you asked: Western") == 3
    refused = ran(monkeypatch, bundle, "recommend", "--bundle", "any", "--user", 1, "--segment", "FR")
    assert refused.exit_code == 2
    assert "goes without --user" in refused.output


def test_recommend_says_that_a_request_is_not_read(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["recommend", "--bundle", "any", "--user", 1, "--request", WISH]
    done = ran(monkeypatch, plain, *options)
    assert done.exit_code == 0, done.output
    assert (
        done.stderr == "note: the request was not read: this bundle has no reranker, and nothing else reads requests\n"
    )
    down = replace(plain, recommender=replace(plain.recommender, reranker=listening(Ears(down=True))))
    assert "note: the request was not read: the reranker failed" in ran(monkeypatch, down, *options).stderr


def test_a_request_that_is_too_long_is_one_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    done = ran(monkeypatch, bundle, "recommend", "--bundle", "any", "--user", 1, "--request", "x" * 501)
    assert isinstance(done.exception, DataError)


# At the endpoint


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[TestClient]:
    with TestClient(create_app(bundle)) as client:
        yield client


def test_the_endpoint_reads_requests_of_users_and_visitors(client: TestClient, bundle: Bundle) -> None:
    understood = {
        "wants": ["western"],
        "refuses": ["horror"],
        "like": None,
        "than": None,
        "first_year": None,
        "last_year": None,
    }
    for who in ({"user_id": 1}, {"history": []}, {"history": ["i001"]}):
        answer = client.post("/v1/rank", json={**who, "request": "western please,\n no\u0000 horror", "k": 3}).json()
        assert answer["request"] == {"read": True, "why_not": None, "understood": understood}
        items = [item["item_id"] for item in answer["items"]]
        assert all("Western" in some and "Horror" not in some for some in genres_of(bundle, items))
    single = bundle.recommender.recommend(bundle.queries([1], [WISH]), 3).frame
    answer = client.post("/v1/rank", json={"user_id": 1, "request": WISH, "k": 3}).json()
    assert [item["reason"] for item in answer["items"]] == single["reason"].to_list()


@pytest.mark.parametrize("request_", [None, "", " \n "])
def test_no_words_are_no_request(client: TestClient, request_: str | None) -> None:
    answer = client.post("/v1/rank", json={"user_id": 1, "request": request_, "k": 3}).json()
    assert answer["request"] is None
    assert answer["items"] == client.post("/v1/rank", json={"user_id": 1, "k": 3}).json()["items"]


@pytest.mark.parametrize(
    "bad", ['"' + "x" * 501 + '"', "5", "true", '["secret"]', '{"a": "secret"}', '"secret\\ud800"']
)
def test_a_bad_request_is_named_and_not_repeated(client: TestClient, bad: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/rank", content=f'{{"user_id": 1, "request": {bad}}}'.encode(), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", "request"]
    assert "secret" not in answer.text
    assert "xxx" not in answer.text


def test_the_endpoint_says_that_a_request_was_not_read(plain: Bundle) -> None:
    body = {"user_id": 1, "request": WISH, "k": 3}
    reasons = {
        "this bundle has no reranker": Identity(),
        "the weights that were fitted make nothing": listening(Ears(), request=NO_OPINION),
        "the reranker failed": listening(Ears(down=True)),
    }
    for why, reranker in reasons.items():
        deaf = replace(plain, recommender=replace(plain.recommender, reranker=reranker))
        with TestClient(create_app(deaf)) as client:
            became = client.post("/v1/rank", json=body).json()["request"]
        assert became["why_not"].startswith(why)
        assert (became["read"], became["understood"]) == (False, None)


def test_what_reads_words_has_read_some_before_the_first_user(tmp_path: Path) -> None:
    recommender = FakeRecommender()
    create_app(fake_bundle(tmp_path / "bundle", recommender))
    assert recommender.requests == [["anything"]]
    deaf = FakeRecommender(reranker=Identity())
    create_app(fake_bundle(tmp_path / "bundle", deaf))
    assert deaf.requests == [[""]]


def test_no_request_is_ever_logged(
    plain: Bundle, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    down = replace(plain, recommender=replace(plain.recommender, reranker=listening(Ears(down=True))))
    for place, some in enumerate((plain, bundle, down)):
        with TestClient(create_app(some)) as client:
            client.post("/v1/rank", json={"user_id": 1, "request": "unspeakable western"})
        run_batch(some, [1], k=2, out=tmp_path / str(place), requests={1: "unspeakable western"}, progress=False)
    assert "/v1/rank" in caplog.text
    assert "unspeakable" not in caplog.text
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [data for data in written if b"unspeakable" in data]


# In the batch


def rows(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "part-*.parquet")


def test_the_batch_reads_requests_as_the_endpoint_does(bundle: Bundle, client: TestClient, tmp_path: Path) -> None:
    asked = {2: WISH, 4: "comedy"}
    report = run_batch(bundle, [1, 2, 3, 4], k=3, out=tmp_path / "out", shard_size=3, requests=asked, progress=False)
    assert (report.requests, report.unread, report.reranked) == (2, 0, 4)
    found = rows(tmp_path / "out")
    for user in (1, 2, 3, 4):
        body = {"user_id": user, "request": asked.get(user), "k": 3}
        items = client.post("/v1/rank", json=body).json()["items"]
        own = found.filter(pl.col("user_id") == user)
        assert own["item_id"].to_list() == [item["item_id"] for item in items]
        assert own["reason"].to_list() == [item["reason"] for item in items]
    said = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    assert (said["requests"], said["unread"]) == (2, 0)


@pytest.mark.parametrize("other", [None, {}, {7: "war", 3: ""}, {7: "war "}, {3: "war"}, {7: "drama"}])
def test_a_resumed_batch_never_mixes_requests(tmp_path: Path, other: dict[Any, str] | None) -> None:
    bundle = fake_bundle(tmp_path / "bundle")
    out = tmp_path / "out"
    run_batch(bundle, USERS, k=2, out=out, shard_size=2, requests={7: "war"})
    assert bundle.recommender.requests == [["war", ""], ["", ""], ["", ""]]  # type: ignore[attr-defined]
    (out / "part-00000.parquet").unlink()
    if other and {user: text.strip() for user, text in other.items() if text} == {7: "war"}:
        assert run_batch(bundle, USERS, k=2, out=out, shard_size=2, requests=other).written == 2
    else:
        with pytest.raises(StorageError, match=r"another run \(requests differ\)"):
            run_batch(bundle, USERS, k=2, out=out, shard_size=2, requests=other)


def test_a_run_from_before_requests_goes_on(tmp_path: Path) -> None:
    bundle, out = fake_bundle(tmp_path / "bundle"), tmp_path / "out"
    run_batch(bundle, USERS, k=2, out=out)
    state = json.loads((out / "_run.json").read_text())
    del state["requests"]
    (out / "_run.json").write_text(json.dumps(state))
    assert run_batch(bundle, USERS, k=2, out=out).written == 0


def test_the_batch_counts_and_says_what_was_not_read(
    plain: Bundle, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {1: WISH, 3: WISH}
    partly = run_batch(bundle, [1, 2, 3], k=2, out=tmp_path / "a", rerank_users=1, requests=asked, progress=False)
    assert (partly.requests, partly.unread) == (2, 1)
    assert "is read" not in caplog.text
    deaf = run_batch(plain, [1, 2, 3], k=2, out=tmp_path / "b", requests=asked, progress=False)
    assert (deaf.requests, deaf.unread) == (2, 2)
    assert "none of 2 requests is read: this bundle has no reranker" in caplog.text


def test_a_request_by_nobody_of_the_list_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "bundle")
    with pytest.raises(SpecError, match="1 of 2 requests are by users who are not in the list"):
        run_batch(bundle, [7, 3], k=2, out=tmp_path / "out", requests={7: "war", 11: "war"})
    with pytest.raises(DataError, match="may have 500 characters"):
        run_batch(bundle, [7], k=2, out=tmp_path / "out", requests={7: "x" * 501})
    assert not (tmp_path / "out").exists()


def test_the_batch_command_takes_a_file_of_requests(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users.txt").write_text("1\n2\n")
    (tmp_path / "requests.csv").write_text(f'user_id,request\n2,"{WISH}"\n')
    options = ["batch", "--bundle", "any", "--k", 3, "--users", tmp_path / "users.txt", "--out", tmp_path / "out"]
    done = ran(monkeypatch, bundle, *options, "--requests", tmp_path / "requests.csv")
    assert done.exit_code == 0, done.output
    assert "1 of 1 requests in words were read" in done.stdout
    assert rows(tmp_path / "out").filter(pl.col("reason").str.contains("As you asked"))["user_id"].to_list() == [2] * 3
    (tmp_path / "requests.csv").write_text("user_id,request\n3,war\n")
    refused = ran(monkeypatch, bundle, *options, "--requests", tmp_path / "requests.csv")
    assert "row 1, column 'user_id': user '3' is not among the users" in str(refused.exception)


def test_who_asks_in_words_is_offered_more_candidates(tiny: Dataset, plain: Bundle) -> None:
    """What is wanted may stand far down; whoever asks for nothing gets the same slate as ever."""
    recommender = plain.recommender
    queries = query_histories(tiny.log)
    asking = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("no horror")).otherwise(pl.lit(""))
    mixed = Queries(queries.frame.head(6).with_columns(request=asking))
    judge = Fused(Ears(), 10, {"plain": OPINION, "request": OPINION}, {}, reach=2)  # type: ignore[arg-type]
    line = replace(recommender, reranker=Fallback(judge), depth=10)
    sizes = line.propose(mixed).frame.group_by("query_id").len()
    by_query = dict(sizes.iter_rows())
    ids = mixed.frame["query_id"].to_list()
    assert [by_query[query] for query in ids] == [20, 10] * 3
    ranked = line.rerank(mixed, line.propose(mixed)).frame
    assert ranked.filter(pl.col("served_by") == "reranker").group_by("query_id").len()["len"].sum() == 90
    alone = line.recommend(Queries(mixed.frame.filter(pl.col("request") == "")), 5).frame
    both = line.recommend(mixed, 5).frame
    assert_frame_equal(both.join(alone.select("query_id").unique(), on="query_id", how="semi"), alone)
