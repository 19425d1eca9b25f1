"""Edits at the doors: they change the slates of who made them, and of nobody else; and how often, on real data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from doors import Ears, listening, real_bundle
from polars.testing import assert_frame_equal

from checks import one_by_one
from recsys.batch import run_batch
from recsys.bundle import Bundle
from recsys.data.ingest import Dataset, read_dataset
from recsys.errors import SpecError
from recsys.lm.replay import ScriptedLM
from recsys.profiles.edits import Action, Edit, Edits
from recsys.recommender import Recommender
from recsys.serve.rank import Ranker, RankRequest
from recsys.steering import ENOUGH, steering
from recsys.tables import Id, Queries


@pytest.fixture(scope="module")
def bundle(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return real_bundle(tmp_path_factory.mktemp("steering"), tiny)


def edited(bundle: Bundle, user: Id, action: Action, value: str = "", text: str = "", later: int = 0) -> Bundle:
    edit = Edit(bundle.now + later, action, "genres" if value else "", value, text)
    return replace(bundle, recommender=bundle.recommender.with_edits(Edits.of(user, edit)))


def genres(bundle: Bundle, user: Id, k: int = 10) -> list[list[str]]:
    """The genres of each item of a user's slate."""
    of_item = dict(bundle.catalog.frame.select("item_id", "genres").iter_rows())
    return [of_item[item] for item in bundle.recommender.recommend(bundle.queries([user]), k).frame["item_id"]]


def share(bundle: Bundle, user: Id, value: str) -> float:
    slate = genres(bundle, user)
    return sum(value in some for some in slate) / len(slate)


@pytest.fixture(scope="module")
def case(bundle: Bundle) -> tuple[Id, str]:
    """A user, and a genre that is in the user's slate without filling it."""
    for user in bundle.log.frame["user_id"].unique().sort():
        for value in sorted({genre for some in genres(bundle, user) for genre in some}):
            if 0.2 <= share(bundle, user, value) <= 0.6:
                return user, value
    raise AssertionError("no such user in the tiny world")


def test_what_is_forgotten_leaves_the_slate_and_what_is_pinned_comes(bundle: Bundle, case: tuple[Id, str]) -> None:
    user, value = case
    before = share(bundle, user, value)
    assert share(edited(bundle, user, "forget", value), user, value) == 0
    assert share(edited(bundle, user, "pin", value), user, value) > before
    assert share(edited(bundle, user, "say", text=f"no {value.lower()}, please"), user, value) == 0
    assert share(edited(bundle, user, "say", text=f"more {value.lower()}"), user, value) > before


def test_edits_younger_than_the_query_or_of_unknown_values_change_nothing(bundle: Bundle, case: tuple[Id, str]) -> None:
    user, value = case
    before = bundle.recommender.recommend(bundle.queries([user]), 10).frame
    for other in (
        edited(bundle, user, "forget", value, later=1),
        edited(bundle, user, "forget", "Klingon"),
        edited(bundle, user, "say", text="🎃"),
        edited(bundle, user, "withdraw", value),
    ):
        assert other.recommender.recommend(other.queries([user]), 10).frame.equals(before)


def test_users_without_edits_have_the_same_slates_to_the_last_bit(bundle: Bundle, case: tuple[Id, str]) -> None:
    user, value = case
    queries = bundle.queries()
    plain = bundle.recommender.recommend(queries, 10).frame
    found = edited(bundle, user, "forget", value).recommender.recommend(queries, 10).frame
    others = pl.col("query_id") != user
    assert found.filter(others).equals(plain.filter(others))
    assert not found.filter(~others).equals(plain.filter(~others))
    assert found["query_id"].to_list() == plain["query_id"].to_list()


def test_a_batch_with_edits_equals_singles(bundle: Bundle, case: tuple[Id, str]) -> None:
    user, value = case
    line = edited(bundle, user, "pin", value).recommender
    queries = Queries(bundle.queries().frame.head(8))
    singles = pl.concat([line.recommend(query, 10).frame for query in one_by_one(queries)])
    assert_frame_equal(line.recommend(queries, 10).frame, singles, abs_tol=1e-5, rel_tol=1e-5)


