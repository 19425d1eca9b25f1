"""No reranker at all, and a reranker whose model fails."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_rerank_packed import Case, case_of, reranker

from recsys.errors import BundleError
from recsys.lm.replay import ScriptedLM
from recsys.rerank import Fallback, Identity, IdentityConfig, load_reranker
from recsys.tables import Candidates


@pytest.fixture(scope="module")
def case(world: Any, world_split: Any) -> Case:
    return case_of(world, world_split, "tune", 40, 15)[1]


def test_identity_gives_the_candidates_as_they_came(case: Case, tmp_path: Path) -> None:
    identity = IdentityConfig().build()
    assert identity.rerank(*case) is case[1]
    identity.save(tmp_path / "part")
    assert load_reranker("identity", tmp_path / "part", lambda: None) == Identity()


def test_a_folder_of_another_reranker_is_no_identity(tmp_path: Path) -> None:
    reranker(ScriptedLM()).save(tmp_path / "part")
    with pytest.raises(BundleError, match="is a reranker of kind 'packed'"):
        Identity.load(tmp_path / "part")
    with pytest.raises(BundleError, match="missing or not readable"):
        Identity.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match="no reranker of kind 'magic'"):
        load_reranker("magic", tmp_path / "part", lambda: None)


def test_queries_that_the_model_fails_on_keep_their_candidates(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    queries, candidates, profiles, _ = case
    texts = profiles.frame["text"].to_list()
    unlucky = {texts[3][:30], texts[20][:30]}
    lm = ScriptedLM(fails=lambda prompt: prompt[:30] in unlucky)
    with caplog.at_level(logging.WARNING):
        answer = Fallback(reranker(lm)).rerank(*case).frame
    hurt = [q for q, text in zip(queries.frame["query_id"], texts, strict=True) if text[:30] in unlucky]
    assert 2 <= len(hurt) < len(queries)
    assert f"{len(hurt)} of {len(queries)} queries keep the candidates' order: scripted model" in caplog.text
    kept = answer.filter(pl.col("query_id").is_in(hurt)).sort("query_id", "rank")
    assert kept.equals(candidates.frame.filter(pl.col("query_id").is_in(hurt)).sort("query_id", "rank"))
    others = answer.filter(~pl.col("query_id").is_in(hurt)).filter(pl.col("rank") == 1)
    assert set(others["served_by"]) == {"reranker"}


def test_a_dead_model_is_not_asked_for_every_query(case: Case) -> None:
    lm = ScriptedLM(fails=True)
    answer = Fallback(reranker(lm), give_up_after=3).rerank(*case)
    assert set(answer.frame["served_by"]) == {"candidates"}
    assert len(lm.calls) <= 5
    key = ["query_id", "rank"]
    assert answer.frame.sort(key).equals(case[1].frame.sort(key))


def test_the_next_call_asks_a_dead_model_again(case: Case) -> None:
    lm = ScriptedLM(fails=True)
    fallback = Fallback(reranker(lm))
    fallback.rerank(*case)
    before = len(lm.calls)
    fallback.rerank(*case)
    assert len(lm.calls) > before


def test_without_failures_the_answer_is_the_primarys(case: Case) -> None:
    key = ["query_id", "rank"]
    alone = reranker(ScriptedLM()).rerank(*case).frame.sort(key)
    assert Fallback(reranker(ScriptedLM())).rerank(*case).frame.sort(key).equals(alone)


def test_no_queries_no_candidates(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    nothing = Candidates(candidates.frame.clear())
    assert len(Fallback(reranker(ScriptedLM())).rerank(queries, nothing, profiles, catalog)) == 0
