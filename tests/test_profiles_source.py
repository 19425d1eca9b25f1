"""The profile source: the contract, and its laws about time."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from contracts import ProfileSourceContract
from recsys.errors import BundleError, StorageError
from recsys.profiles import EvidenceProfiles, ProfilesConfig, summarize
from recsys.protocols import ProfileSource
from recsys.tables import InteractionLog, Queries, adhoc_query, query_histories


class TestEvidenceProfiles(ProfileSourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, world_split: Any, world: Any) -> ProfileSource:
        return ProfilesConfig().fit(world_split.known, world.catalog, rated=world.rated, seed=0)

    @pytest.fixture(autouse=True)
    def _catalog(self, world: Any) -> None:
        self.catalog = world.catalog

    def load(self, path: Path) -> ProfileSource:
        return EvidenceProfiles.load(path, self.catalog)


class TestProfilesWithPersonas(TestEvidenceProfiles):
    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, world_split: Any, world: Any) -> ProfileSource:
        return ProfilesConfig(personas=4).fit(world_split.known, world.catalog, rated=world.rated, seed=0)


@pytest.fixture(scope="module")
def fitted(world: Any, world_split: Any) -> EvidenceProfiles:
    return ProfilesConfig().fit(world_split.fit, world.catalog, rated=world.rated, seed=0)


def test_a_profile_is_as_of_its_youngest_event(fitted: EvidenceProfiles, world_split: Any) -> None:
    queries = world_split.questions("test").queries
    assert fitted.as_of(queries).frame["as_of"].to_list() == queries.frame["times"].list.last().to_list()


def test_without_events_a_profile_is_as_of_its_query(fitted: EvidenceProfiles) -> None:
    assert fitted.as_of(adhoc_query([], at=77, dtype=pl.String)).frame["as_of"].item() == 77


def test_the_population_is_that_of_the_log_it_was_fitted_on(world: Any, world_split: Any) -> None:
    """Events that are held out change nothing, whatever they are."""
    held_out = world_split.test.frame.with_columns(weight=pl.lit(1.0))
    config = ProfilesConfig(personas=0)  # which are drawn by seed
    queries = world_split.questions("tune").queries
    before = config.fit(world_split.fit, world.catalog, rated=True, seed=0).as_of(queries).frame
    again = config.fit(world_split.fit, world.catalog, rated=True, seed=99).as_of(queries).frame
    more = InteractionLog.of(pl.concat([world_split.fit.frame, held_out]))
    other = config.fit(more, world.catalog, rated=True, seed=0).as_of(queries).frame
    assert_frame_equal(before, again)
    assert not before["evidence_hash"].equals(other["evidence_hash"])


def test_two_users_of_equal_history_have_equal_profiles(fitted: EvidenceProfiles, world: Any) -> None:
    frame = query_histories(world.log).frame.head(1)
    twin = frame.with_columns(query_id=frame["query_id"] + 1000, user_id=pl.lit(None, dtype=pl.Int64))
    found = fitted.as_of(Queries(pl.concat([frame, twin]))).frame
    assert found["text"].n_unique() == found["evidence_hash"].n_unique() == 1


def test_no_queries_give_no_profiles(fitted: EvidenceProfiles, world: Any) -> None:
    assert len(fitted.as_of(Queries(query_histories(world.log).frame.clear()))) == 0


def test_texts_of_a_model_survive_saving(
    fitted: EvidenceProfiles, world: Any, scripted_lm: Any, tmp_path: Path
) -> None:
    queries = Queries(query_histories(world.log).frame.head(6))
    written, _ = summarize(fitted, queries, scripted_lm(), 6)
    written.save(tmp_path / "profiles")
    loaded = EvidenceProfiles.load(tmp_path / "profiles", world.catalog)
    assert_frame_equal(loaded.as_of(queries).frame, written.as_of(queries).frame)
    assert "scripted" in loaded.as_of(queries).frame["model_id"].to_list()


def test_saving_does_not_overwrite_and_a_failure_leaves_nothing(fitted: EvidenceProfiles, tmp_path: Path) -> None:
    fitted.save(tmp_path / "profiles")
    with pytest.raises(StorageError):
        fitted.save(tmp_path / "profiles")
    assert [p.name for p in tmp_path.iterdir()] == ["profiles"]


@pytest.mark.parametrize("broken", ["config.json", "population.json", "values.parquet", "texts.parquet"])
def test_a_damaged_part_is_a_bundle_error_that_names_it(
    fitted: EvidenceProfiles, world: Any, tmp_path: Path, broken: str
) -> None:
    fitted.save(tmp_path / "profiles")
    (tmp_path / "profiles" / broken).write_bytes(b"{")
    with pytest.raises(BundleError, match="profiles"):
        EvidenceProfiles.load(tmp_path / "profiles", world.catalog)


def test_a_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="lm_user\n"):
        ProfilesConfig.model_validate({"kind": "evidence", "lm_user": 3})
    with pytest.raises(ValidationError, match="like_at"):
        ProfilesConfig.model_validate({"like_at": "high"})


def test_an_unrated_log_has_profiles_without_dislikes(world: Any) -> None:
    found = ProfilesConfig().fit(world.log, world.catalog, rated=False, seed=0).as_of(query_histories(world.log))
    claims = found.frame["claims"].explode()
    assert not claims.str.starts_with("dislikes").any()
    assert claims.str.starts_with("likes").any()


def test_every_claim_is_found_in_the_history(fitted: EvidenceProfiles, world: Any) -> None:
    """Anchors and last items are history; every value named is carried by as many events of it as claimed, at least."""
    genres = dict(world.catalog.frame.select("item_id", "genres").iter_rows())
    queries = query_histories(world.log)
    for claims, history in zip(fitted.as_of(queries).frame["claims"], queries.frame["history"], strict=True):
        for claim in claims:
            kind, *rest = claim.split("|")
            if kind in ("anchor", "latest"):
                assert rest[0] in history
            elif kind not in ("events", "everybody", "persona") and rest[0] == "genres":
                carried = sum(rest[1] in genres[item] for item in history)
                assert carried >= int(rest[3].removeprefix("n="))
