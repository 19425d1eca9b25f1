"""A reader in plain numpy: what a student has of a teacher that reads histories by a network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from test_rerank_sequence import SMALL, school_of
from test_rerank_student import SMALL as STUDENT
from test_rerank_student import listening

from checks import WordEncoder, assert_same_candidates, with_word_vectors
from recsys.data.vocab import Histories
from recsys.errors import BundleError
from recsys.metrics import ndcg, target_ranks
from recsys.rerank import Fused, load_reranker
from recsys.rerank.distil import train_student
from recsys.rerank.fusion import LinearFusion
from recsys.rerank.plain_reader import PlainReader
from recsys.rerank.reader import states_after
from recsys.rerank.sequence import SequenceJudge
from recsys.rerank.student import StudentJudge
from recsys.rerank.train import Course, School
from recsys.tables import Queries


@pytest.fixture(scope="module")
def school(world: Any, world_split: Any, tmp_path_factory: pytest.TempPathFactory) -> School:
    return school_of(world, world_split, with_word_vectors(world.catalog), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def teacher(school: School) -> SequenceJudge:
    course = Course.of(SMALL.model_copy(update={"written": 0, "told": 0}), school, 0)
    return course.judge(course.finish(course.explore(), school.before))


@pytest.fixture(scope="module")
def reader(teacher: SequenceJudge) -> PlainReader:
    found = PlainReader.of(teacher.network, *teacher.table)
    assert found is not None
    return found


def some(*lengths: int) -> Histories:
    items = np.random.default_rng(0).integers(0, 200, sum(lengths)).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(indptr, items, np.ones(len(items), np.float32), np.zeros(len(items), np.int64))


def test_numpy_reads_as_torch_does(reader: PlainReader, teacher: SequenceJudge) -> None:
    """Of no event, one, some, as many as are read, and more: the last ones count."""
    histories = some(0, 1, 7, SMALL.length, SMALL.length + 5, 3, 0)
    tokens = torch.from_numpy(teacher.table[0])
    with torch.inference_mode():
        wanted = teacher.network.read(states_after(teacher.network, histories, tokens), tokens).numpy()
    np.testing.assert_allclose(reader.expects(histories), wanted, atol=2e-5)
    assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_any_number_of_blocks(teacher: SequenceJudge, blocks: int) -> None:
    from recsys.rerank.reader import Reader

    size = replace(teacher.network.size, layers=blocks)
    torch.manual_seed(blocks)
    network = Reader.blank(200, 8, size).eval()
    with torch.no_grad():  # the plain reader has norms inside of other layers, which shows where they are trained
        for name, value in network.named_parameters():
            if "before_" in name or name.startswith("last."):
                value.normal_(1, 0.3)
    tokens, bias = np.random.default_rng(0).normal(size=(200, size.dim)).astype(np.float32), np.zeros(200, np.float32)
    found = PlainReader.of(network, tokens, bias)
    assert found is not None
    histories = some(4, 0, 12)
    with torch.inference_mode():
        wanted = network.read(states_after(network, histories, torch.from_numpy(tokens)), torch.from_numpy(tokens))
    np.testing.assert_allclose(found.expects(histories), wanted.numpy(), atol=1e-4)


def test_who_asks_again_is_not_read_again(reader: PlainReader, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = replace(reader)
    first = fresh.expects(some(9))
    monkeypatch.setattr(PlainReader, "_through", None)
    np.testing.assert_array_equal(fresh.expects(some(9)), first)
    with pytest.raises(TypeError):
        fresh.expects(some(8))


def test_a_new_event_costs_one_token_and_comes_to_the_same(
    reader: PlainReader, teacher: SequenceJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From no event on, up to as many as are read and beyond, one by one and some at a time."""
    fresh, whole, read = replace(reader), some(SMALL.length + 3), []
    real = PlainReader._through

    def counted(self: PlainReader, x: Any, ends: Any, kept: Any = None) -> Any:
        read.append(x.shape[1])
        return real(self, x, ends, kept)

    monkeypatch.setattr(PlainReader, "_through", counted)
    ends = [0, 1, 2, 5, *range(6, SMALL.length + 3)]
    found = [fresh.expects(upto(whole, end))[0] for end in ends]
    tokens = torch.from_numpy(teacher.table[0])
    with torch.inference_mode():
        wanted = [teacher.network.read(states_after(teacher.network, upto(whole, end), tokens), tokens) for end in ends]
    np.testing.assert_allclose(found, [expected[0].numpy() for expected in wanted], atol=2e-5)
    steps = np.diff([-1, *(end for end in ends if end <= SMALL.length)]).tolist()
    assert read == steps + [SMALL.length + 1] * 2


def upto(histories: Histories, end: int) -> Histories:
    part = (column[:end] for column in (histories.items, histories.weights, histories.times))
    return Histories(np.array([0, end]), *part)


