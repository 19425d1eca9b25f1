"""Planted lies: nearly all are caught, in wordings that the checker was not built on, and true texts pass."""

from typing import Any

import pytest

from recsys.errors import SpecError
from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.faithful import Checker
from recsys.profiles.lies import KINDS, Lie, caught, plant
from recsys.profiles.template import sentences
from recsys.tables import Queries, query_histories


def checked(data: Any, users: int) -> tuple[EvidenceProfiles, Checker, list[Any]]:
    profiles = ProfilesConfig().fit(data.log, data.catalog, rated=data.rated, seed=0)
    frame = query_histories(data.log).frame
    evidence = profiles.evidence(Queries(frame.sample(min(users, len(frame)), seed=1)))
    return profiles, Checker.of(profiles.known, profiles.phrases, ""), evidence


def finds(checker: Checker, lie: Lie) -> bool:
    """Whether the false sentence itself is found, not merely some fault somewhere."""
    reading = checker.read(lie.text, lie.evidence)
    return any(f for s, f in zip(reading.sentences, reading.faults, strict=True) if s in lie.sentence)


@pytest.fixture(scope="module")
def lies(world: Any) -> tuple[Checker, list[Lie]]:
    profiles, checker, evidence = checked(world, 300)
    return checker, plant(evidence, profiles.known, profiles.phrases, 300, seed=3)


def test_lies_are_of_six_kinds_in_many_wordings_and_the_same_for_a_seed(world: Any, lies: Any) -> None:
    profiles, _, evidence = checked(world, 300)
    planted = lies[1]
    assert plant(evidence, profiles.known, profiles.phrases, 300, seed=3) == planted
    assert plant(evidence, profiles.known, profiles.phrases, 300, seed=4) != planted
    for kind in KINDS:
        some = [lie for lie in planted if lie.kind == kind]
        assert len(some) == 50
        assert len({lie.sentence[:8] for lie in some}) >= 6
        assert all(lie.sentence in lie.text for lie in some)


def test_lies_about_the_world_are_caught(lies: Any) -> None:
    checker, planted = lies
    for held_out in (False, True):
        share = caught([lie for lie in planted if lie.held_out is held_out], lambda lie: finds(checker, lie))
        assert share["all"] >= 0.95, share
        assert min(share.values()) >= 0.9, share


def test_a_blind_checker_catches_nothing(lies: Any) -> None:
    assert set(caught(lies[1], lambda _: False).values()) == {0.0}


def test_without_users_there_is_nothing_to_lie_about(world: Any) -> None:
    profiles, _, _ = checked(world, 5)
    with pytest.raises(SpecError, match="can be lied about"):
        plant([], profiles.known, profiles.phrases, 3)


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "movietweetings-100k-5core"])
def test_on_real_data_lies_are_caught_and_the_truth_passes(real_data: Any, name: str) -> None:
    from recsys.data.ingest import read_dataset

    profiles, checker, evidence = checked(read_dataset(real_data(name)), 200)
    planted = plant(evidence, profiles.known, profiles.phrases, 200)
    assert caught(planted, lambda lie: finds(checker, lie))["all"] >= 0.95
    for e in evidence:
        told = sentences(e, profiles.phrases)
        for which in range(3):
            text = " ".join(s.phrasings[which % len(s.phrasings)] for s in told)
            reading = checker.read(text, e)
            assert [c for c in reading.claims if not c.supported] == []
            assert not any(reading.faults)
