"""Personas: kinds of people, found by what stands out in their tastes."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.errors import BundleError
from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.evidence import Evidence, Trait
from recsys.profiles.personas import Personas
from recsys.tables import Queries, adhoc_query, query_histories


def fond_of(*values: str, lift: float = 3.0, eras: tuple[str, ...] = ()) -> Evidence:
    return Evidence(
        events=20,
        tastes=tuple(Trait("genres", value, "value", lift, 9) for value in values),
        eras=tuple(Trait("year", era, "era", lift, 9) for era in eras),
    )


PEOPLE = [
    *[fond_of("Horror", "Thriller")] * 6,
    *[fond_of("Horror", "Thriller", lift=1.5)] * 2,
    *[fond_of("Musical", eras=("1950s",))] * 4,
    Evidence(events=3),
]


@pytest.fixture(scope="module")
def personas() -> Personas:
    return Personas.fit(PEOPLE, 2, seed=0)


def test_people_of_like_tastes_share_a_persona_however_strong_those_are(personas: Personas) -> None:
    assert personas.of(PEOPLE).tolist() == [*[0] * 8, *[1] * 4, -1]
    assert personas.shares == pytest.approx((8 / 12, 4 / 12))


def test_a_persona_is_described_by_what_its_people_are_fond_of(personas: Personas) -> None:
    told = personas.describe([PEOPLE[0], PEOPLE[8], PEOPLE[-1]]).to_list()
    assert told == [
        "You are one of the 67% of people who are above all fond of horror and thrillers.",
        "You are one of the 33% of people who are above all fond of musicals and the 1950s.",
        "",
    ]


def test_there_are_no_more_personas_than_tastes() -> None:
    assert len(Personas.fit(PEOPLE, 50, seed=0)) == 2
    nobody = Personas.fit([Evidence()], 5, seed=0)
    assert len(nobody) == 0
    assert nobody.describe(PEOPLE[:2]).to_list() == ["", ""]


def test_tastes_that_no_persona_knows_give_none(personas: Personas) -> None:
    assert personas.of([fond_of("Western")]).tolist() == [-1]


def test_personas_survive_saving_and_are_refused_when_altered(personas: Personas, tmp_path: Path) -> None:
    personas.save(tmp_path)
    again = Personas.load(tmp_path)
    np.testing.assert_allclose(again.centres, personas.centres, atol=1e-6)
    assert again.descriptions == personas.descriptions
    (tmp_path / "personas.json").write_text('{"facets": [], "centres": [[1, 2]], "shares": [1.0]}')
    with pytest.raises(BundleError, match=r"personas\.json: not saved personas"):
        Personas.load(tmp_path)


def test_the_worlds_users_are_told_apart_by_their_planted_tastes(known_world: Any, world: Any) -> None:
    """Two users of one persona share more of their three favourite genres than any two."""
    source = ProfilesConfig(personas=6).fit(world.log, world.catalog, rated=world.rated, seed=0)
    queries = query_histories(world.log)
    assert source.personas is not None
    kind = source.personas.of(source.evidence(queries))
    hidden = known_world.hidden_users.taste.mean(axis=1)[queries.frame["user_id"].to_numpy() - 1]
    favourites = np.zeros(hidden.shape)
    np.put_along_axis(favourites, (hidden / hidden.mean(axis=0)).argsort(axis=1)[:, -3:], 1, axis=1)
    shared, others = favourites @ favourites.T, ~np.eye(len(kind), dtype=bool)
    same = (kind[:, None] == kind[None]) & (kind >= 0)[:, None] & others
    assert shared[same].mean() > 1.2 * shared[others].mean()


def test_profiles_name_the_persona_and_a_visitor_has_none(world: Any, tmp_path: Path) -> None:
    source = ProfilesConfig(personas=5).fit(world.log, world.catalog, rated=world.rated, seed=0)
    queries = Queries(query_histories(world.log).frame.head(10))
    told = source.as_of(queries).frame
    assert set(told["persona"]) <= {"", *source.personas.descriptions}  # type: ignore[union-attr]
    assert told["persona"].str.len_chars().max() > 0
    stranger = adhoc_query([], at=1, dtype=queries.frame.schema["history"].inner)  # type: ignore[attr-defined]
    assert source.as_of(stranger).frame["persona"].to_list() == [""]
    source.save(tmp_path / "profiles")
    assert_frame_equal(EvidenceProfiles.load(tmp_path / "profiles", world.catalog).as_of(queries).frame, told)
    plain = ProfilesConfig(personas=0).fit(world.log, world.catalog, rated=world.rated, seed=0).as_of(queries).frame
    assert_frame_equal(told.drop("persona"), plain)
    assert pl.String == told.schema["persona"]
