"""What a language model wrote at an earlier fit and need not write again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys import bundle
from recsys.profiles import EvidenceProfiles, ProfilesConfig, summarize
from recsys.profiles.fresh import drift
from recsys.profiles.standing import carried
from recsys.profiles.store import Store
from recsys.settings import Settings
from recsys.spec import Spec, fit
from recsys.tables import InteractionLog, Queries, query_histories

LAST = 4  # events of the earlier log's users that only the later log holds


def profiles_of(world: Any, log: InteractionLog, **options: Any) -> EvidenceProfiles:
    return ProfilesConfig(**options).fit(log, world.catalog, rated=world.rated, seed=0)


def asked_of(log: InteractionLog) -> Queries:
    return Queries(query_histories(log).frame.filter(pl.col("history").list.len() >= 12).head(30))


@pytest.fixture(scope="module")
def early_log(world: Any) -> InteractionLog:
    place = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id")
    return InteractionLog(world.log.frame.filter(place > LAST))


@pytest.fixture(scope="module")
def before(world: Any, early_log: InteractionLog) -> EvidenceProfiles:
    from recsys.lm.replay import ScriptedLM

    asked = Queries(asked_of(early_log).frame)
    return summarize(profiles_of(world, early_log), asked, ScriptedLM(likelihood=-1.0, model_id="m"), 100)[0]


def test_only_who_changed_is_written_for_again(
    world: Any, before: EvidenceProfiles, early_log: InteractionLog, scripted_lm: Any
) -> None:
    """A text stands where the evidence has hardly moved; the others' are asked for, and take the old one's place."""
    now, asked = profiles_of(world, world.log), Queries(_same_users(world.log, asked_of(early_log)))
    now = now.with_store(carried(before, now, asked.frame["user_id"]))
    lm = scripted_lm(likelihood=-1.0, model_id="m")
    written, report = summarize(now, asked, lm, 100)
    told = before.evidence(asked_of(early_log))
    still = [drift(old, new) < now.config.refresh for old, new in zip(told, now.evidence(asked), strict=True)]
    assert 0 < sum(still) < len(still)
    assert (report.standing, report.asked) == (sum(still), len(still) - sum(still))
    texts = written.as_of(asked).frame["text"]
    old = before.as_of(asked_of(early_log)).frame["text"]
    assert [a == b for a, b in zip(texts, old, strict=True)] == still, "whose text stands, and whose is new"
    assert summarize(written, asked, lm, 100)[1].standing == len(still)


def _same_users(log: InteractionLog, asked: Queries) -> pl.DataFrame:
    everybody = query_histories(log).frame
    return (
        asked.frame.select("user_id").join(everybody, on="user_id", maintain_order="left").select(asked.frame.columns)
    )


def test_of_who_left_the_log_nothing_is_carried_on(world: Any, before: EvidenceProfiles) -> None:
    users = before.store.frame["user_id"].unique().sort()
    kept = carried(before, profiles_of(world, world.log), users[1:]).frame
    assert set(kept["user_id"]) == set(users[1:])


@pytest.mark.parametrize("other", [{"sensitive": {"words": ["drama"]}}, {"top": 2}, {"wording": "phrases-playful"}])
def test_another_recipe_takes_no_texts_over(world: Any, before: EvidenceProfiles, other: dict[str, Any]) -> None:
    users = before.store.frame["user_id"]
    assert len(carried(before, profiles_of(world, world.log, lm_users=5), users)) == len(before.store)
    assert not len(carried(before, profiles_of(world, world.log, **other), users))


def test_the_youngest_text_of_a_user_is_enough_and_a_false_one_is_left(world: Any, before: EvidenceProfiles) -> None:
    frame = before.store.frame
    older = frame.with_columns(pl.col("as_of") - 1, evidence_hash=pl.lit("older"))
    liar = pl.col("user_id") == frame["user_id"][0]
    lie = pl.when(liar).then(pl.lit('You love "The Film That Never Was".')).otherwise("text")
    told = replace(before, store=Store(pl.concat([frame.with_columns(text=lie), older])))
    kept = carried(told, profiles_of(world, world.log), frame["user_id"]).frame
    assert set(kept["user_id"]) == set(frame["user_id"][1:])
    assert "older" not in kept["evidence_hash"]


def test_a_second_fit_asks_the_model_nothing_of_who_has_not_changed(
    world: Any, scripted_lm: Any, settings: Settings, tmp_path: Path
) -> None:
    recipe = {"generator": {"kind": "popular"}, "reranker": {"kind": "identity"}, "profiles": {"lm_users": 20}}
    spec = Spec.model_validate({**recipe, "lm": {"kind": "remote", "model": "m"}})
    lm = scripted_lm(likelihood=-1.0, model_id="m")
    first = fit(world, spec, settings, seed=0, lm=lm)
    path = bundle.write(tmp_path / "bundle", first.recommender, world, spec=spec)
    asked = len(lm.calls)
    assert asked
    second = fit(world, spec, settings, seed=0, lm=lm, before=bundle.load_profiles(path))
    assert len(lm.calls) == asked
    assert second.tuning["profiles"]["standing"] == first.tuning["profiles"]["asked"]
    old, new = (one.recommender.profiles.as_of(query_histories(world.log)).frame for one in (first, second))
    assert_frame_equal(old, new)
