"""Rankings held to wishes: which items move, where to, and that all others stay."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from test_profiles_wishes import known_of

from recsys.profiles.population import Known
from recsys.profiles.steer import Strength, extend, steer
from recsys.profiles.wishes import Direction, Wish
from recsys.tables import Candidates

KINDS = {"H": "Horror", "M": "Musical", "D": "Drama"}
ITEMS = 60


@pytest.fixture(scope="module")
def known() -> Known:
    """Items 0-19: horror, 20-39: musicals, 40-59: dramas."""
    return known_of(genres=[[list(KINDS.values())[i // 20]] for i in range(ITEMS)])


def ranking(pattern: str, query: int = 1) -> Candidates:
    """For example "HDDM": the next unused horror, two dramas, a musical; scores fall from 0."""
    used = dict.fromkeys("HMD", 0)
    items = []
    for letter in pattern:
        items.append(20 * "HMD".index(letter) + used[letter])
        used[letter] += 1
    n = len(items)
    columns: dict[str, Any] = {
        "query_id": [query] * n,
        "item_id": items,
        "score": [-float(i) for i in range(n)],
        "rank": list(range(1, n + 1)),
        "source": [f"s{i}" for i in items],
        "served_by": ["reranker" if i < n // 2 else "candidates" for i in range(n)],
        "score_own": [0.5 * i for i in items],
    }
    types: dict[str, Any] = dict.fromkeys(("query_id", "item_id", "rank"), pl.Int64)
    types |= {"score": pl.Float64, "score_own": pl.Float64, "source": pl.String, "served_by": pl.String}
    return Candidates(pl.DataFrame(columns, schema_overrides=types))


def wish(value: str, direction: Direction) -> Wish:
    return Wish("genres", value, direction)


def pattern(found: Candidates) -> str:
    return "".join("HMD"[item // 20] for item in found.frame.sort("rank")["item_id"])


def steered(known: Known, text: str, *wishes: Wish, strength: Strength | None = None) -> str:
    return pattern(steer(ranking(text), {1: wishes}, known, strength or Strength()))


def test_what_is_refused_goes_behind_everything_else(known: Known) -> None:
    assert steered(known, "HDHMDH", wish("Horror", "less")) == "DMDHHH"
    assert steered(known, "HHH", wish("Horror", "less")) == "HHH"


def test_what_is_wished_for_comes_once_in_four_from_the_top_however_far_down_it_was(known: Known) -> None:
    far = "D" * 16 + "MMMM"
    assert steered(known, far, wish("Musical", "more"), strength=Strength(lift=1)) == "DMDDDMDDDMDDDM" + "D" * 6
    assert steered(known, far, wish("Musical", "more"), strength=Strength(lift=1, every=7)).startswith("DDDMDDDDDDDMD")


def test_what_is_wished_for_and_near_the_top_gets_a_better_rank_by_a_factor(known: Known) -> None:
    assert steered(known, "DDDDDDDMM", wish("Musical", "more"), strength=Strength(lift=4, every=9)) == "DDMMDDDDD"
    assert steered(known, "MDMDMDMD", wish("Musical", "more")) == "MMMDMDDD"


def test_several_wishes_share_their_part_of_the_ranking(known: Known) -> None:
    both = wish("Musical", "more"), wish("Horror", "more")
    assert steered(known, "D" * 16 + "MMHH", *both, strength=Strength(lift=1)) == "DMHDDDDDDMHDDDDDDDDD"


def test_a_refusal_is_stronger_than_a_wish() -> None:
    known = known_of(
        genres=[["Horror", "Musical"] if i < 2 else ["Musical"] if i < 20 else ["Drama"] for i in range(60)]
    )
    both = {1: [wish("Musical", "more"), wish("Horror", "less")]}
    found = steer(ranking("HHH" + "D" * 10), both, known).frame["item_id"].to_list()
    assert found[:2] == [2, 40]
    assert found[-2:] == [0, 1]


def test_what_is_refused_takes_no_place_of_what_is_wished_for() -> None:
    """The first four musicals are horror, too; the two others come where the first two would."""
    known = known_of(
        genres=[
            ["Horror", "Musical"] if 20 <= i < 24 else ["Musical"] if 24 <= i < 40 else ["Drama"] for i in range(60)
        ]
    )
    both = {1: [wish("Musical", "more"), wish("Horror", "less")]}
    found = steer(ranking("D" * 8 + "M" * 6), both, known, Strength(lift=1)).frame["item_id"].to_list()
    assert [found.index(item) for item in (24, 25)] == [1, 5]


def test_queries_are_steered_together_as_they_are_alone(known: Known) -> None:
    texts = {1: "DDDDDDDDMMM", 2: "DDHDDDMM", 3: "MHD"}
    wishes = {1: [wish("Musical", "more")], 2: [wish("Musical", "more"), wish("Horror", "less")], 3: []}
    together = steer(Candidates(pl.concat([ranking(text, q).frame for q, text in texts.items()])), wishes, known).frame
    alone = pl.concat([steer(ranking(text, q), {q: wishes[q]}, known).frame for q, text in texts.items()])
    assert together.equals(alone)


def test_scores_and_ranks_stay_at_their_places_and_all_else_goes_with_its_item(known: Known) -> None:
    before = ranking("HDHMDH").frame
    after = steer(ranking("HDHMDH"), {1: [wish("Horror", "less")]}, known).frame
    assert after.select("query_id", "score", "rank").equals(before.select("query_id", "score", "rank"))
    own = ["item_id", "source", "served_by", "score_own"]
    assert_frame_equal(after.select(own).sort("item_id"), before.select(own).sort("item_id"))


def test_only_the_queries_that_wish_change(known: Known) -> None:
    both = Candidates(pl.concat([ranking("HDHD", 2).frame, ranking("HDHD", 1).frame]))
    found = steer(both, {1: [wish("Horror", "less")]}, known).frame
    assert found.filter(query_id=2).equals(ranking("HDHD", 2).frame)
    assert pattern(Candidates(found.filter(query_id=1))) == "DDHH"
    assert found["query_id"].to_list() == both.frame["query_id"].to_list()


def test_without_wishes_the_ranking_itself_comes_back(known: Known) -> None:
    before = ranking("HDM")
    assert steer(before, {}, known) is before
    assert steer(before, {9: [wish("Horror", "less")]}, known) is before
    assert steer(before, {1: [Wish("language", "Klingon", "less")]}, known) is before
    assert len(steer(Candidates(before.frame.clear()), {1: [wish("Horror", "less")]}, known)) == 0


def test_items_that_the_catalog_does_not_know_stay(known: Known) -> None:
    foreign = ranking("HDD").frame.with_columns(
        pl.when(pl.col("rank") == 2).then(999).otherwise("item_id").alias("item_id")
    )
    found = steer(Candidates(foreign), {1: [wish("Horror", "less")]}, known).frame
    assert found["item_id"].to_list() == [999, 41, 0]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("HMD", max_size=20),
    directions=st.dictionaries(st.sampled_from(list(KINDS.values())), st.sampled_from(["more", "less"])),
    lift=st.floats(1, 10),
    every=st.integers(1, 10),
)
def test_the_answer_is_a_permutation_in_which_the_others_keep_their_order(
    known: Known, text: str, directions: dict[str, Direction], lift: float, every: int
) -> None:
    before = ranking(text)
    wishes = {1: [wish(value, direction) for value, direction in directions.items()]}
    after = steer(before, wishes, known, Strength(lift, every)).frame
    assert sorted(after["item_id"]) == sorted(before.frame["item_id"])
    assert after["rank"].to_list() == list(range(1, len(text) + 1))
    for group in KINDS:
        kept = [item for item in before.frame["item_id"] if "HMD"[item // 20] == group]
        assert [item for item in after["item_id"] if "HMD"[item // 20] == group] == kept
    plain = [item for item in before.frame["item_id"] if KINDS["HMD"[item // 20]] not in directions]
    assert [item for item in after["item_id"] if item in plain] == plain
    places = [
        place for place, item in enumerate(after["item_id"]) if directions.get(KINDS["HMD"[item // 20]]) == "less"
    ]
    assert places == list(range(len(text) - len(places), len(text)))


def test_deeper_candidates_come_behind_and_only_where_they_are_new() -> None:
    ranked = Candidates(pl.concat([ranking("HD", 2).frame, ranking("HD", 1).frame]))
    deeper = Candidates(ranking("DHMM", 1).frame.with_columns(pl.col("score") + 7))
    found = extend(ranked, deeper).frame
    assert found.head(2).equals(ranking("HD", 2).frame)
    assert found["query_id"].to_list() == [2, 2, 1, 1, 1, 1]
    assert found.tail(4)["item_id"].to_list() == [0, 40, 20, 21]
    assert found.tail(4)["rank"].to_list() == [1, 2, 3, 4]
    assert found.tail(4)["score"].to_list() == [0.0, -1.0, -1.0, -1.0]
    assert extend(ranked, Candidates(deeper.frame.clear())).frame.equals(ranked.frame)
    new = extend(ranked, ranking("MMD", 3)).frame
    assert new.head(4).equals(ranked.frame)
    assert new.tail(3).equals(ranking("MMD", 3).frame)
