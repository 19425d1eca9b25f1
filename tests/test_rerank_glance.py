"""A glance at histories: what a student has of a teacher that reads them by a network."""

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
from recsys.data.split import Questions
from recsys.data.vocab import Histories
from recsys.errors import BundleError
from recsys.networks.chunks import answer_gains
from recsys.rerank import Fused, load_reranker
from recsys.rerank.distil import train_student
from recsys.rerank.fusion import LinearFusion
from recsys.rerank.glance import Glance
from recsys.rerank.glancing import Pupil, learn_to_glance
from recsys.rerank.reader import states_after
from recsys.rerank.sequence import SequenceJudge
from recsys.rerank.student import StudentJudge
from recsys.rerank.train import Course, School
from recsys.tables import query_histories


@pytest.fixture(scope="module")
def school(world: Any, world_split: Any, tmp_path_factory: pytest.TempPathFactory) -> School:
    return school_of(world, world_split, with_word_vectors(world.catalog), tmp_path_factory.mktemp("glance"))


@pytest.fixture(scope="module")
def teacher(school: School) -> SequenceJudge:
    course = Course.of(SMALL.model_copy(update={"written": 0, "told": 0}), school, 0)
    return course.judge(course.finish(course.explore(), school.before))


@pytest.fixture(scope="module")
def histories(teacher: SequenceJudge, school: School) -> Histories:
    """What the teacher learned from."""
    return teacher.vocab.histories(query_histories(school.before))


@pytest.fixture(scope="module")
def glance(teacher: SequenceJudge, histories: Histories, school: School) -> Glance:
    return learn_to_glance(teacher, histories, school.settings, 0)


def pupil_of(teacher: SequenceJudge) -> Pupil:
    return Pupil(teacher.network, *(torch.from_numpy(values) for values in teacher.table)).eval()


def logits(teacher: SequenceJudge, histories: Histories) -> Any:
    tokens, bias = (torch.from_numpy(values) for values in teacher.table)
    with torch.inference_mode():
        states = states_after(teacher.network, histories, tokens)
        return (teacher.network.read(states, tokens) @ tokens.T + bias).numpy()


def some(*lengths: int) -> Histories:
    items = np.random.default_rng(0).integers(0, 200, sum(lengths)).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(indptr, items, np.ones(len(items), np.float32), np.zeros(len(items), np.int64))


def test_numpy_reads_as_torch_does(teacher: SequenceJudge) -> None:
    """Of no event, one, some, as many as are read, and more: the last ones count."""
    pupil, longest = pupil_of(teacher), SMALL.length
    histories = some(0, 1, 7, longest, longest + 5, 3)
    found = pupil.glance().expects(histories)
    for row in range(len(histories)):
        items = histories.items[histories.indptr[row] : histories.indptr[row + 1]][-longest:]
        with torch.inference_mode():
            x = torch.from_numpy(np.concatenate([[0], items]).astype(np.int64))[None]
            met = torch.nn.functional.embedding(x, pupil.tokens) * SMALL.dim**0.5
            met[:, 0] = pupil.start
            whole = pupil.out(pupil.last(pupil.block(met + pupil.places[: x.shape[1]])))[0, -1]
        np.testing.assert_allclose(found[row], whole.numpy(), atol=2e-5)


def test_batch_equals_singles_and_order_changes_nothing(glance: Glance) -> None:
    histories = some(4, 0, 20, 9, 1)
    whole = glance.expects(histories)
    for row in range(5):
        np.testing.assert_allclose(glance.expects(histories.slice(row, row + 1))[0], whole[row], atol=1e-5)
    turned = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(glance.expects(histories.take(turned)), whole[turned], atol=1e-5)