def test_batch_and_endpoint_keep_to_the_same_edits(bundle: Bundle, case: tuple[Id, str], tmp_path: Path) -> None:
    user, value = case
    steered = edited(bundle, user, "forget", value)
    expected = steered.recommender.recommend(steered.queries([user]), 5).frame["item_id"].to_list()
    assert expected != bundle.recommender.recommend(bundle.queries([user]), 5).frame["item_id"].to_list()
    answer = Ranker.of(steered).rank(RankRequest(user_id=user, k=5))
    assert [item.item_id for item in answer.items] == expected
    run_batch(steered, [user], k=5, out=tmp_path / "out", progress=False)
    assert pl.read_parquet(tmp_path / "out" / "part-00000.parquet")["item_id"].to_list() == expected
    without = steered.recommender.candidates_only().recommend(steered.queries([user]), 5).frame
    assert without["item_id"].to_list() == expected


def test_a_reason_says_that_an_item_was_asked_for(bundle: Bundle, case: tuple[Id, str]) -> None:
    user, value = case
    found = edited(bundle, user, "pin", value).recommender.recommend(bundle.queries([user]), 10).frame
    asked = [reason.startswith(f"As you asked: {value}") for reason in found["reason"]]
    assert asked == [value in some for some in genres(edited(bundle, user, "pin", value), user)]
    everything = len(bundle.catalog)  # so that what is refused is there, too, in the end
    refused = edited(bundle, user, "forget", value).recommender.recommend(bundle.queries([user]), everything).frame
    assert any(value in some for some in genres(edited(bundle, user, "forget", value), user, everything))
    assert not any(reason.startswith("As you asked") for reason in refused["reason"])


def test_reasons_name_what_was_asked_for_now_and_what_was_pinned(bundle: Bundle) -> None:
    line = replace(bundle, recommender=replace(bundle.recommender, reranker=listening(Ears())))
    user = bundle.log.frame["user_id"][0]
    queries = line.queries([user], ["western please"])
    pinned = edited(line, user, "pin", "Comedy")
    found = pinned.recommender.recommend(queries, 20).frame
    asked = {reason.split(".")[0] for reason in found["reason"] if reason.startswith("As you asked")}
    assert {"As you asked: Western", "As you asked: Comedy"} <= asked


def test_a_request_of_the_moment_wins_over_older_edits(bundle: Bundle) -> None:
    user = bundle.log.frame["user_id"][0]
    steered = edited(bundle, user, "forget", "Western").recommender
    assert [w.value for w in steered.wishes(bundle.queries([user], ["something light"]))[user]] == ["Western"]
    assert steered.wishes(bundle.queries([user], ["a western, please"])) == {}
    assert steered.wishes(bundle.queries([user], ["no westerns"])) != {}
    assert edited(bundle, user, "pin", "Western").recommender.wishes(bundle.queries([user], ["no westerns"])) == {}


def test_edits_hold_whatever_a_reranker_makes_of_the_candidates(tiny: Dataset, tmp_path: Path) -> None:
    bundle = real_bundle(tmp_path, tiny, ScriptedLM())
    user = bundle.log.frame["user_id"][0]
    value = genres(bundle, user)[0][0]
    assert share(edited(bundle, user, "forget", value), user, value) == 0


def test_a_value_below_the_usual_candidates_is_reached(bundle: Bundle) -> None:
    """With three candidates a slate of three has no choice; whoever wishes has more to choose from."""
    shallow = replace(bundle, recommender=replace(bundle.recommender, depth=3))
    user = bundle.log.frame["user_id"][0]
    missing = {genre for some in bundle.catalog.frame["genres"] for genre in some}
    missing -= {genre for some in genres(shallow, user, 3) for genre in some}
    value = min(missing)
    assert any(value in some for some in genres(edited(shallow, user, "pin", value), user, 3))
    first = genres(shallow, user, 3)[0][0]
    slate = genres(edited(shallow, user, "forget", first), user, 3)
    assert len(slate) == 3
    assert not any(first in some for some in slate)


