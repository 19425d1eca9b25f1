"""The student: it learns its teacher's order, and needs neither its teacher nor torch to serve."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from test_rerank_packed import noisy_candidates
from test_rerank_sequence import SMALL as READER
from test_rerank_sequence import school_of

from checks import WordEncoder, assert_ranks_a_stranger, assert_same_candidates, mean_ndcg, with_word_vectors
from contracts import RerankerContract
from recsys.candidates import PopularConfig
from recsys.data.split import Questions
from recsys.data.vocab import Vocab
from recsys.errors import BundleError, DataError, ModelError, SpecError, UnknownItemError
from recsys.rerank import Fallback, Fused, SequenceConfig, StudentConfig, load_reranker
from recsys.rerank.distil import train_student
from recsys.rerank.features import Ranked
from recsys.rerank.fusion import Array, LinearFusion, standardise
from recsys.rerank.lessons import with_texts
from recsys.rerank.student import StudentJudge, said
from recsys.rerank.taught import Taught, shortened
from recsys.rerank.train import School, train_sequence
from recsys.settings import Settings
from recsys.spec import Spec, Training, fit
from recsys.tables import Candidates, Catalog, Profiles, Queries

SMALL = StudentConfig(lists=900, dim=16, hidden=16, epochs=8, rate=5e-3, tune_users=300)
Case = tuple[Queries, Candidates, Profiles, Catalog]


class Taste:
    """A teacher's judge that likes what is of the kind of the last three items, and what a request names."""

    kind = "taste"
    model_id = "test/taste"

    def __init__(self, catalog: Catalog, broken: bool = False) -> None:
        words = WordEncoder()
        self.vectors = dict(zip(catalog.frame["item_id"], words.embed(catalog.frame["text"].to_list()), strict=True))
        self.words, self.broken = words, broken

    def prepare(self, heads: Any, catalog: Catalog) -> None: ...

    def save(self, folder: Path) -> None: ...

    def opinions(self, heads: Any, queries: Queries, profiles: Profiles, catalog: Catalog) -> Any:
        told = {row[0]: row[1:] for row in queries.frame.select("query_id", "history", "request").iter_rows()}
        for head in heads:
            history, request = told[head["query_id"][0]]
            liked = np.sum([self.vectors[item] for item in history[-3:]], axis=0) if history else np.zeros(64)
            wish = self.words.embed([request])[0] if request else np.zeros(64)
            found: Array = np.array([self.vectors[item] @ (liked + 3 * wish) for item in head["item_id"]])
            yield found + np.nan if self.broken else found


@pytest.fixture(scope="module")
def catalog(world: Any) -> Catalog:
    return with_word_vectors(world.catalog)


