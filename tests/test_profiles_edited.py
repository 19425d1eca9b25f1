"""Profiles tell what their users changed, first and above what was inferred."""

from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.edits import Edit, Edits
from recsys.profiles.evidence import ENOUGH
from recsys.profiles.store import Store
from recsys.tables import Id, Queries, query_histories


@pytest.fixture(scope="module")
def fitted(world: Any, world_split: Any) -> EvidenceProfiles:
    return ProfilesConfig().fit(world_split.known, world.catalog, rated=world.rated, seed=0)


@pytest.fixture(scope="module")
def queries(world_split: Any) -> Queries:
    return Queries(query_histories(world_split.known).frame.filter(pl.col("history").list.len() >= ENOUGH).head(12))


def liked(fitted: EvidenceProfiles, queries: Queries) -> tuple[str, str]:
    """The first user's strongest taste."""
    taste = fitted.evidence(queries)[0].tastes[0]
    return taste.attribute, taste.value


def edited(fitted: EvidenceProfiles, queries: Queries, *edits: Edit) -> EvidenceProfiles:
    return fitted.with_edits(Edits.of(queries.frame["user_id"][0], *edits))


def now(queries: Queries) -> int:
    return int(queries.frame["at"][0])


def written(fitted: EvidenceProfiles, queries: Queries, text: str) -> EvidenceProfiles:
    """The same source with one text by a model for each user."""
    rows = [
        {
            "evidence_hash": e.hash,
            "user_id": str(user),
            "evidence": e.json,
            "text": f"{text} {user}.",
            "prompt_id": "write",
            "model_id": "m",
            "as_of": e.last,
        }
        for e, user in zip(fitted.evidence(queries), queries.frame["user_id"], strict=True)
    ]
    return fitted.with_store(Store(pl.DataFrame(rows, schema=Store.empty().frame.schema)))


def test_without_edits_nothing_changes(fitted: EvidenceProfiles, queries: Queries) -> None:
    assert_frame_equal(fitted.with_edits(Edits.none()).as_of(queries).frame, fitted.as_of(queries).frame)
    stranger = Edits.of("nobody here", Edit(0, "say", text="I only like trains"))
    assert_frame_equal(fitted.with_edits(stranger).as_of(queries).frame, fitted.as_of(queries).frame)


def test_what_the_user_said_comes_first_and_the_rest_stays(fitted: EvidenceProfiles, queries: Queries) -> None:
    before = fitted.as_of(queries).frame
    after = edited(fitted, queries, Edit(now(queries), "say", text="Nothing sad, please")).as_of(queries).frame
    assert after["text"][0].endswith(before["text"][0])
    assert '"Nothing sad, please"' in after["text"][0].removesuffix(before["text"][0])
    assert after["claims"][0].to_list() == ["said|Nothing sad, please", *before["claims"][0]]
    assert_frame_equal(after[1:], before[1:])


def test_what_is_forgotten_is_not_inferred_any_more(fitted: EvidenceProfiles, queries: Queries) -> None:
    attribute, value = liked(fitted, queries)
    source = edited(fitted, queries, Edit(now(queries), "forget", attribute, value))
    assert all(t.value != value for t in (*source.evidence(queries)[0].tastes, *source.evidence(queries)[0].common))
    claims = source.as_of(queries).frame["claims"][0].to_list()
    assert claims[0] == f"forgotten|{attribute}|{value}"
    assert not [claim for claim in claims[1:] if f"|{value}|" in claim]
    assert [claim for claim in fitted.as_of(queries).frame["claims"][0] if f"|{value}|" in claim]


def test_who_wants_nothing_counted_is_not_told_that_there_is_nothing(
    fitted: EvidenceProfiles, queries: Queries
) -> None:
    evidence = fitted.evidence(queries)[0]
    tastes = {(t.attribute, t.value): None for t in evidence.tastes}
    whole = tastes | {(t.attribute, t.value): None for t in evidence.common}
    none = edited(fitted, queries, *[Edit(now(queries), "forget", *pair) for pair in whole])
    assert none.evidence(queries)[0].tastes == none.evidence(queries)[0].common == ()
    text = none.as_of(queries).frame["text"][0]
    assert fitted.phrases.kinds["titles-only"][0] not in text
    assert text.startswith("You asked us not to count on")
    assert text.endswith(fitted.as_of(queries).frame["text"][0].rsplit(". ", 1)[1]), "what it rests on is still said"


def test_who_wants_no_taste_counted_is_not_called_average(fitted: EvidenceProfiles, queries: Queries) -> None:
    found = fitted.evidence(queries)
    row = next(
        row for row, e in enumerate(found) if {t.value for t in e.common} - {t.value for t in e.tastes} and e.tastes
    )
    user = queries.frame["user_id"][row]
    less = [Edit(now(queries), "forget", t.attribute, t.value) for t in found[row].tastes]
    after = fitted.with_edits(Edits.of(user, *less)).as_of(queries).frame.row(row, named=True)
    assert [claim for claim in after["claims"] if claim.startswith("common|")]
    assert "that of most people" not in after["text"]
    assert "mostly" not in after["text"]
    assert "You often choose" in after["text"]


