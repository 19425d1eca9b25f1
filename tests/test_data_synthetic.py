"""The generated world: readable, reproducible, and true to what it says about itself."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.data import wording
from recsys.data.ingest import Dataset
from recsys.data.split import split_log
from recsys.data.synthetic import FOLLOW, MAX_EVENTS, World, make_world
from recsys.data.vocab import Vocab
from recsys.errors import SpecError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def large() -> World:
    return make_world(2_000, 500, 40_000, seed=3)


def test_the_same_numbers_give_the_same_world_and_another_seed_another() -> None:
    one, two, other = (make_world(40, 60, 400, seed=seed) for seed in (1, 1, 2))
    assert_frame_equal(one.interactions, two.interactions)
    assert_frame_equal(one.items, two.items)
    assert one.interactions.rows() != other.interactions.rows()
    assert one.items["title"].to_list() != other.items["title"].to_list()


def test_a_world_has_the_size_that_was_asked_for(large: World) -> None:
    assert large.interactions["user_id"].n_unique() == 2_000
    assert len(large.items) == 500
    assert len(large.interactions) == 40_000
    assert large.interactions.group_by("user_id").len()["len"].max() <= MAX_EVENTS


def test_a_generated_world_is_a_dataset_without_a_note(large: World) -> None:
    data = large.dataset
    assert (data.clock, data.rated, data.notes) == ("time", True, ())
    assert data.catalog.attributes == ["genres", "decade", "year", "maker"]
    assert data.catalog.frame.schema["genres"] == pl.List(pl.String)


def test_the_committed_tiny_world_is_what_the_command_makes(tiny: Dataset) -> None:
    made = make_world(120, 150, 2_000, seed=7, name="tiny")
    assert_frame_equal(made.dataset.log.frame, tiny.log.frame)
    assert_frame_equal(made.dataset.catalog.frame, tiny.catalog.frame)
    assert made.origin in (ROOT / "data" / "tiny" / "dataset.toml").read_text()
    assert made.origin.removeprefix("recsys data synth ") in (ROOT / "data" / "README.md").read_text()


def test_the_committed_world_is_small() -> None:
    files = [f for f in (ROOT / "data" / "tiny").iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 100_000


def test_titles_are_distinct_readable_and_dated(large: World) -> None:
    items = large.items
    assert items["title"].is_unique().all()
    assert items["title"].str.contains(r"^[A-Z][\w' .]+ \(\d{4}\)$").all()
    assert (items["title"].str.extract(r"\((\d{4})\)").cast(pl.Int64) == items["year"]).all()
    many = wording.titles(
        np.random.default_rng(0),
        *(np.zeros(20_000, dtype=np.int64),),
        np.arange(20_000),
        *[np.zeros(20_000, dtype=np.int64)] * 2,
    )
    assert len(set(many)) == 20_000


def test_descriptions_say_the_genres_and_the_decade_in_words(large: World) -> None:
    called = {genre.name: genre.called for genre in wording.GENRES}
    for row in large.items.iter_rows(named=True):
        main, *second = row["genres"].split("|")
        assert called[main] in row["description"]
        assert all(name.lower() in row["description"] for name in second)
        assert row["decade"] in row["description"]


def test_nobody_meets_an_item_twice_and_time_only_rises(large: World) -> None:
    log = large.dataset.log.frame
    assert log.select("user_id", "item_id").is_unique().all()
    gaps = log.select(pl.col("ts").diff().over("user_id")).to_series().drop_nulls()
    assert (gaps > 0).all()


def test_a_sequel_follows_its_forerunner_and_not_the_other_way_round(large: World) -> None:
    codes = Vocab.of_items(large.dataset.catalog).encode(large.dataset.log.frame["item_id"])
    users = large.dataset.log.frame["user_id"].to_numpy()
    same = users[1:] == users[:-1]
    before, after = codes[:-1][same], codes[1:][same]
    sequel = large.hidden_items.sequel
    forward, backward = sequel[before] == after, sequel[after] == before
    had_one = sequel[before] >= 0
    assert forward[had_one].mean() > 0.8 * FOLLOW
    assert backward.mean() < 0.05 * forward.mean()


def test_true_probabilities_are_calibrated(large: World) -> None:
    """On average, what was drawn had the probability that the truth gives its own draws: E[p(drawn)] = E[sum p^2]."""
    questions = split_log(large.dataset.log, "leave-last").questions("test")
    chances = large.next_probabilities(questions.queries)
    assert np.allclose(chances.sum(axis=1), 1.0)
    answers = Vocab.of_items(large.dataset.catalog).encode(questions.truth.frame["item_id"])
    drawn = chances[np.arange(len(answers)), answers]
    assert (drawn > 0).all()
    difference = drawn - (chances**2).sum(axis=1)
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))


def test_the_truth_never_proposes_what_was_seen(known_world: World) -> None:
    questions = split_log(known_world.dataset.log, "leave-last").questions("test")
    histories = Vocab.of_items(known_world.dataset.catalog).histories(questions.queries)
    assert (known_world.next_probabilities(questions.queries)[histories.rows(), histories.items] == 0).all()


def test_ratings_follow_taste(large: World) -> None:
    log, items, users = large.interactions, large.hidden_items, large.hidden_users
    item = Vocab.of_items(large.dataset.catalog).encode(log["item_id"])
    user = log["user_id"].to_numpy() - 1
    steady = users.drift[user] > MAX_EVENTS
    match = (users.taste[user, 0] * items.in_genre()[item]).max(axis=1)
    rating = log["rating"].to_numpy()
    assert rating[steady & (match > 0.5)].mean() > rating[steady & (match < 0.1)].mean() + 1
    assert set(np.unique(rating)) == {1, 2, 3, 4, 5}


def test_tastes_drift_for_some(large: World) -> None:
    users = large.hidden_users
    drifts = users.drift <= MAX_EVENTS
    assert 0.2 < drifts.mean() < 0.4
    assert (users.taste[:, 0].argmax(axis=1) != users.taste[:, 1].argmax(axis=1)).all()
    assert np.allclose(users.taste.sum(axis=2), 1.0)


def test_popularity_is_skewed_but_not_everything(large: World) -> None:
    counts = large.interactions["item_id"].value_counts()["count"].sort(descending=True)
    top_tenth = counts.head(50).sum() / counts.sum()
    assert 0.2 < top_tenth < 0.6


def test_knowing_tastes_beats_popularity_by_far(known_world: World) -> None:
    split = split_log(known_world.dataset.log, "leave-last")
    questions = split.questions("test")
    vocab = Vocab.of_items(known_world.dataset.catalog)
    answers = vocab.encode(questions.truth.frame["item_id"])
    seen = vocab.histories(questions.queries)
    popular = np.bincount(vocab.encode(split.known.frame["item_id"]), minlength=len(vocab)).astype(float)
    scores = {
        "popular": np.tile(popular, (len(answers), 1)),
        "truth": known_world.next_probabilities(questions.queries),
    }
    hits = {}
    for name, score in scores.items():
        score[seen.rows(), seen.items] = -1
        mine = score[np.arange(len(answers)), answers][:, None]
        hits[name] = ((score > mine).sum(axis=1) < 10).mean()
    assert hits["truth"] > 3 * hits["popular"]


@pytest.mark.parametrize("numbers", [(0, 100, 10), (10, 5, 50), (10, 100, 20), (10, 100, 10_000)])
def test_an_impossible_world_is_a_named_error(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match="synth: "):
        make_world(*numbers, seed=0)


def test_a_world_of_one_user_and_few_items_can_be_made() -> None:
    world = make_world(1, 20, 6, seed=0)
    assert 3 <= len(world.interactions) <= 6
    assert dataclasses.is_dataclass(world.dataset)