@pytest.fixture(scope="module")
def school(world: Any, world_split: Any, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> School:
    return school_of(world, world_split, catalog, tmp_path_factory.mktemp("school"))


@pytest.fixture(scope="module")
def teacher(catalog: Catalog) -> Fused:
    return Fused(Taste(catalog), 100, {"plain": LinearFusion({"score": 0.2, "lm": 1.0})}, {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(school: School, teacher: Fused, world_split: Any) -> Fused:
    return train_student(SMALL, school, teacher, world_split.questions("tune"), seed=0)


@pytest.fixture(scope="module")
def judge(trained: Fused) -> StudentJudge:
    assert isinstance(trained.judge, StudentJudge)
    return trained.judge


@pytest.fixture(scope="module")
def case(world_split: Any, school: School, catalog: Catalog) -> Case:
    """A request, no history but a profile, and neither."""
    questions = world_split.questions("test")
    queries = Queries(questions.queries.frame.head(12))
    profiles = school.describe.as_of(queries)
    place = np.arange(12) % 3
    queries = with_texts(queries, ["some comedy" if p == 1 else "" for p in place], place == 2)
    return queries, school.generate(queries), profiles, catalog


def listening(judge: StudentJudge) -> Fused:
    return Fused(judge, 12, {"plain": LinearFusion({"score": 1.0, "lm": 2.0})}, {})


class TestStudentContract(RerankerContract):
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
    def _with(self, judge: StudentJudge) -> None:
        self.judge = judge

    def make(self, lm: Any) -> Fused:
        return listening(self.judge)

    def load(self, path: Path, lm: Any) -> Any:
        return load_reranker("student", path, lambda: None, WordEncoder)


def agreement(ranked: Candidates, teacher: Fused, case: Case) -> float:
    """NDCG@10 of the teacher's first."""
    first = teacher.rerank(*case).frame.filter(pl.col("rank") == 1)
    return mean_ndcg(ranked, first.select("query_id", "item_id"))


@pytest.mark.parametrize("request_in_words", ["", "comedy"])
def test_it_orders_as_its_teacher_does_where_it_was_not_taught(
    trained: Fused, teacher: Fused, school: School, world_split: Any, catalog: Catalog, request_in_words: str
) -> None:
    queries = world_split.questions("test").queries
    queries = with_texts(queries, [request_in_words] * len(queries), np.zeros(len(queries), dtype=bool))
    case = (queries, school.generate(queries), school.describe.as_of(queries), catalog)
    alone = replace(trained, fusions={"plain": LinearFusion({"lm": 1.0})})
    assert agreement(alone.rerank(*case), teacher, case) >= agreement(case[1], teacher, case) + 0.2


def test_a_request_changes_the_order(judge: StudentJudge, case: Case) -> None:
    queries, candidates, profiles, catalog = case
    heads = candidates.frame.partition_by("query_id", maintain_order=True)
    silent = with_texts(queries, [""] * len(queries), np.zeros(len(queries), dtype=bool))
    asked = list(judge.opinions(heads, queries, profiles, catalog))
    unasked = list(judge.opinions(heads, silent, profiles, catalog))
    differs = [bool(np.abs(one - other).max() > 1e-3) for one, other in zip(asked, unasked, strict=True)]
    assert differs == (queries.frame["request"] != "").to_list()


def test_the_report_says_what_teacher_and_student_are_worth(trained: Fused, teacher: Fused) -> None:
    assert trained.report["training"]["lists"] == SMALL.lists
    assert trained.report["training"]["teachers_first_ndcg@10"] > 0.3
    assert trained.report["teacher"] == dict(teacher.report)
    assert trained.report["reranked"] >= trained.report["candidates"]


def test_the_fit_is_deterministic(school: School, teacher: Fused, world_split: Any) -> None:
    quick = SMALL.model_copy(update={"lists": 100, "epochs": 1})
    one, two = (train_student(quick, school, teacher, world_split.questions("tune"), seed=0) for _ in range(2))
    for name, array in one.judge.arrays.items():  # type: ignore[attr-defined]
        np.testing.assert_array_equal(array, two.judge.arrays[name])  # type: ignore[attr-defined]
    assert one.fusions == two.fusions


def test_what_it_is_taught_does_not_depend_on_the_answers(school: School, teacher: Fused, world_split: Any) -> None:
    questions = world_split.questions("tune")
    quick = SMALL.model_copy(update={"lists": 100, "epochs": 1})
    other = questions.truth.frame.with_columns(pl.col("item_id").reverse())
    turned = Questions(questions.queries, type(questions.truth)(other))
    one, two = (train_student(quick, school, teacher, some, seed=0) for some in (questions, turned))
    for name, array in one.judge.arrays.items():  # type: ignore[attr-defined]
        np.testing.assert_array_equal(array, two.judge.arrays[name])  # type: ignore[attr-defined]


def test_what_is_loaded_reads_all_texts_alike(judge: StudentJudge, case: Case, tmp_path: Path) -> None:
    listening(judge).save(tmp_path / "part")
    loaded = load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)
    assert_same_candidates(loaded.rerank(*case), listening(judge).rerank(*case))


def test_the_order_of_candidates_changes_no_opinion(judge: StudentJudge, case: Case) -> None:
    """Where they do not say that their order counts: of one score and one rank."""
    queries, candidates, profiles, catalog = case
    heads = candidates.frame.with_columns(score=pl.lit(1.0)).partition_by("query_id", maintain_order=True)
    other = replace(judge, names=("score", "score"))
    straight = list(other.opinions(heads, queries, profiles, catalog))
    turned = list(other.opinions([head.reverse() for head in heads], queries, profiles, catalog))
    for one, two in zip(straight, turned, strict=True):
        np.testing.assert_allclose(one, two[::-1], atol=1e-4)


def test_serving_needs_no_torch(judge: StudentJudge, case: Case, tmp_path: Path) -> None:
    listening(judge).save(tmp_path / "part")
    queries, candidates, profiles, catalog = case
    for name, table in (("q", queries), ("c", candidates), ("p", profiles), ("i", catalog)):
        table.frame.write_parquet(tmp_path / f"{name}.parquet")
    code = f"""
import sys, polars as pl
from pathlib import Path
from recsys.rerank import load_reranker
from recsys.tables import *
at = Path({str(tmp_path)!r})
q, c, p, i = (kind(pl.read_parquet(at / f"{{n}}.parquet")) for kind, n in
              ((Queries, "q"), (Candidates, "c"), (Profiles, "p"), (Catalog, "i")))
plain = Queries(q.frame.filter((pl.col("request") == "") & (pl.col("history").list.len() > 0)))
c = Candidates(c.frame.join(plain.frame, on="query_id", how="semi"))
assert len(load_reranker("student", at / "part", lambda: None).rerank(plain, c, p, i)) == len(c) > 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_without_its_encoder_texts_fall_back_and_the_rest_does_not(
    judge: StudentJudge, case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listening(judge).save(tmp_path / "part")
    deaf = load_reranker("student", tmp_path / "part", lambda: None)
    with pytest.raises(ModelError, match="texts cannot be read: no text encoder is given"):
        deaf.rerank(*case)
    served = Fallback(deaf).rerank(*case).frame
    requests, told = said(case[0], case[2])
    silent = [not one and not other for one, other in zip(requests, told, strict=True)]
    by = served.group_by("query_id").agg(reranked=(pl.col("served_by") == "reranker").any())
    assert dict(by.iter_rows()) == dict(zip(case[0].frame["query_id"], silent, strict=True))
    assert "8 of 12 queries keep the candidates' order" in caplog.text


def test_a_stranger_among_the_candidates_is_named(judge: StudentJudge, case: Case) -> None:
    queries, candidates, profiles, catalog = case
    stranger = candidates.frame.with_columns(
        item_id=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("nobody")).otherwise("item_id")
    )
    with pytest.raises(UnknownItemError, match="item_id 'nobody' is not in the catalog"):
        listening(judge).rerank(queries, Candidates(stranger), profiles, catalog)


def test_candidates_without_the_sources_that_it_was_fitted_with_are_named(judge: StudentJudge, case: Case) -> None:
    with pytest.raises(DataError, match="lack the feature 'score_als'"):
        listening(replace(judge, names=("score", "score_als"))).rerank(*case)


def test_one_candidate_no_profiles_and_unknown_items_in_histories_are_fine(judge: StudentJudge, case: Case) -> None:
    assert_ranks_a_stranger(listening(judge), *case)


@pytest.mark.parametrize("name", ["judge.json", "items.parquet", "network.safetensors"])
def test_a_damaged_part_is_a_bundle_error(judge: StudentJudge, tmp_path: Path, name: str) -> None:
    listening(judge).save(tmp_path / "part")
    (tmp_path / "part" / "judge" / name).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="is not readable as a student reranker"):
        load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)


def test_a_network_that_lacks_a_part_is_a_bundle_error(judge: StudentJudge, tmp_path: Path) -> None:
    less = {name: array for name, array in judge.arrays.items() if name != "out"}
    listening(replace(judge, arrays=less)).save(tmp_path / "part")
    with pytest.raises(BundleError, match="is of another version: refit"):
        load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)


def test_lists_that_the_teacher_failed_on_teach_nothing(
    school: School, catalog: Catalog, teacher: Fused, world_split: Any
) -> None:
    queries = Queries(world_split.questions("tune").queries.frame.head(5))
    lists, profiles = Ranked.of(queries, school.generate(queries)), school.describe.as_of(queries)
    assert len(Taught.by(teacher, lists, queries, profiles, school, Vocab.of_items(catalog), None).lists) == 5
    failing = replace(teacher, judge=Taste(catalog, broken=True))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="teacher ordered none of the 5 lists"):
        Taught.by(failing, lists, queries, profiles, school, Vocab.of_items(catalog), None)


def test_shorter_histories_are_heads_of_the_whole_ones(world_split: Any) -> None:
    queries = Queries(world_split.questions("tune").queries.frame.head(10))
    many = shortened(queries, 35, np.random.default_rng(0)).frame
    assert many["query_id"].to_list() == list(range(35))
    for row, (user, history, at, times) in enumerate(many.select("user_id", "history", "at", "times").iter_rows()):
        whole = queries.frame.row(row % 10, named=True)
        assert user == whole["user_id"]
        assert history == whole["history"][: len(history)]
        assert row >= 10 or (history == whole["history"] and at == whole["at"])
        assert at <= whole["at"]
        assert times == whole["times"][: len(history)]
    assert len(shortened(queries, 4, np.random.default_rng(0))) == 4


def test_a_catalog_without_vectors_is_named(school: School, world: Any, teacher: Fused, world_split: Any) -> None:
    with pytest.raises(SpecError, match="has no text vectors"):
        train_student(SMALL, replace(school, catalog=world.catalog), teacher, world_split.questions("tune"), seed=0)


def test_its_teacher_learns_nothing_from_tune(world: Any, world_split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the student is weighed by must be new to its teacher, too; the sequence reranker alone goes on over all."""
    schools: list[School] = []

    def enough(config: Any, school: School, *_: Any, **__: Any) -> Fused:
        schools.append(school)
        raise ModelError("enough")

    monkeypatch.setattr("recsys.spec.train_sequence", enough)
    monkeypatch.setattr("recsys.spec.load_encoder", lambda *_: WordEncoder())
    training = Training.of_split(world_split)
    dataset = replace(world, catalog=with_word_vectors(world.catalog))
    for reranker in (StudentConfig(), SequenceConfig()):
        spec = Spec(name="x", generator=PopularConfig(), reranker=reranker)
        with pytest.raises(ModelError, match="enough"):
            fit(dataset, spec, Settings(offline=True), seed=0, training=training)
    assert [school.known is training.before for school in schools] == [True, False]


def test_its_teacher_may_need_a_language_model() -> None:
    assert not StudentConfig().needs_lm
    assert StudentConfig(teacher={"kind": "packed"}).needs_lm  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="teacher"):
        StudentConfig(teacher={"kind": "student"})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hearing(school: School, world_split: Any) -> Fused:
    """The student of a teacher that reads requests, however little it has learned of what they mean."""
    questions = world_split.questions("tune")
    teacher = train_sequence(
        READER.model_copy(update={"epochs": 1, "told": 0, "written": 240, "exercises": 1, "understood": 0.0}),
        school,
        questions,
        school.describe.as_of(questions.queries),
        seed=0,
    )
    return train_student(SMALL.model_copy(update={"lists": 300, "epochs": 2}), school, teacher, questions, seed=0)


def test_it_hears_requests_with_its_teachers_ear(hearing: Fused, case: Case, tmp_path: Path) -> None:
    assert hearing.limits
    assert isinstance(hearing.judge, StudentJudge)
    queries, candidates, profiles, catalog = case
    heads = candidates.frame.partition_by("query_id", maintain_order=True)
    opinions = list(hearing.judge.opinions(heads, queries, profiles, catalog))
    asked = (queries.frame["request"] != "").to_list()
    assert [opinion.ndim == 2 for opinion in opinions] == asked
    hearing.save(tmp_path / "part")
    loaded = load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)
    assert loaded.judge.understood(["some comedy"]) == hearing.judge.understood(["some comedy"])  # type: ignore[union-attr]
    assert_same_candidates(loaded.rerank(*case), hearing.rerank(*case))


def test_what_is_taught_leaves_out_what_requests_mean(hearing: Fused, school: School, case: Case) -> None:
    """What the ear adds to the teacher's scores is taken off again: the rest is what the teacher says without it."""
    queries, candidates, profiles, catalog = case
    ear = hearing.judge.ear()  # type: ignore[attr-defined]
    teacher = Fused(hearing.judge, 100, {"plain": LinearFusion({"score": 1.0}, sharpness=2.0)}, {})
    lists = Ranked.of(queries, candidates)
    vocab = Vocab.of_items(catalog)
    taught = Taught.by(teacher, lists, queries, profiles, school, vocab, lambda: ear)
    by_score = standardise(lists.frame["score"].to_numpy(), lists.sizes)
    np.testing.assert_allclose(taught.scores, by_score, atol=1e-4)