def test_what_is_taken_back_leaves_the_text_and_is_a_newer_profile(fitted: EvidenceProfiles, queries: Queries) -> None:
    frame = queries.frame.with_columns(pl.col("at") + 100)
    later, first = Queries(frame), int(frame["times"].list.last()[0])
    pin = Edit(first + 10, "pin", *liked(fitted, queries))
    back = Edit(first + 20, "withdraw", *liked(fitted, queries))
    before, pinned, after = (
        source.as_of(later).frame
        for source in (fitted, edited(fitted, queries, pin), edited(fitted, queries, pin, back))
    )
    assert [frame["as_of"][0] for frame in (before, pinned, after)] == [first, first + 10, first + 20]
    assert_frame_equal(after.drop("as_of"), before.drop("as_of"))
    assert_frame_equal(after[1:], before[1:])


def test_the_catalogs_names_are_collected_once_for_all_edits(fitted: EvidenceProfiles, queries: Queries) -> None:
    """They are read at every request of the endpoint by whoever changed anything."""
    said = Edit(now(queries), "say", text="hello")
    assert edited(fitted, queries, said).listener is fitted.listener is fitted.reasons.listener


def test_what_is_pinned_is_said_to_be_asked_for_and_not_inferred(fitted: EvidenceProfiles, queries: Queries) -> None:
    values = fitted.known.population.values.filter(pl.col("kind") == "value").select("attribute", "value").rows()
    known = {(t.attribute, t.value) for t in fitted.evidence(queries)[0].tastes}
    attribute, value = next(pair for pair in values if pair not in known)
    source = edited(fitted, queries, Edit(now(queries), "pin", attribute, value))
    claims = source.as_of(queries).frame["claims"][0].to_list()
    assert claims[0] == f"pinned|{attribute}|{value}"
    assert not [claim for claim in claims if claim.startswith(f"likes|{attribute}|{value}|")]


def test_what_every_catalog_has_is_named_without_its_attribute(fitted: EvidenceProfiles, queries: Queries) -> None:
    after = edited(fitted, queries, Edit(now(queries), "pin", "popularity", "lesser-known")).as_of(queries).frame
    assert after["text"][0].startswith("You asked us to count on lesser-known titles. ")


def test_a_models_text_that_says_what_is_forgotten_is_not_shown(fitted: EvidenceProfiles, queries: Queries) -> None:
    told = written(fitted, queries, "The model says this of")
    assert told.as_of(queries).frame["model_id"].to_list() == ["m"] * len(queries)
    attribute, value = liked(fitted, queries)
    user = queries.frame["user_id"][0]
    after = told.with_edits(Edits.of(user, Edit(now(queries), "forget", attribute, value))).as_of(queries).frame
    assert after["model_id"].to_list() == ["template", *["m"] * (len(queries) - 1)]
    assert "The model says" not in after["text"][0]
    # What the edit does not touch stands as it was written, behind the user's own words.
    said = told.with_edits(Edits.of(user, Edit(now(queries), "say", text="hello"))).as_of(queries).frame
    assert said["text"][0].endswith(f"The model says this of {user}.")
    assert said["claims"][0][0] == "said|hello"


def test_a_text_that_would_do_for_evidence_nearby_does_not_for_one_that_was_edited(
    fitted: EvidenceProfiles, queries: Queries
) -> None:
    """The evidence after an edit may be as near to the text's as a few new events would leave it."""
    loose = EvidenceProfiles(
        fitted.config.model_copy(update={"refresh": 1.0}), fitted.known, fitted.store, fitted.phrases, fitted.personas
    )
    told = written(loose, queries, "The model says this of")
    weakest = loose.evidence(queries)[0].tastes[-1]
    forget = Edit(now(queries), "forget", weakest.attribute, weakest.value)
    assert edited(told, queries, forget).as_of(queries).frame["model_id"][0] == "template"


def test_an_edit_younger_than_the_query_does_not_count(fitted: EvidenceProfiles, queries: Queries) -> None:
    later = edited(fitted, queries, Edit(now(queries) + 1, "say", text="I only like trains"))
    assert_frame_equal(later.as_of(queries).frame, fitted.as_of(queries).frame)


def test_batch_equals_singles(fitted: EvidenceProfiles, queries: Queries) -> None:
    edits = Edits.none()
    for place, user in enumerate(queries.frame["user_id"]):
        taste = fitted.evidence(queries)[place].tastes[:1]
        some = [Edit(0, "say", text=f"user {place}"), *[Edit(1, "forget", t.attribute, t.value) for t in taste]]
        edits = edits.add(Edits.of(user, *some[: place % 3]))
    source = fitted.with_edits(edits)
    together = source.as_of(queries).frame
    singly = [source.as_of(Queries(queries.frame[row : row + 1])).frame for row in range(len(queries))]
    assert_frame_equal(together, pl.concat(singly))


def test_a_german_profile_is_german_throughout(world: Any, world_split: Any, queries: Queries) -> None:
    source = ProfilesConfig(wording="phrases-de").fit(world_split.known, world.catalog, rated=world.rated, seed=0)
    values = source.known.population.values.filter(pl.col("kind") == "value").select("attribute", "value").rows()
    user: Id = queries.frame["user_id"][0]
    pins = [Edit(0, "pin", *pair) for pair in values[:2]]
    forgets = [Edit(0, "forget", *pair) for pair in values[2:4]]
    led = source.with_edits(Edits.of(user, *pins, *forgets, Edit(0, "say", text="a"), Edit(0, "say", text="b")))
    thin = queries.frame.with_columns(pl.col("history", "weights", "times").list.head(2))
    for profiles in (led.as_of(queries), source.as_of(Queries(thin))):
        assert not profiles.frame["text"].str.contains(r"\b(and|you|You|the|like|people)\b").any()
    (said, pinned, forgotten) = led.as_of(queries).frame["text"][0].split(". ")[:3]
    assert all(" und " in sentence for sentence in (said, pinned, forgotten))
