"""One suite per protocol. A part's own test file inherits a suite and says how the part is made, in a few lines:

    class TestTransitions(GeneratorContract):
        config = TransitionsConfig()
        margin = 0.05

Fixtures that the suites take (`world`, `world_split`) stand in conftest.py.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from checks import (
    MODELS,
    TOLERANCE,
    HashLM,
    assert_no_pickle,
    assert_same_candidates,
    assert_well_formed,
    backwards,
    mean_ndcg,
    one_by_one,
    with_history,
    with_word_vectors,
)
from recsys.errors import BundleError
from recsys.protocols import CandidateGenerator, ProfileSource, Reranker
from recsys.rerank import load_reranker
from recsys.tables import Candidates, Catalog, InteractionLog, Profiles, Queries


class GeneratorContract:
    """What every candidate generator keeps to."""

    config: ClassVar[Any]
    """A generator config with `exclude_seen` on, which is the default."""
    margin: ClassVar[float]
    """By how much NDCG@10 on the synthetic world beats `popular`; frozen well below what was measured."""
    n: ClassVar[int] = 20

    @pytest.fixture(scope="class")
    @classmethod
    def catalog(cls, world: Any) -> Catalog:
        return with_word_vectors(world.catalog)

    @pytest.fixture(scope="class")
    @classmethod
    def generator(cls, world_split: Any, catalog: Catalog) -> CandidateGenerator:
        return cls.fit(world_split.known, catalog)

    @pytest.fixture(scope="class")
    @classmethod
    def queries(cls, world_split: Any) -> Queries:
        return Queries(world_split.questions("test").queries.frame.head(40))

    @pytest.fixture(scope="class")
    @classmethod
    def answer(cls, generator: CandidateGenerator, queries: Queries) -> Candidates:
        return generator.generate(queries, cls.n)

    @classmethod
    def fit(cls, log: InteractionLog, catalog: Catalog, **changes: Any) -> CandidateGenerator:
        return cls.config.model_copy(update=changes).fit(log, catalog, seed=0)

    def test_answers_are_well_formed(self, answer: Candidates, queries: Queries) -> None:
        assert len(answer)
        assert_well_formed(answer, queries, self.n)

    def test_its_order_is_the_order_of_candidates(self, answer: Candidates) -> None:
        assert answer.frame["served_by"].unique().to_list() == ["candidates"]
        assert (answer.frame["source"] != "").all()

    def test_batch_equals_singles(self, generator: Any, queries: Queries, answer: Candidates) -> None:
        singles = [generator.generate(query, self.n).frame for query in one_by_one(queries)]
        assert_same_candidates(Candidates(pl.concat(singles)), answer)

    def test_the_order_of_queries_changes_nothing(self, generator: Any, queries: Queries, answer: Candidates) -> None:
        assert_same_candidates(generator.generate(backwards(queries), self.n), answer)

    def test_save_load_generate_equals_generate(
        self, generator: Any, queries: Queries, answer: Candidates, tmp_path: Path
    ) -> None:
        generator.save(tmp_path / "part")
        assert_no_pickle(tmp_path / "part")
        assert_same_candidates(type(generator).load(tmp_path / "part").generate(queries, self.n), answer)

    def test_a_second_fit_gives_the_same(
        self, world_split: Any, catalog: Catalog, queries: Queries, answer: Candidates
    ) -> None:
        assert_same_candidates(self.fit(world_split.known, catalog).generate(queries, self.n), answer)

    def test_fewer_items_are_the_head_of_more(self, generator: Any, queries: Queries, answer: Candidates) -> None:
        head = answer.frame.filter(pl.col("rank") <= 5)
        assert_same_candidates(generator.generate(queries, 5), Candidates(head))

    def test_more_than_the_catalog_gives_what_there_is(
        self, generator: Any, queries: Queries, answer: Candidates, catalog: Catalog
    ) -> None:
        everything = generator.generate(queries, 10 * len(catalog))
        assert_well_formed(everything, queries, len(catalog))
        assert_same_candidates(Candidates(everything.frame.filter(pl.col("rank") <= self.n)), answer)

    def test_where_scores_tie_fewer_items_are_still_the_head_of_more(
        self, world_split: Any, catalog: Catalog, queries: Queries
    ) -> None:
        """Most items tie, and the few better ones come after them: the hard case for a search that keeps a heap."""
        place = pl.int_range(pl.len())
        two_texts = catalog.frame.sort("item_id").with_columns(
            text=pl.when(place < pl.len() - 6).then(pl.lit("one thing")).otherwise(pl.lit("another matter"))
        )
        generator = self.fit(world_split.known, with_word_vectors(Catalog(two_texts)))
        query = with_history(queries, two_texts["item_id"].tail(1).to_list())
        head = generator.generate(query, len(catalog)).frame.filter(pl.col("rank") <= 10)
        assert_same_candidates(generator.generate(query, 10), Candidates(head))

    def test_its_proposals_hold_the_best_of_the_whole_catalog(self, generator: Any, queries: Queries) -> None:
        """Unseen items that reach the n-th best score, and no item twice; `generate` may order equals otherwise."""
        histories, at = generator.vocab.histories(queries), queries.frame["at"].to_numpy()
        rows, codes = generator.propose(histories, at, self.n)
        scores = generator.scores(histories, at)
        scores[histories.rows(), histories.items] = -np.inf
        scores[scores <= generator.floor] = -np.inf
        best = -np.sort(-scores, axis=1)[:, : self.n]
        found = np.split(scores[rows, codes], np.searchsorted(rows, np.arange(1, len(queries))))
        assert len(np.unique(rows * scores.shape[1] + codes)) == len(rows)
        for one, expected in zip(found, best, strict=True):
            np.testing.assert_allclose(-np.sort(-one), expected[np.isfinite(expected)], atol=TOLERANCE)

    def test_proposals_for_a_batch_equal_those_for_singles(self, generator: Any, queries: Queries) -> None:
        histories, at = generator.vocab.histories(queries), queries.frame["at"].to_numpy()
        rows, codes = generator.propose(histories, at, self.n)
        for row in range(len(queries)):
            _, alone = generator.propose(histories.slice(row, row + 1), at[row : row + 1], self.n)
            assert set(alone) == set(codes[rows == row])

    def test_scores_at_some_items_are_those_of_the_whole_catalog(self, generator: Any, queries: Queries) -> None:
        histories, at = generator.vocab.histories(queries), queries.frame["at"].to_numpy()
        scores = generator.scores(histories, at)
        some = np.random.default_rng(0).integers(0, scores.shape[1], (len(queries), 7))
        own = np.take_along_axis(scores, some, axis=1)
        np.testing.assert_allclose(generator.scores_at(histories, at, some), own, atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(
            generator.scores_at(histories, at, some[0]), scores[:, some[0]], atol=TOLERANCE, rtol=TOLERANCE
        )

    def test_moments_are_those_of_the_whole_catalog(self, generator: Any, queries: Queries) -> None:
        histories, at = generator.vocab.histories(queries), queries.frame["at"].to_numpy()
        scores = generator.scores(histories, at).astype(np.float64)
        mean, deviation = generator.moments(histories, at)
        np.testing.assert_allclose(mean, scores.mean(axis=1), atol=1e-4)
        np.testing.assert_allclose(deviation, scores.std(axis=1), rtol=1e-3, atol=1e-4)

    def test_seen_items_are_left_out(self, generator: Any, queries: Queries, catalog: Catalog) -> None:
        everything = generator.generate(queries, len(catalog)).frame
        seen = queries.frame.select("query_id", item_id="history").explode("item_id", empty_as_null=False)
        assert everything.join(seen, on=["query_id", "item_id"]).is_empty()

    def test_seen_items_come_back_where_repeats_are_wanted(
        self, world_split: Any, catalog: Catalog, queries: Queries
    ) -> None:
        repeating = self.fit(world_split.known, catalog, exclude_seen=False)
        everything = repeating.generate(queries, len(catalog))
        seen = queries.frame.select("query_id", item_id="history").explode("item_id", empty_as_null=False)
        assert_well_formed(everything, queries, len(catalog))
        assert len(everything.frame.join(seen, on=["query_id", "item_id"]))

    def test_an_empty_history_is_answered(self, generator: Any, queries: Queries) -> None:
        query = with_history(queries, [])
        assert_well_formed(generator.generate(query, self.n), query, self.n)

    def test_no_queries_give_no_candidates(self, generator: Any, queries: Queries) -> None:
        assert len(generator.generate(Queries(queries.frame.clear()), self.n)) == 0

    def test_unknown_items_in_a_history_change_nothing(self, generator: Any, queries: Queries) -> None:
        history = queries.frame["history"][0].to_list()
        unknown = -1 if isinstance(history[0], int) else "no such item"
        known = generator.generate(with_history(queries, history), self.n)
        assert_same_candidates(generator.generate(with_history(queries, [*history, unknown]), self.n), known)

    def test_items_without_a_catalog_row_are_never_proposed(
        self, world_split: Any, catalog: Catalog, queries: Queries
    ) -> None:
        gone = world_split.known.frame["item_id"].mode().sort()[0]
        smaller = Catalog(catalog.frame.filter(pl.col("item_id") != gone))
        everything = self.fit(world_split.known, smaller).generate(queries, len(catalog))
        assert gone not in set(everything.frame["item_id"])

    def test_ids_come_back_as_they_were_given(self, world_split: Any, catalog: Catalog, queries: Queries) -> None:
        def as_text(name: str) -> pl.Expr:
            return (pl.lit("é-") + pl.col(name).cast(pl.String)).alias(name)

        log = world_split.known.frame.with_columns(as_text("user_id"), as_text("item_id"))
        items = Catalog(catalog.frame.with_columns(as_text("item_id")))
        asked = queries.frame.with_columns(
            as_text("query_id"),
            as_text("user_id"),
            pl.col("history").list.eval(pl.lit("é-") + pl.element().cast(pl.String)),
        )
        answer = self.fit(InteractionLog.of(log), items).generate(Queries(asked), self.n).frame
        assert set(answer["item_id"]) <= set(items.frame["item_id"])
        assert set(answer["query_id"]) <= set(asked["query_id"])

    def test_beats_popular_on_known_tastes_by_the_frozen_margin(
        self, world_split: Any, catalog: Catalog, generator: Any
    ) -> None:
        from recsys.candidates.popular import PopularConfig

        popular = PopularConfig().fit(world_split.known, catalog, seed=0)
        questions = world_split.questions("test")
        truth = questions.truth.frame
        gain = mean_ndcg(generator.generate(questions.queries, 10), truth) - mean_ndcg(
            popular.generate(questions.queries, 10), truth
        )
        assert gain >= self.margin


class RerankerContract:
    """What every reranker keeps to. A test file gives the fixtures `case` and `make`, and `load`."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> tuple[Queries, Candidates, Profiles, Catalog]:
        """Some queries with candidates, profiles and the catalog."""
        raise NotImplementedError

    def make(self, lm: Any) -> Reranker:
        """A reranker around this language model, whose weight on the model's opinion is far from zero."""
        raise NotImplementedError

    def load(self, path: Path, lm: Any) -> Reranker:
        """What `save` wrote, around this language model."""
        raise NotImplementedError

    @pytest.mark.parametrize("model", MODELS)
    def test_returns_a_permutation_whatever_the_model_says(self, case: Any, model: str) -> None:
        queries, candidates, profiles, catalog = case
        answer = self.make(MODELS[model]).rerank(queries, candidates, profiles, catalog)
        assert_well_formed(answer, queries, len(candidates))
        key = ["query_id", "item_id"]
        assert_frame_equal(answer.frame.select(key).sort(key), candidates.frame.select(key).sort(key))

    def test_says_that_the_order_is_its_own(self, case: Any) -> None:
        assert "reranker" in set(self.make(HashLM()).rerank(*case).frame["served_by"])

    def test_the_models_opinion_changes_the_order(self, case: Any) -> None:
        _, candidates, _, _ = case
        key = ["query_id", "rank"]
        before = candidates.frame.sort(key)["item_id"].to_list()
        assert self.make(HashLM()).rerank(*case).frame.sort(key)["item_id"].to_list() != before

    def test_batch_equals_singles(self, case: Any) -> None:
        queries, candidates, profiles, catalog = case
        reranker, singles = self.make(HashLM()), []
        for query in one_by_one(queries):
            one = pl.col("query_id") == query.frame["query_id"][0]
            some, text = Candidates(candidates.frame.filter(one)), Profiles(profiles.frame.filter(one))
            singles.append(reranker.rerank(query, some, text, catalog).frame)
        assert_same_candidates(Candidates(pl.concat(singles)), reranker.rerank(*case))

    def test_the_order_of_queries_changes_nothing(self, case: Any) -> None:
        queries, candidates, profiles, catalog = case
        reranker = self.make(HashLM())
        turned = Profiles(profiles.frame.reverse())
        assert_same_candidates(reranker.rerank(backwards(queries), candidates, turned, catalog), reranker.rerank(*case))

    def test_no_candidates_stay_none(self, case: Any) -> None:
        queries, candidates, profiles, catalog = case
        nothing = Candidates(candidates.frame.clear())
        assert len(self.make(HashLM()).rerank(queries, nothing, profiles, catalog)) == 0

    def test_save_load_rerank_equals_rerank(self, case: Any, tmp_path: Path) -> None:
        reranker = self.make(HashLM())
        before = reranker.rerank(*case)
        reranker.save(tmp_path / "part")
        assert_no_pickle(tmp_path / "part")
        assert_same_candidates(self.load(tmp_path / "part", HashLM()).rerank(*case), before)