def test_it_expects_what_its_teacher_expects(glance: Glance, teacher: SequenceJudge, world_split: Any) -> None:
    """On questions that neither has seen: nearly all that the teacher knows beyond popularity, and much nearer to it
    than before it learned."""
    questions = world_split.questions("test")
    histories = teacher.vocab.histories(questions.queries)
    answers = teacher.vocab.encode(questions.truth.frame["item_id"])
    tokens, bias = teacher.table
    given = logits(teacher, histories)
    seen = {
        "glance": glance.expects(histories) @ tokens.T + bias,
        "untaught": pupil_of(teacher).glance().expects(histories) @ tokens.T + bias,
        "popular": np.tile(bias, (len(answers), 1)),
    }
    gains = {name: answer_gains(scores.copy(), histories, answers).mean() for name, scores in seen.items()}
    best = answer_gains(given.copy(), histories, answers).mean()
    assert gains["glance"] - gains["popular"] > 0.7 * (best - gains["popular"]) > 0.02

    def apart(scores: Any) -> float:
        one, other = (torch.from_numpy(x).log_softmax(1) for x in (given, scores))
        return float((one.exp() * (one - other)).sum(1).mean())

    assert apart(seen["glance"]) < 0.5 * apart(seen["untaught"])


@pytest.fixture(scope="module")
def reading(teacher: SequenceJudge) -> Fused:
    return Fused(teacher, 100, {"plain": LinearFusion({"score": 0.2, "lm": 1.0})}, {})


@pytest.fixture(scope="module")
def judge(reading: Fused, school: School, world_split: Any) -> StudentJudge:
    config = STUDENT.model_copy(update={"lists": 300, "epochs": 4, "requests": 0.0})
    found = train_student(config, school, reading, world_split.questions("tune"), seed=0).judge
    assert isinstance(found, StudentJudge)
    return found


def test_a_students_opinion_is_nearer_to_its_teachers_by_the_glance(
    judge: StudentJudge, teacher: SequenceJudge, school: School, world_split: Any
) -> None:
    queries = world_split.questions("test").queries
    candidates, profiles = school.generate(queries), school.describe.as_of(queries)
    heads = candidates.frame.partition_by("query_id", maintain_order=True)

    def alike(one: StudentJudge) -> float:
        told = zip(
            teacher.opinions(heads, queries, profiles, school.catalog),
            one.opinions(heads, queries, profiles, school.catalog),
            strict=True,
        )
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in told]))

    assert judge.glance is not None
    blind = replace(judge.glance, arrays={**judge.glance.arrays, "out.weight": 0 * judge.glance.arrays["out.weight"]})
    assert alike(judge) > 0.7
    assert alike(judge) > alike(replace(judge, glance=blind)) + 0.1


def test_a_student_is_saved_with_its_glance(
    judge: StudentJudge, school: School, world_split: Any, tmp_path: Path
) -> None:
    queries = world_split.questions("test").queries
    case = (queries, school.generate(queries), school.describe.as_of(queries), school.catalog)
    listening(judge).save(tmp_path / "part")
    loaded = load_reranker("student", tmp_path / "part", lambda: None, WordEncoder)
    assert_same_candidates(loaded.rerank(*case), listening(judge).rerank(*case))
    less = {name: array for name, array in judge.glance.arrays.items() if name != "start"}  # type: ignore[union-attr]
    listening(replace(judge, glance=replace(judge.glance, arrays=less))).save(tmp_path / "less")  # type: ignore[type-var]
    with pytest.raises(BundleError, match="is not readable as a student reranker"):
        load_reranker("student", tmp_path / "less", lambda: None, WordEncoder)


def test_no_answer_is_asked_for(reading: Fused, school: School, world_split: Any, judge: StudentJudge) -> None:
    questions = world_split.questions("tune")
    other = questions.truth.frame.with_columns(pl.col("item_id").reverse())
    turned = Questions(questions.queries, type(questions.truth)(other))
    config = STUDENT.model_copy(update={"lists": 60, "epochs": 1, "requests": 0.0})
    found = train_student(config, school, reading, turned, seed=0).judge
    for name, array in judge.glance.arrays.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(array, found.glance.arrays[name])  # type: ignore[attr-defined]
