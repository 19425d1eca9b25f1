"""The sequence reranker: what it reads, how it is trained, and that it never saw an answer."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from test_rerank_packed import noisy_candidates

from checks import (
    WordEncoder,
    assert_ranks_a_stranger,
    assert_same_candidates,
    mean_ndcg,
    one_by_one,
    with_word_vectors,
)
from contracts import RerankerContract
from recsys.candidates import PopularConfig
from recsys.data.split import Questions
from recsys.data.vocab import Vocab
from recsys.errors import BundleError, ModelError, SpecError, UnknownItemError
from recsys.profiles import ProfilesConfig
from recsys.rerank import Fallback, Fused, SequenceConfig, load_reranker
from recsys.rerank.fusion import LinearFusion
from recsys.rerank.mentions import Mentions
from recsys.rerank.requests import Facets, Wording, Writer
from recsys.rerank.sequence import SequenceJudge
from recsys.rerank.train import Course, School, train_sequence
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, InteractionLog, Profiles, Queries

SMALL = SequenceConfig(
    dim=32,
    length=20,
    epochs=6,
    patience=2,
    finish=1,
    heldout=100,
    written=2500,
    exercises=3,
    understood=0.1,  # words that a request has in common with training are all that these encoders know
    told=150,
    rate=3e-3,
    dropout=0.1,
)
Case = tuple[Queries, Candidates, Profiles, Catalog]


@pytest.fixture(scope="module")
def catalog(world: Any) -> Catalog:
    return with_word_vectors(world.catalog)


def school_of(world: Any, split: Any, catalog: Catalog, folder: Path) -> School:
    popular = PopularConfig().fit(split.fit, catalog, seed=0)
    describe = ProfilesConfig().fit(split.fit, catalog, rated=world.rated, seed=0)
    settings = Settings(cache_dir=folder, device="cpu", offline=True)
    return School(
        split.fit,
        split.known,
        catalog,
        describe,
        lambda queries: popular.generate(queries, 60),
        WordEncoder(),
        settings,
    )


@pytest.fixture(scope="module")
def school(world: Any, world_split: Any, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> School:
    return school_of(world, world_split, catalog, tmp_path_factory.mktemp("school"))


@pytest.fixture(scope="module")
def trained(world_split: Any, school: School) -> Fused:
    questions = world_split.questions("tune")
    return train_sequence(SMALL, school, questions, school.describe.as_of(questions.queries), seed=0)


@pytest.fixture(scope="module")
def judge(trained: Fused) -> SequenceJudge:
    assert isinstance(trained.judge, SequenceJudge)
    return trained.judge


@pytest.fixture(scope="module")
def case(world_split: Any, school: School, catalog: Catalog) -> Case:
    """Queries of all regimes: a request, no history but a profile, and neither."""
    questions = world_split.questions("test")
    queries = questions.queries.frame.head(12)
    profiles = school.describe.as_of(Queries(queries))
    place = pl.int_range(pl.len())
    queries = queries.with_columns(
        request=pl.when(place % 3 == 1).then(pl.lit("some comedy, no horror")).otherwise("request"),
        **{
            name: pl.when(place % 3 == 2).then(pl.col(name).list.head(0)).otherwise(name)
            for name in ("history", "weights", "times")
        },
    )
    truth = questions.truth.frame.head(12)
    candidates = noisy_candidates(Questions(Queries(queries), type(questions.truth)(truth)), catalog, 20)
    return Queries(queries), candidates, profiles, catalog


def listening(judge: SequenceJudge) -> Fused:
    weights = LinearFusion({"score": 1.0, "lm": 2.0})
    return Fused(judge, 12, {"plain": weights, "request": weights, "told": weights}, {})


class TestSequenceContract(RerankerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, world_split: Any, school: School, catalog: Catalog) -> Case:
        questions = world_split.questions("test")
        questions = Questions(
            Queries(questions.queries.frame.head(12)), type(questions.truth)(questions.truth.frame.head(12))
        )
        profiles = school.describe.as_of(questions.queries)
        return questions.queries, noisy_candidates(questions, catalog, 20), profiles, catalog

    @pytest.fixture(autouse=True)
    def _with(self, judge: SequenceJudge) -> None:
        self.judge = judge

    def make(self, lm: Any) -> Fused:
        return listening(self.judge)

    def load(self, path: Path, lm: Any) -> Any:
        return load_reranker("sequence", path, lambda: None, WordEncoder)


def test_what_is_loaded_reads_all_texts_alike(judge: SequenceJudge, case: Case, tmp_path: Path) -> None:
    listening(judge).save(tmp_path / "part")
    loaded = load_reranker("sequence", tmp_path / "part", lambda: None, WordEncoder)
    assert_same_candidates(loaded.rerank(*case), listening(judge).rerank(*case))


def test_batch_equals_singles_with_texts(judge: SequenceJudge, case: Case) -> None:
    queries, _, profiles, _ = case
    whole = judge.scores(queries, profiles)
    for row, query in enumerate(one_by_one(queries)):
        np.testing.assert_allclose(judge.scores(query, profiles)[0], whole[row], atol=1e-4)


def test_the_order_of_candidates_changes_no_score(judge: SequenceJudge, case: Case) -> None:
    queries, candidates, profiles, catalog = case
    heads = candidates.frame.partition_by("query_id", maintain_order=True)
    straight = list(judge.opinions(heads, queries, profiles, catalog))
    turned = list(judge.opinions([head.reverse() for head in heads], queries, profiles, catalog))
    for one, other in zip(straight, turned, strict=True):
        np.testing.assert_allclose(one, other[::-1], atol=1e-4)


def test_opinions_are_the_scores_of_the_candidates(judge: SequenceJudge, case: Case) -> None:
    queries, candidates, profiles, catalog = case
    heads = candidates.frame.partition_by("query_id", maintain_order=True)
    scores = judge.scores(queries, profiles)
    for row, (head, opinion) in enumerate(zip(heads, judge.opinions(heads, queries, profiles, catalog), strict=True)):
        whole = opinion.sum(axis=1) if opinion.ndim == 2 else opinion  # with what the request means beside it
        np.testing.assert_allclose(whole, scores[row, judge.vocab.encode(head["item_id"])], atol=1e-4)


def test_requests_make_the_order_better_than_the_candidates_by_a_frozen_margin(
    trained: Fused, school: School, world_split: Any, catalog: Catalog
) -> None:
    questions = world_split.questions("test")
    course_vocab = Vocab.of_items(catalog)
    writer = _writer(school, catalog)
    requests = writer.write(course_vocab.encode(questions.truth.frame["item_id"]), 77)
    queries = Queries(questions.queries.frame.with_columns(request=pl.Series([r.text for r in requests])))
    candidates = school.generate(queries)
    ranked = trained.rerank(queries, candidates, school.describe.as_of(queries), catalog)
    truth = questions.truth.frame
    assert mean_ndcg(ranked, truth) >= mean_ndcg(candidates, truth) + 0.1


def _writer(school: School, catalog: Catalog) -> Writer:
    from recsys.networks.items import centred, item_vectors
    from recsys.rerank.requests import Facets

    vocab = Vocab.of_items(catalog)
    facets = Facets.of(catalog, vocab, vocab.encode(school.before.frame["item_id"]))
    return Writer(facets, Wording.read(), centred(item_vectors(catalog, vocab)))


def test_what_requests_mean_is_learned_from_nothing_where_nothing_is_shipped(trained: Fused) -> None:
    assert trained.report["training"]["meanings"] == "learned"
    assert trained.report["training"]["understood"] > 0.1
    assert trained.judge.ear.learned  # type: ignore[attr-defined]


def test_plain_lists_are_never_worse_on_tune_than_they_came(trained: Fused) -> None:
    assert trained.report["queries"] > 50
    assert trained.report["reranked"] >= trained.report["candidates"]
    assert set(trained.report["regimes"]) <= {"request", "told"}
    assert trained.report["regimes"]["request"]["gain"] > 0


def test_a_profile_counts_only_where_there_is_no_history(judge: SequenceJudge, case: Case) -> None:
    queries, _, profiles, _ = case
    others = Profiles(profiles.frame.with_columns(text=pl.lit("You are unusually fond of horror.")))
    differs = np.abs(judge.scores(queries, profiles) - judge.scores(queries, others)).max(axis=1) > 1e-3
    empty = (queries.frame["history"].list.len() == 0).to_numpy()
    assert (differs == empty).all()


def test_who_asks_again_is_not_read_again_and_a_profile_stays_with_its_own(
    judge: SequenceJudge, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    (queries, _, profiles, _), events = case, pl.col("history").list.len()
    one, nobody = (Queries(queries.frame.filter(some).head(1)) for some in (events > 0, events == 0))
    fresh = replace(judge)  # remembers nothing yet
    nothing = Profiles(profiles.frame.clear())
    alone, told = fresh.scores(nobody, nothing), profiles.frame.with_columns(text=pl.lit("You are fond of horror."))
    assert np.abs(fresh.scores(nobody, Profiles(told)) - alone).max() > 1e-3
    np.testing.assert_array_equal(fresh.scores(nobody, nothing), alone)
    first = fresh.scores(one, profiles)
    monkeypatch.setattr("recsys.rerank.plain_reader.PlainReader._through", None)  # is not asked again
    np.testing.assert_array_equal(fresh.scores(one, profiles), first)
    with pytest.raises(TypeError):
        replace(judge).scores(one, profiles)


def test_a_profile_that_rests_on_nothing_is_not_read(judge: SequenceJudge, school: School, case: Case) -> None:
    queries = Queries(case[0].frame.filter(pl.col("history").list.len() == 0))
    nothing = school.describe.as_of(queries)
    claims = nothing.frame["claims"]
    assert claims.list.first().to_list() == ["events|n=0"] * len(queries)
    # what is added is true of everybody, and says nothing of these
    assert all(claim.startswith("everybody|") for others in claims.list.slice(1) for claim in others)
    assert claims.list.len().min() > 1
    unread = judge.scores(queries, Profiles(nothing.frame.clear()))
    np.testing.assert_array_equal(judge.scores(queries, nothing), unread)


def test_what_is_refused_falls_behind_and_what_is_wanted_comes_first(judge: SequenceJudge, case: Case) -> None:
    queries, _, profiles, _ = case
    frame = queries.frame.filter(pl.col("history").list.len() > 0)
    carried = judge.ear.carried[:, judge.ear.names.index("comedy")] > 0
    plain = judge.scores(Queries(frame.with_columns(request=pl.lit(""))), profiles)
    gained = {
        text: judge.scores(Queries(frame.with_columns(request=pl.lit(text))), profiles) - plain
        for text in ("no comedy", "some comedy")
    }
    apart = {text: gain[:, carried].mean() - gain[:, ~carried].mean() for text, gain in gained.items()}
    assert apart["no comedy"] < 0 < apart["some comedy"]
    assert apart["no comedy"] < apart["some comedy"] - 0.1


def test_what_was_understood_can_be_shown(judge: SequenceJudge) -> None:
    title = next(title for title in judge.ear.mentions.titles if " " in title)
    (said,) = judge.understood([f"something like {title}"])
    assert said["like"] == title
    assert said["than"] in (None, "newer", "older")
    assert set(said["wants"]) | set(said["refuses"]) <= set(judge.ear.names)
    assert judge.understood([]) == []


def test_answers_change_nothing_that_is_trained_before_tune(
    world: Any, world_split: Any, school: School, tmp_path: Path
) -> None:
    """The network before tune is the same bit for bit when every answer of tune and test is another one."""

    class Other:
        fit = world_split.fit
        known = InteractionLog(
            pl.concat([world_split.fit.frame, world_split.tune.frame.with_columns(pl.col("item_id").shuffle(seed=1))])
        )

    quick = SMALL.model_copy(update={"epochs": 1, "exercises": 1, "told": 20, "written": 240})
    other = school_of(world, Other, school.catalog, tmp_path)
    networks = [Course.of(quick, s, 0).explore() for s in (school, other)]
    for one, two in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(one, two)


def test_nothing_that_a_profile_tells_is_younger_than_its_answers(school: School, world_split: Any) -> None:
    from recsys.rerank.told import Told

    asked: list[Queries] = []

    class Spy:
        def as_of(self, queries: Queries) -> Profiles:
            asked.append(queries)
            return school.describe.as_of(queries)

        def save(self, path: Path) -> None: ...

    vocab = Vocab.of_items(school.catalog)
    mentions = Mentions.of(Facets.of(school.catalog, vocab, vocab.encode(school.before.frame["item_id"])).titles)
    told = Told.write(school.before, vocab, Spy(), WordEncoder(), mentions, 50, seed=0)
    assert len(told.named.items) > len(told)
    (queries,) = asked
    whole = dict(school.before.frame.group_by("user_id").agg("item_id").select("user_id", "item_id").iter_rows())
    for row, (user, history) in enumerate(queries.frame.select("user_id", "history").iter_rows()):
        named = told.named.items[told.named.indptr[row] : told.named.indptr[row + 1]]
        assert set(named) <= set(vocab.encode(pl.Series(history)))
        later = whole[user][len(history) :]
        assert whole[user][: len(history)] == history
        assert told.items[told.indptr[row] : told.indptr[row + 1]].tolist() == vocab.encode(pl.Series(later)).tolist()


def test_a_stranger_among_the_candidates_is_named(judge: SequenceJudge, case: Case) -> None:
    queries, candidates, profiles, catalog = case
    stranger = candidates.frame.with_columns(
        item_id=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("nobody")).otherwise("item_id")
    )
    with pytest.raises(UnknownItemError, match="item_id 'nobody' is not in the catalog"):
        listening(judge).rerank(queries, Candidates(stranger), profiles, catalog)


def test_without_its_encoder_texts_fall_back_and_the_rest_does_not(
    judge: SequenceJudge, case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listening(judge).save(tmp_path / "part")
    deaf = load_reranker("sequence", tmp_path / "part", lambda: None)
    with pytest.raises(ModelError, match="texts cannot be read: no text encoder is given"):
        deaf.rerank(*case)
    with caplog.at_level(logging.WARNING):
        served = Fallback(deaf).rerank(*case).frame
    texts = case[0].frame.filter((pl.col("request") != "") | (pl.col("history").list.len() == 0))["query_id"]
    by = served.group_by("query_id").agg(reranked=(pl.col("served_by") == "reranker").any())
    assert dict(by.iter_rows()) == {q: q not in texts.to_list() for q in case[0].frame["query_id"]}
    assert "keep the candidates' order" in caplog.text


def test_an_altered_network_is_refused(judge: SequenceJudge, tmp_path: Path) -> None:
    listening(judge).save(tmp_path / "part")
    (tmp_path / "part" / "judge" / "network.safetensors").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="is not readable as a sequence reranker"):
        load_reranker("sequence", tmp_path / "part", lambda: None, WordEncoder)


def test_heads_that_do_not_divide_are_named(world_split: Any, school: School) -> None:
    questions = world_split.questions("tune")
    config = SMALL.model_copy(update={"heads": 5})
    with pytest.raises(SpecError, match=r"reranker.heads = 5 does not divide reranker.dim = 32"):
        train_sequence(config, school, questions, school.describe.as_of(questions.queries), seed=0)


def test_a_catalog_without_vectors_is_named(world: Any, world_split: Any, school: School, tmp_path: Path) -> None:
    questions = world_split.questions("tune")
    bare = school_of(world, world_split, world.catalog, tmp_path)
    with pytest.raises(SpecError, match="has no text vectors"):
        train_sequence(SMALL, bare, questions, school.describe.as_of(questions.queries), seed=0)


def test_a_sampled_softmax_learns_too(school: School) -> None:
    quick = SMALL.model_copy(update={"negatives": 40, "epochs": 1, "exercises": 1, "told": 20, "written": 240})
    course = Course.of(quick, school, 0)
    course.explore()
    assert course.report["heldout_ndcg@10"][-1] > 0


def test_one_candidate_no_profiles_and_unknown_items_in_histories_are_fine(judge: SequenceJudge, case: Case) -> None:
    assert_ranks_a_stranger(listening(judge), *case)


def test_another_encoder_than_at_fit_reads_nothing(
    judge: SequenceJudge, case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listening(judge).save(tmp_path / "part")

    class Other(WordEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.model_id = "other@12345678"

    deaf = load_reranker("sequence", tmp_path / "part", lambda: None, Other)
    with pytest.raises(ModelError, match="test/words64: texts cannot be read: 'other@12345678' is there in its place"):
        deaf.rerank(*case)
    with caplog.at_level(logging.WARNING):
        served = Fallback(deaf).rerank(*case).frame
    assert set(served["served_by"]) == {"reranker", "candidates"}
    assert "put it back, or refit" in caplog.text


def test_an_unfinished_training_is_not_taken_for_one_on_another_catalog(
    school: School, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts and histories, but other attributes."""
    keys = []

    def stop(_: Settings, key: str) -> Any:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr("recsys.rerank.train.workplace", stop)
    quick = SMALL.model_copy(update={"written": 0, "told": 0})
    name = next(n for n in catalog.attributes if catalog.frame[n].dtype == pl.List(pl.String))
    other = Catalog(catalog.frame.with_columns(pl.col(name).reverse()))
    for some in (catalog, catalog, other):
        with pytest.raises(KeyboardInterrupt):
            Course.of(quick, replace(school, catalog=some), 0).explore()
    assert keys[0] == keys[1] != keys[2]