class PromptedContract(RerankerContract):
    """What every reranker keeps to whose judge writes prompts."""

    def test_the_order_of_rows_changes_nothing(self, case: Any) -> None:
        queries, candidates, profiles, catalog = case
        shuffled = Candidates(candidates.frame.sample(fraction=1.0, shuffle=True, seed=3))
        reranker = self.make(HashLM())
        assert_same_candidates(reranker.rerank(queries, shuffled, profiles, catalog), reranker.rerank(*case))

    def test_opinions_are_one_number_for_each_candidate(self, case: Any) -> None:
        queries, candidates, profiles, catalog = case
        heads = [rows.head(n) for n, rows in enumerate(candidates.frame.partition_by("query_id"), start=1)]
        judge: Any = self.make(HashLM()).judge  # type: ignore[attr-defined]
        opinions = list(judge.opinions(heads[:6], queries, profiles, catalog))
        assert [len(opinion) for opinion in opinions] == [len(head) for head in heads[:6]]
        assert all(opinion.dtype == np.float64 and np.isfinite(opinion).all() for opinion in opinions)

    def test_another_language_model_than_at_fit_is_refused(self, case: Any, tmp_path: Path) -> None:
        self.make(HashLM()).save(tmp_path / "part")
        with pytest.raises(BundleError, match="was fitted with the language model 'test/hash'"):
            load_reranker(self.make(HashLM()).judge.kind, tmp_path / "part", lambda: MODELS["mute"])  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", ["reranker.json", "counts.parquet", "judge/judge.json"])
    def test_a_damaged_part_is_a_bundle_error(self, tmp_path: Path, name: str) -> None:
        self.make(HashLM()).save(tmp_path / "part")
        (tmp_path / "part" / name).write_bytes(b"not what it was")
        with pytest.raises(BundleError, match="is not readable as a"):
            self.load(tmp_path / "part", HashLM())


