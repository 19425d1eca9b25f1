"""The packed reranker with models that say what the test tells them to."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from checks import MODELS, HashLM, assert_same_candidates, assert_well_formed, mean_ndcg
from contracts import RerankerContract
from recsys.data.split import Questions
from recsys.errors import BundleError, DataError, ModelError, SpecError, UnknownItemError
from recsys.lm.replay import ScriptedLM
from recsys.profiles import ProfilesConfig
from recsys.rerank import Fallback, Fused, PackedConfig, load_reranker
from recsys.rerank.fusion import LinearFusion
from recsys.rerank.packed import PackedJudge
from recsys.rerank.prompt import About, Prompt
from recsys.tables import Candidates, Catalog, Id, Profiles, Queries, Truth

Case = tuple[Queries, Candidates, Profiles, Catalog]
CONFIG = PackedConfig(depth=12, recent=4, tune_users=80)


def noisy_candidates(questions: Questions, catalog: Catalog, n: int, *, answer_in: bool = True) -> Candidates:
    """`n` items a query in an order that knows nothing of the answer, which is among them (or is not)."""
    items = catalog.frame["item_id"].to_list()
    rows = []
    for query_id, answer in questions.truth.frame.iter_rows():
        rng = np.random.default_rng(list(str(query_id).encode()))
        others = [items[i] for i in rng.permutation(len(items)) if items[i] != answer]
        listed = [*others[: n - answer_in], *([answer] if answer_in else [])]
        listed = [listed[i] for i in rng.permutation(n)]
        rows += [(query_id, item, float(n - at) / n, at + 1) for at, item in enumerate(listed)]
    ids = questions.queries.frame.schema
    frame = pl.DataFrame(
        rows,
        schema={
            "query_id": ids["query_id"],
            "item_id": catalog.frame.schema["item_id"],
            "score": pl.Float64,
            "rank": pl.Int64,
        },
        orient="row",
    )
    return Candidates(frame.with_columns(source=pl.lit("noise"), served_by=pl.lit("candidates")))


def case_of(world: Any, split: Any, part: str, n_queries: int, n_items: int) -> tuple[Questions, Case]:
    questions = split.questions(part)
    questions = Questions(
        Queries(questions.queries.frame.head(n_queries)), Truth(questions.truth.frame.head(n_queries))
    )
    profiles = ProfilesConfig().fit(split.fit, world.catalog, rated=world.rated, seed=0).as_of(questions.queries)
    candidates = noisy_candidates(questions, world.catalog, n_items)
    return questions, (questions.queries, candidates, profiles, world.catalog)


def reranker(lm: Any, config: PackedConfig = CONFIG, counts: dict[Id, int] | None = None) -> Fused:
    """One that listens to the model more than to the candidates."""
    weights = {"score": 1.0, "log_rank": 0.1, "lm": 2.0, "log_popularity": 0.3}
    judge = PackedJudge(config, Prompt.read(config.prompt), lm)
    return Fused(judge, config.depth, {"plain": LinearFusion(weights)}, counts or {})


def loaded(path: Path, lm: Any) -> Any:
    return load_reranker("packed", path, lambda: lm)


class TestPackedContract(RerankerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, world: Any, world_split: Any) -> Case:
        return case_of(world, world_split, "tune", 12, 20)[1]

    def make(self, lm: Any) -> Fused:
        return reranker(lm)

    def load(self, path: Path, lm: Any) -> Any:
        return loaded(path, lm)


class TestFallbackContract(TestPackedContract):
    def make(self, lm: Any) -> Any:
        return Fallback(reranker(lm))

    def load(self, path: Path, lm: Any) -> Any:
        return Fallback(load_reranker("packed", path, lambda: lm))


@pytest.fixture(scope="module")
def case(world: Any, world_split: Any) -> Case:
    return case_of(world, world_split, "tune", 12, 20)[1]


@pytest.fixture(scope="module")
def tuning(world: Any, world_split: Any) -> tuple[Questions, Case]:
    return case_of(world, world_split, "tune", 150, 20)


def fit(tuning: tuple[Questions, Case], world_split: Any, lm: Any, **changes: Any) -> Any:
    questions, (_, candidates, profiles, catalog) = tuning
    config = CONFIG.model_copy(update={"depth": 20, **changes})
    return config.fit(questions, candidates, profiles, catalog, world_split.fit, lm, seed=0)


def knows_the_answers(questions: Questions, catalog: Catalog, prompt: Prompt) -> Callable[[str, str], float]:
    """A likelihood that is higher for every title that is some user's answer, if the prompt says something."""
    titles = dict(catalog.frame.select("item_id", "title").iter_rows())
    good = {prompt.render_answer(titles[item]) for item in questions.truth.frame["item_id"]}

    def likelihood(text: str, answer: str) -> float:
        noise = HashLM().one(text, answer).mean / 40
        return noise + (1.0 if answer in good and text != prompt.empty else 0.0)

    return likelihood