def test_a_measurement_is_of_as_many_edits_as_asked_half_of_them_pins(bundle: Bundle) -> None:
    known = bundle.recommender.reasons.known
    found = steering(bundle.recommender, bundle.queries(), known, n=20, seed=3)
    again = steering(bundle.recommender, bundle.queries(), known, n=20, seed=3)
    assert found.cases["action"].to_list() == ["pin", "forget"] * 10
    assert found.cases["user_id"].is_unique().all()
    assert again.cases.equals(found.cases)
    assert not steering(bundle.recommender, bundle.queries(), known, n=20, seed=4).cases.equals(found.cases)
    assert found.rate == found.cases["moved"].to_numpy().mean()
    assert set(found.by_action) == {"pin", "forget"}
    moved = found.cases.filter((pl.col("after") > pl.col("before")) == (pl.col("action") == "pin"))
    assert moved.filter(pl.col("after") != pl.col("before"))["moved"].all()
    carriers = bundle.catalog.frame.explode("genres", empty_as_null=False)["genres"].value_counts()
    rare = set(carriers.filter(pl.col("count") < ENOUGH)["genres"])
    pinned = found.cases.filter(action="pin", attribute="genres")["value"]
    assert rare
    assert pinned.n_unique() > 2
    assert rare.isdisjoint(pinned)
    assert found.cases.filter(action="forget")["before"].min() > 0  # type: ignore[operator]  # a float here
    assert found.cases.filter(action="pin")["before"].max() < 1  # type: ignore[operator]


def test_what_is_forgotten_is_a_taste_where_one_is_in_the_slate(bundle: Bundle) -> None:
    line = bundle.recommender
    cases = steering(line, bundle.queries(), line.reasons.known, n=60).cases.filter(action="forget")
    profiles = line.profiles.as_of(bundle.queries()).frame
    claims = dict(profiles.select("query_id", "claims").iter_rows())
    among = 0
    for query, attribute, value in cases.select("query_id", "attribute", "value").iter_rows():
        tastes = [claim.split("|")[1:3] for claim in claims[query] if claim.startswith(("likes|", "era|"))]
        slate = {genre for some in genres(bundle, query) for genre in some}
        among += [attribute, value] in tastes
        assert [attribute, value] in tastes or not any(a == "genres" and v in slate for a, v in tastes)
    assert among


def test_edits_that_stand_already_are_kept_and_what_fills_a_slate_is_not_pinned(bundle: Bundle) -> None:
    """Everybody has refused all decades but one: that one fills the slates, and only something else can be pinned."""
    known = bundle.recommender.reasons.known
    eras = known.population.values.filter(kind="era")
    carriers = known.facets.join(eras, on="facet").group_by("attribute", "value").len().sort("len", "value")
    attribute, kept, _ = carriers.row(-1)
    refused = [Edit(0, "forget", attribute, value) for value in carriers["value"] if value != kept]
    edits = Edits(pl.concat([Edits.of(user, *refused).frame for user in bundle.log.frame["user_id"].unique()]))
    asked: list[Edits] = []

    class Recording(Recommender):
        def with_edits(self, edits: Edits) -> Recommender:
            asked.append(edits)
            return super().with_edits(edits)

    line = bundle.recommender
    recording = Recording(
        line.catalog, line.generator, line.profiles, line.reranker, line.policy, line.reasons, edits=edits
    )
    found = steering(recording, bundle.queries(), known, n=60, k=5).cases
    pinned = found.filter(action="pin")
    assert (attribute, kept) not in pinned.select("attribute", "value").rows()
    assert set(found.filter(action="forget", attribute=attribute)["before"]) == {1.0}
    assert asked[0].frame.head(len(edits)).equals(edits.frame)
    assert len(asked[0]) == len(edits) + len(found)


def test_a_line_that_edits_do_not_steer_is_found_out(bundle: Bundle) -> None:
    class Deaf(Recommender):
        def with_edits(self, edits: Edits) -> Recommender:
            return self

    line = bundle.recommender
    deaf = Deaf(line.catalog, line.generator, line.profiles, line.reranker, line.policy, line.reasons, line.depth)
    found = steering(deaf, bundle.queries(), line.reasons.known, n=20)
    assert (found.rate, found.correlation) == (0.0, pytest.approx(1.0))


def test_edits_that_nobody_can_make_are_no_measurement(bundle: Bundle) -> None:
    with pytest.raises(SpecError, match="no edit can be tried"):
        steering(bundle.recommender, Queries(bundle.queries().frame.clear()), bundle.recommender.reasons.known)


@pytest.mark.parametrize("name", ["ml-100k", "movietweetings-100k-5core"])
def test_single_edits_steer_the_slates_of_real_users(
    real_data: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    bundle = real_bundle(tmp_path, read_dataset(real_data(name)))
    known = bundle.recommender.reasons.known
    found = steering(bundle.recommender, bundle.queries(), known, n=200)
    assert len(found.cases) == 200
    assert found.rate >= 0.9
    assert min(found.by_action.values()) >= 0.9
    assert found.correlation >= 0.6
