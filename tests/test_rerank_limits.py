"""What bounds the prompt judges: the context, the budget, what a server offers; and what of them is saved."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from test_rerank_judges import Typed, reranker, shown
from test_rerank_packed import Case, case_of

from checks import HashLM, assert_same_candidates
from recsys.data.split import Questions
from recsys.errors import BundleError, ModelError, SpecError
from recsys.lm.replay import ReplayLM, ScriptedLM
from recsys.lm.usage import Usage, estimate
from recsys.rerank import (
    EndpointConfig,
    Fallback,
    ListwiseConfig,
    PackedConfig,
    PairwiseConfig,
    SetwiseConfig,
    load_reranker,
)
from recsys.rerank.budget import Budget
from recsys.rerank.fusion import LinearFusion
from recsys.rerank.judge import same_model
from recsys.tables import Queries

ALL = ("request", "recent", "profile", "evidence")


@pytest.fixture(scope="module")
def case(world: Any, world_split: Any) -> Case:
    return case_of(world, world_split, "tune", 12, 20)[1]


@pytest.fixture(scope="module")
def tuning(world: Any, world_split: Any) -> tuple[Questions, Case]:
    return case_of(world, world_split, "tune", 60, 12)


class Tight(HashLM):
    """A local model with a small context, a token for every word."""

    context = 240

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def count(self, text: str) -> int:
        return len(text.split())

    def generate(self, prompts: Any, **kwargs: Any) -> list[str]:
        self.prompts += prompts
        return super().generate(prompts, **kwargs)


def test_a_prompt_that_is_too_long_loses_history_first_and_never_a_candidate(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    queries, candidates, profiles, catalog = case
    lm = Tight()
    config = ListwiseConfig(depth=8, recent=100, answer_tokens=20)
    with caplog.at_level(logging.WARNING):
        reranker(config, lm).rerank(*case)
    assert "of 12 users: history cut to fit" in caplog.text
    titles = dict(catalog.frame.select("item_id", "title").iter_rows())
    for prompt in lm.prompts:
        assert lm.count(prompt) <= lm.context - 64 - 20
        assert len(shown(prompt)) == 8
        assert "About the person:" in prompt
    history = queries.frame["history"][0].to_list()
    assert titles[history[-1]] in lm.prompts[0]
    assert titles[history[0]] not in lm.prompts[0].split("There are")[0]
    wide = reranker(config.model_copy(update={"context": 5000, "recent": 20}), Tight())
    caplog.clear()
    wide.rerank(queries, candidates, profiles, catalog)
    assert "history cut" not in caplog.text


def test_a_list_that_alone_is_too_long_is_an_error_that_says_what_to_do(case: Case) -> None:
    config = ListwiseConfig(depth=20, context=100)
    with pytest.raises(ModelError, match=r"20 candidates do not fit into its context of 100 tokens.*window"):
        reranker(config, Tight()).rerank(*case)


class Metered(HashLM):
    """A server that counts 100 tokens for every prompt and 5 for every answer."""

    def __init__(self) -> None:
        self.usage = Usage(sent=12_345)
        self.asked = 0

    def generate(self, prompts: Any, **kwargs: Any) -> list[str]:
        self.asked += len(prompts)
        self.usage.add(100 * len(prompts), 5 * len(prompts))
        return super().generate(prompts, **kwargs)


@pytest.mark.parametrize(
    "limit", [{"max_tokens": 5000}, {"max_cost": 0.006, "price_in": 1.0, "price_out": 4.0}], ids=["tokens", "cost"]
)
def test_when_the_budget_is_used_up_the_rest_keeps_its_order_and_is_counted(
    case: Case, limit: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, candidates, _, _ = case
    lm = Metered()
    spending = reranker(ListwiseConfig(depth=10, window=4, stride=2, **limit), lm)
    with caplog.at_level(logging.WARNING):
        answer = Fallback(spending).rerank(*case).frame
    assert re.search(r"(\d+) of 12 lists not judged: the budget of .* is used up", caplog.text)
    spent = spending.judge.budget.spent  # type: ignore[attr-defined]
    assert spent == (100 * lm.asked, 5 * lm.asked)
    assert sum(spent) <= limit.get("max_tokens", 6000)
    kept = answer.filter(pl.col("served_by") == "candidates", pl.col("rank") <= 10)["query_id"].unique()
    before = candidates.frame.filter(pl.col("query_id").is_in(kept.implode())).sort("query_id", "rank")
    assert len(kept)
    assert answer.filter(pl.col("query_id").is_in(kept.implode())).sort("query_id", "rank").equals(before)


def test_a_server_that_reads_the_prompt_with_every_title_is_not_asked_beyond_the_budget(case: Case) -> None:
    class Reading(HashLM):
        def __init__(self) -> None:
            self.usage = Usage()

        def score(self, prompts: Any, answers: Any) -> Any:
            """As `RemoteLM.score`: each prompt alone, and once more with each of its answers."""
            for text in {*prompts, *(p + a for p, row in zip(prompts, answers, strict=True) for a in row)}:
                self.usage.add(estimate(text), 1)
            return super().score(prompts, answers)

    spending = reranker(PackedConfig(depth=10, max_tokens=10_000), Reading())
    answer = Fallback(spending).rerank(*case).frame
    assert 5000 < sum(spending.judge.budget.spent) <= 10_000  # type: ignore[attr-defined]
    assert answer.filter(pl.col("rank") == 1)["served_by"].n_unique() == 2, "some lists are paid for, and some are not"


def test_a_budget_that_is_spent_asks_nothing_more(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    lm = Metered()
    spending = reranker(SetwiseConfig(max_tokens=3000), lm)
    spending.judge.budget.note(0, 0)  # type: ignore[attr-defined]
    lm.usage.add(3000, 0)
    with pytest.raises(ModelError, match="setwise reranker: its budget of 3000 tokens is used up"):
        spending.rerank(*case)
    with caplog.at_level(logging.WARNING):
        answer = Fallback(spending).rerank(*case).frame
    assert "12 of 12 queries keep the candidates' order: setwise reranker: its budget" in caplog.text
    assert set(answer["served_by"]) == {"candidates"}
    assert lm.asked == 0


def test_a_budget_counts_by_estimate_where_nobody_counts() -> None:
    budget = Budget.of(HashLM(), 100, None, (0.0, 0.0))
    assert budget.affordable([(40, 10), (40, 10), (1, 0)]) == 2
    budget.note(60, 20)
    assert budget.spent == (60, 20)
    assert not budget.used_up
    assert budget.affordable([(20, 1)]) == 0
    budget.note(20, 0)
    assert budget.used_up


def test_the_users_of_a_block_are_asked_for_at_the_same_time(case: Case) -> None:
    sizes = []

    class Listening(HashLM):
        def generate(self, prompts: Any, **kwargs: Any) -> list[str]:
            sizes.append(len(prompts))
            return super().generate(prompts, **kwargs)

    reranker(ListwiseConfig(depth=20, window=8, stride=4), Listening()).rerank(*case)
    assert sizes == [12] * 4
    sizes.clear()
    reranker(PairwiseConfig(depth=4, top=1), Listening()).rerank(*case)
    assert sizes == [24] * 3


@pytest.mark.parametrize("config", [SetwiseConfig(method="choice"), PairwiseConfig(method="choice"), EndpointConfig()])
def test_what_only_a_server_can_do_is_refused_without_one(config: Any, tuning: Any, world_split: Any) -> None:
    questions, (_, candidates, profiles, catalog) = tuning
    with pytest.raises(SpecError, match=r"set lm\.kind = 'remote'"):
        config.fit(questions, candidates, profiles, catalog, world_split.fit, HashLM(), seed=0)


def test_typed_decisions_and_an_endpoints_scores_are_recorded_too(case: Case, tmp_path: Path) -> None:
    for config in (
        SetwiseConfig(depth=6, method="choice"),
        ListwiseConfig(depth=6, method="logprobs"),
        EndpointConfig(depth=6),
    ):
        fresh = reranker(config, Typed()).rerank(*case)
        recorded = reranker(config, ReplayLM(Typed(), tmp_path)).rerank(*case)
        replayed = reranker(config, ReplayLM(Typed(), tmp_path, mode="replay-only")).rerank(*case)
        assert_same_candidates(recorded, fresh)
        assert_same_candidates(replayed, fresh)
    for ask in (
        lambda lm: lm.choose(["p"], ["A"]),
        lambda lm: lm.rate(["p"], [["A"]]),
        lambda lm: lm.relevance(["q"], [["d"]]),
    ):
        with pytest.raises(ModelError, match="test/hash: has no"):
            ask(ReplayLM(HashLM(), tmp_path))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"window": 30}, "there are 26 letters: a window of 30 needs labels = 'numbers'"),
        ({"window": 5, "stride": 6}, "leaves out candidates"),
        ({"max_cost": 1.0}, "max_cost needs price_in and price_out"),
        ({"conditions": ["mood"]}, "conditions"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ListwiseConfig(**wrong)


def test_a_saved_judge_keeps_its_kind_and_prompt(case: Case, tmp_path: Path) -> None:
    reranker(SetwiseConfig(), HashLM()).save(tmp_path / "part")
    with pytest.raises(BundleError, match="is a reranker of kind 'setwise' and format 2, not 'pairwise'"):
        load_reranker("pairwise", tmp_path / "part", HashLM)
    unheard = replace(reranker(SetwiseConfig(), HashLM()), fusions={"plain": LinearFusion({"score": 1.0, "lm": 0.0})})
    unheard.save(tmp_path / "unheard")
    opened: Sequence[Any] = []
    again = load_reranker("setwise", tmp_path / "unheard", lambda: opened[0])  # fails if it is asked for
    assert again.rerank(*case).frame["item_id"].equals(unheard.rerank(*case).frame["item_id"])


def test_both_orders_of_a_pair_cancel_what_a_model_has_for_a_place(case: Case) -> None:
    """It likes A by far more than what it knows of the titles; and the best title still rises."""
    queries, candidates, profiles, catalog = case

    def likelihood(prompt: str, answer: str) -> float:
        return (2.0 if answer == " A" else 0.0) + len(shown(prompt)[answer.strip()]) / 100 - 5

    titles = dict(catalog.frame.select("item_id", "title").iter_rows())
    heads = candidates.frame.filter(pl.col("rank") <= 6).partition_by("query_id", maintain_order=True)
    for algorithm in ("sliding", "heap"):
        config = PairwiseConfig(top=2, algorithm=algorithm, method="logprobs")  # type: ignore[arg-type]
        judge = reranker(config, ScriptedLM(likelihood=likelihood)).judge
        for head, opinion in zip(heads, judge.opinions(heads, queries, profiles, catalog), strict=True):
            lengths = [len(titles[item]) for item in head["item_id"]]
            assert lengths[int(opinion.argmax())] == max(lengths)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("qwen@0123abcd:bf16", "my-folder@0123abcd:bf16", True),
        ("qwen@0123abcd:bf16", "qwen@0123abcd:fp32", False),
        ("qwen@0123abcd:bf16", "qwen@9999abcd:bf16", False),
        ("qwen@0123abcd:bf16+lora-11112222", "moved@0123abcd:bf16+lora-11112222", True),
        ("qwen@0123abcd:bf16+lora-11112222", "qwen@0123abcd:bf16", False),
        ("org/qwen@localhost:8000", "org/qwen@api.example.org", True),
        ("org/qwen@localhost:8000", "org/llama@localhost:8000", False),
        ("qwen@0123abcd:bf16", "qwen@localhost:8000", False),
        ("test/hash", "scripted", False),
    ],
)
def test_a_language_model_is_known_by_its_weights_or_by_its_servers_name_for_it(
    one: str, other: str, same: bool
) -> None:
    assert same_model(one, other) is same
    assert same_model(other, one) is same


def test_titles_that_grow_beyond_the_bound_of_prompts_are_counted(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    queries, candidates, profiles, catalog = case
    history = pl.Series("history", [catalog.frame["item_id"].head(100).to_list()] * len(queries))
    queries = Queries(
        queries.frame.with_columns(
            history, weights=pl.lit([1.0] * 100), times=pl.lit([0] * 100, dtype=pl.List(pl.Int64))
        )
    )
    with caplog.at_level(logging.WARNING):
        reranker(ListwiseConfig(depth=4, recent=100), HashLM()).rerank(queries, candidates, profiles, catalog)
    assert "12 of 12 users: history cut to fit the prompt into 2000 characters" in caplog.text
    caplog.clear()
    reranker(ListwiseConfig(depth=4, recent=20), HashLM()).rerank(queries, candidates, profiles, catalog)
    assert "history cut" not in caplog.text


def test_what_is_longest_to_a_model_is_told_by_bytes_of_what_is_shown() -> None:
    judge = reranker(ListwiseConfig(depth=4, candidate="text"), HashLM()).judge
    assert judge.longest_of(["a" * 40, "\u6f22" * 20, "b" * 10], 2) == ["a" * 40, "\u6f22" * 20]  # type: ignore[attr-defined]