def test_reads_profile_and_last_titles_and_scores_each_candidate_once(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    lm = ScriptedLM()
    reranker(lm).rerank(queries, candidates, profiles, catalog)
    contexts = [prompt for _, prompt in lm.calls if prompt != Prompt.read("pmi-v1").empty]
    assert len(set(contexts)) == len(queries)
    titles = dict(catalog.frame.select("item_id", "title").iter_rows())
    first, history = contexts[0], queries.frame["history"][0].to_list()
    assert profiles.frame["text"][0][:40].replace('"', "'") in first
    assert all(titles[item] in first for item in history[-CONFIG.recent :])
    assert len([c for c in contexts if c == first]) <= CONFIG.depth


def test_a_model_that_knows_the_answer_lifts_it(tuning: Any, world_split: Any) -> None:
    questions, (queries, candidates, profiles, catalog) = tuning
    lm = ScriptedLM(likelihood=knows_the_answers(questions, catalog, Prompt.read("pmi-v1")))
    fitted = fit(tuning, world_split, lm)
    assert fitted.fusions["plain"].weights["lm"] > 0
    truth = questions.truth.frame
    before, after = (
        mean_ndcg(candidates, truth),
        mean_ndcg(fitted.rerank(queries, candidates, profiles, catalog), truth),
    )
    assert after > before + 0.05
    assert fitted.report["without_lm"] < fitted.report["reranked"]


def test_a_model_that_knows_nothing_is_not_listened_to_nor_asked(tuning: Any, world_split: Any) -> None:
    _, case = tuning
    fitted = fit(tuning, world_split, ScriptedLM(likelihood=-2.0), features=("score", "lm"))
    assert dict(fitted.fusions["plain"].weights) == {"score": 1.0, "lm": 0.0}
    assert "kept" in fitted.report["verdict"]
    fitted.judge.lm.calls.clear()  # type: ignore[attr-defined]
    answer = fitted.rerank(*case)
    assert fitted.judge.lm.calls == []  # type: ignore[attr-defined]
    key = ["query_id", "rank"]
    assert answer.frame.sort(key)["item_id"].equals(case[1].frame.sort(key)["item_id"])


def test_the_fit_reads_at_most_tune_users_lists_and_only_those_with_the_answer(tuning: Any, world_split: Any) -> None:
    lm = ScriptedLM()
    fitted = fit(tuning, world_split, lm, tune_users=30)
    asked = {prompt for _, prompt in lm.calls} - {fitted.judge.prompt.empty}
    assert len(asked) == 30
    assert fitted.report["lists"] == 30
    assert fitted.report["with_answer"] == len(tuning[0])


def test_answers_outside_the_list_leave_the_candidates_order(tuning: Any, world_split: Any, world: Any) -> None:
    questions, (_, _, profiles, catalog) = tuning
    without = noisy_candidates(questions, catalog, 20, answer_in=False)
    fitted = CONFIG.fit(questions, without, profiles, catalog, world_split.fit, ScriptedLM(), seed=0)
    assert fitted.fusions["plain"].weights["score"] == 1.0
    assert fitted.report["lists"] == 0
    assert fitted.judge.lm.calls == []  # type: ignore[attr-defined]


def test_the_fit_is_deterministic_and_the_order_of_questions_is_free(tuning: Any, world_split: Any) -> None:
    questions, (queries, candidates, profiles, catalog) = tuning
    turned = Questions(Queries(queries.frame.reverse()), Truth(questions.truth.frame.reverse()))
    one = fit(tuning, world_split, HashLM(), tune_users=40)
    two = fit((turned, (turned.queries, candidates, profiles, catalog)), world_split, HashLM(), tune_users=40)
    assert one.fusions == two.fusions
    assert one.report == two.report
    assert one.judge.priors == two.judge.priors


def test_the_tail_beyond_depth_keeps_its_order_below(case: Case) -> None:
    queries, candidates, _, _ = case
    answer = reranker(HashLM()).rerank(*case)
    assert_well_formed(answer, queries, 20)
    tail = answer.frame.filter(pl.col("rank") > CONFIG.depth).sort("query_id", "rank")
    before = candidates.frame.filter(pl.col("rank") > CONFIG.depth).sort("query_id", "rank")
    assert tail["item_id"].equals(before["item_id"])
    assert set(tail["served_by"]) == {"candidates"}
    assert set(answer.frame.filter(pl.col("rank") <= CONFIG.depth)["served_by"]) == {"reranker"}


def test_shuffled_rows_of_candidates_change_nothing(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    shuffled = Candidates(candidates.frame.sample(fraction=1.0, shuffle=True, seed=3))
    assert_same_candidates(
        reranker(HashLM()).rerank(queries, shuffled, profiles, catalog), reranker(HashLM()).rerank(*case)
    )


def test_the_models_opinion_does_not_depend_on_the_order_that_candidates_come_in(case: Case) -> None:
    """Other ranks, the same opinions: the model is asked in one order whatever the list's."""
    queries, candidates, profiles, catalog = case
    asked: list[Any] = []

    class Listening(HashLM):
        def score(self, prompts: Any, answers: Any) -> Any:
            asked.append((tuple(prompts), tuple(tuple(row) for row in answers)))
            return super().score(prompts, answers)

    deep = CONFIG.model_copy(update={"depth": 20})
    reranker(Listening(), deep).rerank(*case)
    first, asked = asked, []
    turned = candidates.frame.with_columns(rank=21 - pl.col("rank"), score=1 / pl.col("score"))
    reranker(Listening(), deep).rerank(queries, Candidates(turned), profiles, catalog)
    assert {a for a in asked if len(a[1][0]) > 1} == {a for a in first if len(a[1][0]) > 1}


@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_a_query_with_a_broken_answer_keeps_its_candidates_and_is_counted(
    case: Case, broken: float, caplog: pytest.LogCaptureFixture
) -> None:
    queries, candidates, profiles, catalog = case
    lucky = Prompt.read("pmi-v1").render(
        About(
            profiles.frame["text"][0],
            [dict(catalog.frame.select("item_id", "title").iter_rows())[i] for i in queries.frame["history"][0][-4:]],
        )
    )
    lm = ScriptedLM(likelihood=lambda prompt, answer: broken if prompt == lucky else HashLM().one(prompt, answer).mean)
    with caplog.at_level(logging.WARNING):
        answer = reranker(lm).rerank(*case).frame
    assert "1 of 12 queries keep" in caplog.text
    hurt = pl.col("query_id") == queries.frame["query_id"][0]
    assert answer.filter(hurt).sort("rank").equals(candidates.frame.filter(hurt).sort("rank"))
    assert "reranker" in set(answer.filter(~hurt)["served_by"])


def test_a_broken_model_leaves_nothing_to_learn_from(tuning: Any, world_split: Any) -> None:
    for name in ("not a number", "impossible"):
        fitted = fit(tuning, world_split, MODELS[name])
        assert fitted.fusions["plain"].weights["lm"] == 0.0


def test_one_candidate_no_history_and_no_profile_are_fine(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    bare = Queries(queries.frame.with_columns(pl.col("history", "weights", "times").list.head(0)))
    one = Candidates(candidates.frame.filter(pl.col("rank") == 1))
    answer = reranker(HashLM()).rerank(bare, one, Profiles(profiles.frame.clear()), catalog)
    assert answer.frame["item_id"].equals(one.frame["item_id"])
    assert answer.frame["score"].is_finite().all()


def test_history_items_that_the_catalog_lacks_are_passed_over(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    gone = catalog.frame.filter(pl.col("item_id").is_in(candidates.frame["item_id"].implode()))
    assert len(reranker(HashLM()).rerank(queries, candidates, profiles, Catalog(gone))) == len(candidates)


def test_a_candidate_outside_the_catalog_is_named(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    missing = candidates.frame["item_id"][0]
    smaller = Catalog(catalog.frame.filter(pl.col("item_id") != missing))
    with pytest.raises(UnknownItemError, match=f"candidate item_id {missing!r} is not in the catalog"):
        reranker(HashLM()).rerank(queries, candidates, profiles, smaller)


def test_candidates_of_a_query_that_is_not_asked_are_refused(case: Case) -> None:
    queries, candidates, profiles, catalog = case
    fewer = Queries(queries.frame.tail(-1))
    for asked in (reranker(HashLM()), Fallback(reranker(HashLM()))):
        with pytest.raises(DataError, match="is not among the queries"):
            asked.rerank(fewer, candidates, profiles, catalog)


def test_priors_are_scored_once_per_title_and_saved(tuning: Any, world_split: Any, tmp_path: Path) -> None:
    _, case = tuning
    lm = ScriptedLM()
    fitted = fit(tuning, world_split, lm)
    empty = [prompt for _, prompt in lm.calls if prompt == fitted.judge.prompt.empty]
    assert len(empty) == len(fitted.judge.priors) == case[3].frame["title"].n_unique()
    fitted.save(tmp_path / "part")
    again = ScriptedLM()
    loaded(tmp_path / "part", again).rerank(*case)
    assert not [prompt for _, prompt in again.calls if prompt == fitted.judge.prompt.empty]


def test_in_a_large_catalog_only_titles_that_are_met_are_scored(tuning: Any, world_split: Any) -> None:
    few = fit(tuning, world_split, ScriptedLM(), prior_items=10, tune_users=3)
    assert 20 <= len(few.judge.priors) <= 60
    full = fit(tuning, world_split, ScriptedLM(), tune_users=3)
    assert few.fusions == full.fusions


def test_content_counts_where_the_candidates_have_it(tuning: Any, world_split: Any) -> None:
    questions, (queries, candidates, profiles, catalog) = tuning
    answers = questions.truth.frame.with_columns(score_content=pl.lit(0.9))
    unsaid = pl.when(pl.col("rank") > 2).then(0.1)
    with_content = candidates.frame.join(answers, on=["query_id", "item_id"], how="left").with_columns(
        pl.col("score_content").fill_null(unsaid)
    )
    telling = (questions, (queries, Candidates(with_content), profiles, catalog))
    fitted = fit(telling, world_split, HashLM(), tune_users=60)
    assert fitted.fusions["plain"].weights["content"] > 0.2
    assert "content" not in fit(tuning, world_split, HashLM(), tune_users=5).fusions["plain"].weights
    with pytest.raises(DataError, match="lack the feature 'content'"):
        fitted.rerank(queries, candidates, profiles, catalog)


def test_popularity_is_counted_in_the_log_of_the_fit(case: Case, world_split: Any) -> None:
    counts = dict(world_split.fit.frame.group_by("item_id").len().iter_rows())
    only = LinearFusion({"score": 0.0, "log_popularity": 1.0})
    config = CONFIG.model_copy(update={"depth": 20})
    by_count = replace(reranker(HashLM(), config, counts), fusions={"plain": only}).rerank(*case).frame
    for _, rows in by_count.group_by("query_id"):
        seen = [counts.get(item, 0) for item in rows.sort("rank")["item_id"]]
        assert seen == sorted(seen, reverse=True)


def test_another_language_model_is_refused(case: Case, tmp_path: Path) -> None:
    reranker(HashLM()).save(tmp_path / "part")
    with pytest.raises(BundleError, match="was fitted with the language model 'test/hash', but 'scripted' is given"):
        loaded(tmp_path / "part", ScriptedLM())
    with pytest.raises(BundleError, match="but none is given"):
        load_reranker("packed", tmp_path / "part", lambda: None)


def test_an_edited_prompt_in_a_saved_part_is_refused(tmp_path: Path) -> None:
    reranker(HashLM()).save(tmp_path / "part")
    file = tmp_path / "part" / "judge" / "judge.json"
    facts = json.loads(file.read_text())
    facts["prompt"]["text"] += "\nand more"
    file.write_text(json.dumps(facts))
    with pytest.raises(BundleError, match="the prompt's text is not that of pmi-v1@"):
        loaded(tmp_path / "part", HashLM())


@pytest.mark.parametrize("name", ["reranker.json", "counts.parquet", "judge/judge.json", "judge/priors.parquet"])
def test_a_damaged_part_is_a_bundle_error(tmp_path: Path, name: str) -> None:
    reranker(HashLM(), counts={1: 3}).save(tmp_path / "part")
    (tmp_path / "part" / name).write_bytes(b"not what it was")
    with pytest.raises(BundleError, match="is not readable as a"):
        loaded(tmp_path / "part", HashLM())


def test_a_failing_model_is_a_model_error(case: Case) -> None:
    with pytest.raises(ModelError, match="told to fail"):
        reranker(ScriptedLM(fails=True)).rerank(*case)


def test_the_config_refuses_what_it_does_not_know(tuning: Any, world_split: Any) -> None:
    with pytest.raises(ValidationError, match="depht"):
        PackedConfig(depht=3)  # type: ignore[call-arg]
    with pytest.raises(SpecError, match="no prompt 'nope'"):
        fit(tuning, world_split, HashLM(), prompt="nope")


def test_queries_with_a_request_have_weights_of_their_own_where_there_are_enough(tuning: Any, world_split: Any) -> None:
    """The model knows the answers of those who ask, and misleads about the others'."""
    questions, (queries, candidates, profiles, catalog) = tuning
    asks = (pl.int_range(pl.len()) % 2 == 0).alias("asks")
    said = queries.frame.with_columns(request=pl.when(asks).then(pl.lit("something light")).otherwise(pl.lit(" ")))
    truth = questions.truth.frame.with_columns(asks)
    prompt = Prompt.read("pmi-v1")
    knows = knows_the_answers(Questions(queries, Truth(truth.filter("asks").drop("asks"))), catalog, prompt)
    mixed = Questions(Queries(said), questions.truth)
    fitted = fit((mixed, (mixed.queries, candidates, profiles, catalog)), world_split, ScriptedLM(likelihood=knows))
    assert fitted.report["regimes"]["request"]["lists"] == 75 == fitted.report["lists"]
    assert fitted.fusions["request"].weights["lm"] > fitted.fusions["plain"].weights["lm"]
    few = Questions(Queries(said.with_columns(request=pl.lit(""))), questions.truth)
    alone = fit((few, (few.queries, candidates, profiles, catalog)), world_split, ScriptedLM(likelihood=knows))
    assert set(alone.fusions) == {"plain"}
    assert "regimes" not in alone.report


def test_a_query_is_ordered_by_the_weights_of_its_regime(case: Case, tmp_path: Path) -> None:
    queries, candidates, profiles, catalog = case
    asks = Queries(queries.frame.with_columns(request=pl.lit("something light")))
    both = replace(
        reranker(HashLM()),
        fusions={"plain": LinearFusion({"score": 1.0}), "request": LinearFusion({"score": 0.0, "lm": 1.0})},
    )
    both.save(tmp_path / "part")
    again = loaded(tmp_path / "part", HashLM())
    assert again.fusions == both.fusions
    key = ["query_id", "rank"]
    plain = again.rerank(*case).frame.sort(key)["item_id"]
    assert plain.equals(candidates.frame.sort(key)["item_id"])
    assert not again.rerank(asks, candidates, profiles, catalog).frame.sort(key)["item_id"].equals(plain)