def test_a_judge_goes_on_from_what_it_has_read(
    teacher: SequenceJudge, world_split: Any, school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = world_split.questions("test").queries
    last = Queries(queries.frame.filter(pl.col("history").list.len() == 12).head(1))
    before = Queries(last.frame.with_columns(pl.col("history", "times", "weights").list.head(11)))
    profiles = school.describe.as_of(last)
    both = Queries(pl.concat([last.frame, last.frame.with_columns(pl.col("query_id") + 1)]))
    wanted = replace(teacher).scores(both, profiles)  # a batch is read by torch, whole
    given = []
    real = PlainReader.follow

    def counted(self: PlainReader, kept: Any, items: Any) -> Any:
        given.append(len(items))
        return real(self, kept, items)

    monkeypatch.setattr(PlainReader, "follow", counted)
    judge = replace(teacher)
    judge.scores(before, profiles)
    np.testing.assert_allclose(judge.scores(last, profiles)[0], wanted[0], atol=1e-4)
    assert given == [11, 1]


def test_batch_equals_singles_and_order_changes_nothing(reader: PlainReader) -> None:
    histories = some(4, 0, 20, 9, 1)
    whole = reader.expects(histories)
    for row in range(5):
        np.testing.assert_allclose(reader.expects(histories.slice(row, row + 1))[0], whole[row], atol=1e-5)
    turned = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(reader.expects(histories.take(turned)), whole[turned], atol=1e-5)


@pytest.fixture(scope="module")
def reading(teacher: SequenceJudge) -> Fused:
    return Fused(teacher, 100, {"plain": LinearFusion({"score": 0.2, "lm": 1.0})}, {})


@pytest.fixture(scope="module")
def student(reading: Fused, school: School, world_split: Any) -> Fused:
    config = STUDENT.model_copy(update={"lists": 300, "epochs": 4, "requests": 0.0})
    return train_student(config, school, reading, world_split.questions("tune"), seed=0)


@pytest.fixture(scope="module")
def judge(student: Fused) -> StudentJudge:
    assert isinstance(student.judge, StudentJudge)
    return student.judge


def test_a_student_keeps_its_teachers_order(student: Fused, reading: Fused, school: School, world_split: Any) -> None:
    """And with it what the teacher adds to the candidates."""
    questions = world_split.questions("test")
    case = questions.queries, school.generate(questions.queries), school.describe.as_of(questions.queries)
    alone = replace(student, fusions={"plain": LinearFusion({"lm": 1.0})})

    def gain(reranker: Fused) -> float:
        ranked = reranker.rerank(*case, school.catalog)
        return float(ndcg(target_ranks(ranked, questions.truth, by="score")["rank"], 10).mean())

    before = float(ndcg(target_ranks(case[1], questions.truth, by="score")["rank"], 10).mean())
    lift = gain(reading) - before
    assert lift > 0.02
    assert gain(alone) - before > 0.8 * lift
    assert student.report["training"]["plain_teachers_first_ndcg@10"] > 0.9
    assert "learned from the teacher" in student.report["verdict"]


def test_an_order_that_is_worse_than_the_candidates_is_not_followed(
    judge: StudentJudge, school: School, world_split: Any
) -> None:
    questions = world_split.questions("tune")
    case = questions, school.generate(questions.queries), school.describe.as_of(questions.queries)
    turned = replace(judge, arrays={**judge.arrays, "linear": -judge.arrays["linear"]})
    fused = judge.config.fuse(turned, *case, school.catalog, school.before, seed=0, follow=["plain"])
    assert fused.fusions["plain"].weights["score"] != 0
    assert "learned from the teacher" not in fused.report["verdict"]
    deaf = judge.config.model_copy(update={"features": ("score", "log_popularity")})
    fused = deaf.fuse(judge, *case, school.catalog, school.before, seed=0, follow=["plain"])
    assert set(fused.fusions["plain"].weights) == {"score", "log_popularity"}, "nor one that is no feature"


def test_a_student_is_saved_with_its_reader(
    judge: StudentJudge, school: School, world_split: Any, tmp_path: Path
) -> None:
    queries = world_split.questions("test").queries
    case = (queries, school.generate(queries), school.describe.as_of(queries), school.catalog)
    listening(judge).save(tmp_path / "part")
    loaded = load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)
    assert_same_candidates(loaded.rerank(*case), listening(judge).rerank(*case))
    file = tmp_path / "part" / "judge" / "network.safetensors"
    from safetensors.numpy import load_file, save_file

    facts = tmp_path / "part" / "judge" / "judge.json"
    written = facts.read_text("utf-8")
    facts.write_text(json.dumps({**json.loads(written), "reader": {"blocks": 1, "heads": 0}}), "utf-8")
    with pytest.raises(BundleError, match=r"1 blocks of 0 heads do not fit"):
        load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)
    facts.write_text(written, "utf-8")
    arrays = load_file(file)
    del arrays["reader.blocks.0.qkv.bias"]
    save_file(arrays, file)
    with pytest.raises(
        BundleError, match=r"is not readable as a student reranker \(the reader lacks blocks.0.qkv.bias"
    ):
        load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)
