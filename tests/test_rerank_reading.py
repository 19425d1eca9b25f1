"""How profiles in words are read: the titles that they name, and what else they say, learned last and alone."""

from copy import deepcopy
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from test_rerank_sequence import SMALL, school_of

from checks import with_word_vectors
from recsys.data.vocab import Histories
from recsys.rerank.mentions import Mentions
from recsys.rerank.reader import NAMED, Reader, known_by_name, states_after
from recsys.rerank.reading import learn_profiles
from recsys.rerank.told import Told, named_in
from recsys.rerank.train import Course, School
from recsys.tables import Profiles, Queries, query_histories


@pytest.fixture(scope="module")
def school(world: Any, world_split: Any, tmp_path_factory: pytest.TempPathFactory) -> School:
    return school_of(world, world_split, with_word_vectors(world.catalog), tmp_path_factory.mktemp("reading"))


@pytest.fixture(scope="module")
def course(school: School) -> Course:
    return Course.of(SMALL.model_copy(update={"written": 0, "told": 400}), school, 0)


@pytest.fixture(scope="module")
def network(course: Course) -> Reader:
    """Before it has learned of profiles."""
    return course.explore()


@pytest.fixture(scope="module")
def told(course: Course) -> Told:
    assert course.told is not None
    return course.told


def named(*codes: list[int]) -> Histories:
    items = np.array([code for row in codes for code in row], dtype=np.int32)
    indptr = np.cumsum([0, *map(len, codes)], dtype=np.int64)
    return Histories(indptr, items, np.ones(len(items), np.float32), np.zeros(len(items), np.int64))


def test_titles_are_found_in_the_order_in_which_they_are_named() -> None:
    mentions = Mentions.of(["Star Wars", "Star Wars Returns", "Heat", "No", "Matrix, The"])
    text = 'You liked Heat, "Star Wars Returns" and The Matrix. Heat was the last.'
    assert mentions.all(text, 12) == [2, 1, 4]
    assert mentions.all(text, 2) == [2, 1]
    assert mentions.all("Nothing of it", 12) == []
    found = named_in([text, "", "Star Wars"], mentions)
    assert found.items.tolist() == [2, 1, 4, 0]
    assert found.indptr.tolist() == [0, 3, 3, 4]


def test_profiles_that_are_kept_are_not_learned_from(told: Told) -> None:
    learned, kept = told.split()
    assert len(learned) + len(kept) == len(told)
    assert len(kept) == round(0.1 * len(told))
    assert np.concatenate([kept.items, learned.items]).tolist() == told.items.tolist()
    assert np.concatenate([kept.named.items, learned.named.items]).tolist() == told.named.items.tolist()


def test_a_title_that_is_left_out_is_not_named(told: Told) -> None:
    unsaid = np.arange(len(told.named.items)) % 2 == 0
    less = told.without(unsaid)
    assert less.named.items.tolist() == told.named.items[~unsaid].tolist()
    assert less.items is told.items
    assert len(less) == len(told)


def test_titles_count_as_a_history_beside_what_anybody_expects(network: Reader) -> None:
    tokens, _ = network.table()
    with torch.inference_mode():
        states, found = known_by_name(network, named([3, 5], []), tokens)
        after = network.read(states_after(network, named([3, 5]), tokens), tokens)[0]
        nobody = network.read(states_after(network, named([]), tokens), tokens)[0]
    torch.testing.assert_close(found[0], NAMED * after + (1 - NAMED) * nobody, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], nobody, atol=1e-5, rtol=1e-4)
    assert states.shape == found.shape


def test_learning_of_profiles_changes_nothing_else(network: Reader, told: Told, school: School) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reader = deepcopy(network)
    trained = learn_profiles(reader, told, school.settings, 0)
    changed = {name for name, value in reader.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("profile.") for name in changed)
    assert max(trained.qualities) > 0


def test_ones_own_profile_tells_more_than_anothers_and_than_none(
    course: Course, network: Reader, school: School
) -> None:
    """Users' later items, by a profile of the first half alone."""
    judge = course.judge(course.finish(network, school.before))
    frame = query_histories(school.known).frame.filter(pl.col("history").list.len() >= 6)
    half = pl.col("history").list.len() // 2
    later = [judge.vocab.encode(items) for items in frame.select(pl.col("history").list.slice(half))["history"]]
    first = frame.with_columns(pl.col(c).list.head(half) for c in ("history", "weights", "times"))
    queries = Queries(first.with_columns(at=pl.col("times").list.last()))
    profiles = school.describe.as_of(queries)
    withheld = Queries(queries.frame.with_columns(pl.col(c).list.head(0) for c in ("history", "weights", "times")))
    others = Profiles(profiles.frame.with_columns(pl.col("text").shuffle(seed=3)))

    def quality(told: Profiles) -> float:
        scores = judge.scores(withheld, told)
        places = (-scores).argsort(axis=1).argsort(axis=1)
        return float(np.mean([np.log2(2 + places[row, items]).mean() for row, items in enumerate(later)]))

    own, another, none = (quality(told) for told in (profiles, others, Profiles(profiles.frame.clear())))
    assert own < another - 0.02  # mean log of the rank: lower is better
    assert own < none
