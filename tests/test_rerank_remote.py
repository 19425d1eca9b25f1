"""Rerankers whose model is behind an address: a real small server on this machine."""

import logging
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from test_lm_remote import Server
from test_lm_remote import server as server  # the fixture
from test_rerank_judges import reranker
from test_rerank_packed import Case, case_of

from recsys.errors import ModelError
from recsys.lm import RemoteLM
from recsys.rerank import EndpointConfig, Fallback, ListwiseConfig, PackedConfig, SetwiseConfig
from recsys.settings import Settings


@pytest.fixture(scope="module")
def case(world: Any, world_split: Any) -> Case:
    return case_of(world, world_split, "tune", 12, 20)[1]


@pytest.fixture
def lm(server: Server) -> Iterator[RemoteLM]:
    remote = RemoteLM.connect("m", server.url, Settings(lm_timeout_s=20), retries=0)
    with remote.client:
        yield remote


def test_the_endpoint_orders_by_the_servers_scores(case: Case, server: Server, lm: RemoteLM) -> None:
    """This one likes long texts."""
    queries, candidates, profiles, catalog = case
    server.ways = {"rerank", "usage"}
    alone = reranker(EndpointConfig(depth=20), lm)
    heads = candidates.frame.partition_by("query_id", maintain_order=True)
    opinions = alone.judge.opinions(heads, queries, profiles, catalog)
    texts = dict(catalog.frame.select("item_id", "text").iter_rows())
    for head, opinion in zip(heads, opinions, strict=True):
        lengths = [min(len(texts[item]), 300) for item in head["item_id"]]
        assert [lengths[i] for i in (-opinion).argsort(kind="stable")] == sorted(lengths, reverse=True)
    assert all(len(r["documents"]) == 20 for r in server.requests)
    assert "Chosen lately" in server.requests[0]["query"]
    assert alone.judge.budget.spent == (12_000, 0)  # type: ignore[attr-defined]


def test_users_are_asked_for_concurrently(case: Case, server: Server, lm: RemoteLM) -> None:
    server.delay = 0.02
    reranker(ListwiseConfig(depth=10), lm).rerank(*case)
    assert len(server.requests) == 12
    assert 1 < server.most_busy <= 8


def test_a_typed_decision_reaches_the_server(case: Case, server: Server, lm: RemoteLM) -> None:
    server.ways = {"choice"}
    answer = reranker(SetwiseConfig(depth=6, width=3, top=2, method="choice"), lm).rerank(*case)
    assert "reranker" in set(answer.frame["served_by"])
    assert {tuple(r["structured_outputs"]["choice"]) for r in server.requests} == {("A", "B"), ("A", "B", "C")}


def test_letters_take_one_request_a_window(case: Case, server: Server, lm: RemoteLM) -> None:
    """The server finds B likeliest, then A, whatever they are."""
    server.ways = {"next"}
    one = reranker(ListwiseConfig(depth=10, window=10, method="logprobs"), lm)
    heads = case[1].frame.filter(pl.col("rank") <= 10).partition_by("query_id", maintain_order=True)
    for opinion in one.judge.opinions(heads, case[0], case[2], case[3]):
        assert (-opinion).argsort(kind="stable").tolist() == [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(server.requests) == 12
    assert server.requests[0]["prompt"].endswith("The one that suits best is candidate")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (PackedConfig(), "gives no log probabilities of a prompt"),
        (ListwiseConfig(method="logprobs"), "gives no log probabilities of what it writes"),
        (EndpointConfig(), "has neither the endpoint rerank nor score"),
    ],
    ids=["packed", "letters", "endpoint"],
)
def test_a_server_that_cannot_says_so_and_the_candidates_order_is_kept(
    case: Case, server: Server, lm: RemoteLM, config: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.ways = set()
    with pytest.raises(ModelError, match=says):
        reranker(config, lm).rerank(*case)
    with caplog.at_level(logging.WARNING):
        answer = Fallback(reranker(config, lm)).rerank(*case).frame
    assert f"12 of 12 queries keep the candidates' order: m@127.0.0.1:{server.server_port}: " in caplog.text
    assert says in caplog.text
    assert set(answer["served_by"]) == {"candidates"}


def test_a_server_that_is_too_slow_costs_a_few_timeouts(
    world: Any, world_split: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    case = case_of(world, world_split, "tune", 60, 12)[1]
    server.delay = 0.3
    slow = RemoteLM.connect("m", server.url, Settings(lm_timeout_s=0.05), retries=0)
    with slow.client, caplog.at_level(logging.WARNING):
        answer = Fallback(reranker(ListwiseConfig(), slow)).rerank(*case).frame
    assert "60 of 60 queries keep the candidates' order" in caplog.text
    assert "no answer in 0.05 s (RECSYS_LM_TIMEOUT_S)" in caplog.text
    key = ["query_id", "rank"]
    assert answer.sort(key).equals(case[1].frame.sort(key))
    assert len(server.requests) <= 16 + 3
    assert pl.Series([r["model"] for r in server.requests]).unique().to_list() == ["m"]
