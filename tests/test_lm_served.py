"""What only some servers offer, against the same small server: typed decisions, ratings of next words, rerankers."""

import math

import pytest
from test_lm_remote import Server
from test_lm_remote import lm as lm  # the fixtures
from test_lm_remote import server as server

from recsys.errors import ModelError
from recsys.lm import RemoteLM
from recsys.protocols import Chooser, Rater, RelevanceModel


def test_a_typed_decision_is_asked_for_as_vllm_has_it(lm: RemoteLM, server: Server) -> None:
    assert isinstance(lm, Chooser)
    server.ways |= {"choice"}
    assert lm.choose(["which?", "and which?"], ["A", "B"]) == ["B", "B"]
    assert {r["messages"][0]["content"] for r in server.requests} == {"which?", "and which?"}
    assert [r["structured_outputs"] for r in server.requests] == [{"choice": ["A", "B"]}] * 2
    server.ways = set()  # a server that does not know the field and answers anything
    assert lm.choose(["which?"], ["A", "B"]) == ["WHICH?. and more"]
    server.plan = [400]
    with pytest.raises(ModelError, match="answered 400"):
        lm.choose(["which?"], ["A", "B"])


@pytest.mark.parametrize("way", ["next", "next in chat"])
def test_next_words_are_rated_in_one_request_each(lm: RemoteLM, server: Server, way: str) -> None:
    assert isinstance(lm, Rater)
    server.ways = {way}
    assert lm.rate(["p", "q"], [["A", "B", "C"], ["B", "D", "E"]]) == [[-1.5, -0.5, -5.0], [-0.5, -5.0, -5.0]]
    assert len(server.requests) == 2 + (way == "next in chat")  # the first finds out that there are only chats
    assert lm.rate([], []) == []


def test_a_prompt_after_which_no_option_is_likely_says_nothing(lm: RemoteLM, server: Server) -> None:
    server.ways = {"next"}
    known, unknown = lm.rate(["near", "@@far"], [["A", "B"], ["A", "B"]])
    assert known == [-1.5, -0.5]
    assert all(math.isnan(value) for value in unknown)


def test_a_server_without_log_probabilities_of_its_answers_is_told_apart(lm: RemoteLM) -> None:
    with pytest.raises(ModelError, match="gives no log probabilities of what it writes"):
        lm.rate(["p"], [["A", "B"]])


@pytest.mark.parametrize("way", ["rerank", "score"])
def test_documents_are_scored_by_whichever_endpoint_the_server_has(lm: RemoteLM, server: Server, way: str) -> None:
    assert isinstance(lm, RelevanceModel)
    server.ways = {way}
    found = lm.relevance(["query", "q", "none"], [["a", "four", "more"], ["longest", "b"], []])
    assert found == [[-4.0, -1.0, -1.0], [6.0, 0.0], []]
    assert lm.relevance(["none"], [[]]) == [[]]
    asked = [r for r in server.requests if ("query" in r) == (way == "rerank")]
    assert len(asked) == 2


def test_queries_are_sent_some_at_a_time(lm: RemoteLM, server: Server) -> None:
    server.ways, server.delay = {"rerank"}, 0.05
    assert lm.relevance(["q"] * 12, [["a", "b" * n] for n in range(12)]) == [[0.0, n - 1.0] for n in range(12)]
    assert 1 < server.most_busy <= 8


def test_a_server_without_a_reranker_is_told_apart(lm: RemoteLM, server: Server) -> None:
    with pytest.raises(ModelError, match="has neither the endpoint rerank nor score"):
        lm.relevance(["q"], [["a"]])


def test_scores_that_leave_out_a_document_are_nonsense(lm: RemoteLM, server: Server) -> None:
    server.ways = {"rerank"}
    with pytest.raises(ModelError, match="answered nonsense: rerank scores 1 of 2 documents"):
        lm.relevance(["q"], [["a", "@@lost"]])


def test_tokens_are_counted_as_the_server_says_and_estimated_where_it_does_not(lm: RemoteLM, server: Server) -> None:
    lm.generate(["a" * 400], stop=["."])
    assert (lm.usage.sent, lm.usage.received) == (101, 103)
    server.ways = {"usage", "rerank"}
    lm.generate(["a", "b"], stop=["."])
    assert (lm.usage.sent, lm.usage.received) == (101 + 2000, 103 + 2 * len("A. and more"))
    lm.relevance(["q"], [["a", "b"]])
    assert lm.usage.sent == 101 + 3000
    lm.usage.sent = lm.usage.received = 0
    server.ways = {"echo"}
    lm.score(["Next: "], [["Ran"]])
    assert lm.usage.sent > 0