class ProfileSourceContract:
    """What every profile source keeps to. A test file gives the fixture `source`, and `load`."""

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls) -> ProfileSource:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def queries(cls, world_split: Any) -> Queries:
        return Queries(world_split.questions("test").queries.frame.head(30))

    def load(self, path: Path) -> ProfileSource:
        """What `save` wrote."""
        raise NotImplementedError

    def test_gives_one_profile_per_query_in_their_order(self, source: Any, queries: Queries) -> None:
        key = ["query_id", "user_id"]
        assert_frame_equal(source.as_of(queries).frame.select(key), queries.frame.select(key))
        assert (source.as_of(queries).frame["text"].str.len_chars() > 0).all()

    def test_no_profile_is_younger_than_its_query(self, source: Any, queries: Queries) -> None:
        profiles = source.as_of(queries).frame.join(queries.frame.select("query_id", "at"), on="query_id")
        assert (profiles["as_of"] <= profiles["at"]).all()

    def test_what_is_met_later_is_never_mentioned(self, source: Any, queries: Queries, world: Any) -> None:
        titles = dict(world.catalog.frame.select("item_id", "title").iter_rows())
        half = pl.col("history").list.len() // 2
        cut = queries.frame.with_columns(
            pl.col("history").list.head(half),
            pl.col("weights").list.head(half),
            pl.col("times").list.head(half),
            at=pl.col("times").list.head(half).list.max().fill_null(0),
        )
        profiles = source.as_of(Queries(cut)).frame
        for text, claims, known, whole in zip(
            profiles["text"], profiles["claims"], cut["history"], queries.frame["history"], strict=True
        ):
            said = " ".join([text, *claims])
            earlier = [titles[item] for item in known]
            later = [titles[item] for item in whole.to_list()[len(known) :]]
            for title in later:
                if not any(title in name for name in earlier):
                    assert title not in said

    def test_batch_equals_singles(self, source: Any, queries: Queries) -> None:
        singles = pl.concat([source.as_of(query).frame for query in one_by_one(queries)])
        assert_frame_equal(singles, source.as_of(queries).frame)

    def test_the_order_of_queries_changes_nothing(self, source: Any, queries: Queries) -> None:
        assert_frame_equal(source.as_of(backwards(queries)).frame.reverse(), source.as_of(queries).frame)

    def test_an_empty_history_has_a_profile(self, source: Any, queries: Queries) -> None:
        profile = source.as_of(with_history(queries, [])).frame
        assert profile["text"].str.len_chars().item() > 0

    def test_an_anonymous_visitor_has_a_profile(self, source: Any, queries: Queries) -> None:
        visitors = Queries(queries.frame.with_columns(user_id=pl.lit(None, dtype=queries.frame.schema["user_id"])))
        assert source.as_of(visitors).frame["user_id"].null_count() == len(queries)

    def test_save_load_as_of_equals_as_of(self, source: Any, queries: Queries, tmp_path: Path) -> None:
        source.save(tmp_path / "part")
        assert_no_pickle(tmp_path / "part")
        assert_frame_equal(self.load(tmp_path / "part").as_of(queries).frame, source.as_of(queries).frame)
