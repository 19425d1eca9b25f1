"""Who has chosen little is described by a persona, or by everybody, and told how little is known."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.evidence import ENOUGH
from recsys.tables import Catalog, Queries, adhoc_query, query_histories


@pytest.fixture(scope="module")
def profiles(world: Any) -> EvidenceProfiles:
    return ProfilesConfig(personas=6).fit(world.log, world.catalog, rated=world.rated, seed=0)


def firsts(world: Any, n: int) -> Queries:
    """Everybody, with their first n events."""
    frame = query_histories(world.log).frame
    return Queries(frame.with_columns(pl.col(name).list.head(n) for name in ("history", "weights", "times")))


@pytest.mark.parametrize("n", range(4))
def test_a_profile_of_few_events_says_how_little_is_known(profiles: EvidenceProfiles, world: Any, n: int) -> None:
    told = profiles.as_of(firsts(world, n)).frame
    assert set(told["level"]) <= {"persona", "global"}
    little = "We know nothing about your taste yet" if n == 0 else "We know little about you yet"
    assert told["text"].str.starts_with(little).all()
    company = told["text"].str.contains("Others whose choices look like yours are|Most choices here are")
    assert company.all()
    assert told["text"].str.len_bytes().min() > 100


def test_the_level_goes_from_global_to_persona_to_user(profiles: EvidenceProfiles, world: Any) -> None:
    nobody = profiles.as_of(adhoc_query([], at=1, dtype=world.catalog.frame["item_id"].dtype)).frame
    assert nobody["level"].to_list() == ["global"]
    assert nobody["claims"][0][0] == "events|n=0"
    few = profiles.as_of(firsts(world, ENOUGH - 1)).frame["level"]
    assert (few == "persona").mean() > 0.5
    enough = firsts(world, ENOUGH).frame.filter(pl.col("history").list.len() == ENOUGH)
    assert set(profiles.as_of(Queries(enough)).frame["level"]) == {"user"}


def test_a_persona_is_told_of_those_who_choose_what_it_is_fond_of(profiles: EvidenceProfiles, world: Any) -> None:
    """Somebody whose few choices are all of a persona's foremost genre is told of people who like that genre."""
    assert profiles.personas is not None
    hits = 0
    for row, names in enumerate(profiles.personas.names):
        attribute, value, _ = profiles.personas.facets[int(profiles.personas.centres[row].argmax())]
        if attribute != "genres":
            continue
        carry = world.catalog.frame.filter(pl.col("genres").list.contains(value) & (pl.col("genres").list.len() == 1))
        items = carry["item_id"].head(4).to_list()
        text = profiles.as_of(adhoc_query(items, at=1, weight=5.0, dtype=carry["item_id"].dtype)).frame["text"][0]
        told = text.partition("above all fond of ")[2]
        hits += names.split(",")[0].split(" and ")[0] in told
    assert hits >= 2


def test_without_personas_everybody_stands_in(world: Any) -> None:
    plain = ProfilesConfig(personas=0).fit(world.log, world.catalog, rated=world.rated, seed=0)
    assert set(plain.as_of(firsts(world, 3)).frame["level"]) == {"global"}


def test_a_catalog_without_attributes_has_nothing_to_say_of_others(world: Any) -> None:
    bare = Catalog(world.catalog.frame.select("item_id", "text", title=pl.format("Item {}", "item_id")))
    plain = ProfilesConfig().fit(world.log, bare, rated=world.rated, seed=0)
    told = plain.as_of(firsts(world, 0)).frame
    assert told["text"][0].startswith("We know nothing about your taste yet")
    assert "Most choices here" not in told["text"][0]


def test_the_texts_of_those_who_are_known_do_not_depend_on_personas(profiles: EvidenceProfiles, world: Any) -> None:
    queries = Queries(query_histories(world.log).frame.filter(pl.col("history").list.len() >= ENOUGH))
    plain = replace(profiles, personas=None).as_of(queries).frame
    assert profiles.as_of(queries).frame["text"].equals(plain["text"])
