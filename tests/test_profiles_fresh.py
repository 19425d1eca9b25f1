"""Profiles kept up to date: tallies add up, a text is written anew only where something has changed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.errors import StorageError
from recsys.profiles.evidence import ENOUGH, Bounds, Evidence, Trait, collect
from recsys.profiles.fresh import Living, drift
from recsys.profiles.population import Known, Population
from recsys.profiles.tally import POOL, Tally
from recsys.tables import InteractionLog, query_histories

BOUNDS = Bounds()


def write(found: Sequence[Evidence]) -> list[str]:
    return [e.hash for e in found]


@pytest.fixture(scope="module")
def known(world: Any) -> Known:
    return Known(Population.fit(world.log, world.catalog, like_at=4.0, dislike_at=2.0), world.catalog)


def parts(log: InteractionLog, n: int) -> list[InteractionLog]:
    """The log in n parts, each with about the same number of everybody's events, in their order."""
    place = pl.int_range(pl.len()).over("user_id")
    frame = log.frame.with_columns(part=place * n // pl.len().over("user_id"))
    return [InteractionLog(frame.filter(part=i).drop("part")) for i in range(n)]


@pytest.fixture(scope="module")
def whole(world: Any, known: Known) -> dict[Any, Evidence]:
    queries = query_histories(world.log)
    return dict(zip(queries.frame["user_id"], collect(queries, known, BOUNDS), strict=True))


@pytest.mark.parametrize("n", [2, 5])
def test_many_updates_give_the_evidence_of_the_whole_history(
    world: Any, known: Known, whole: dict[Any, Evidence], n: int
) -> None:
    first, *rest = parts(world.log, n)
    living = Living.of(first, known, BOUNDS, write)
    for new in rest:
        living, _ = living.update(new, known, BOUNDS, write, refresh=0.0)
    assert dict(zip(living.users, living.evidence, strict=True)) == whole
    assert list(living.texts) == write(living.evidence)


def test_an_update_leaves_those_without_new_events_alone(world: Any, known: Known) -> None:
    before, after = parts(world.log, 2)
    living = Living.of(before, known, BOUNDS, write)
    one = after.frame["user_id"][0]
    updated, report = living.update(InteractionLog(after.frame.filter(user_id=one)), known, BOUNDS, write, refresh=0.0)
    assert report.users == 1
    changed = [u for u, a, b in zip(updated.users, living.evidence, updated.evidence, strict=False) if a != b]
    assert changed == [one]


def test_a_history_beyond_the_pool_is_the_same_however_it_came_about(known: Known) -> None:
    items = known.vocab.ids.to_list()
    n = 3 * POOL
    frame = pl.DataFrame(
        {
            "user_id": [1] * n,
            "item_id": [items[(7 * i * i + i) % len(items)] for i in range(n)],
            "event": ["rating"] * n,
            "weight": [float(1 + i % 5) for i in range(n)],
            "ts": list(range(n)),
        }
    )
    log = InteractionLog.of(frame)
    (rebuilt,) = collect(query_histories(log), known, BOUNDS)
    living = Living.of(InteractionLog.of(frame.head(POOL // 2)), known, BOUNDS, write)
    for start in range(POOL // 2, n, 111):
        living, _ = living.update(InteractionLog.of(frame.slice(start, 111)), known, BOUNDS, write, refresh=0.5)
    assert living.evidence == (rebuilt,)
    assert len(living.tally.pool) <= POOL
    assert len(living.tally.window) == BOUNDS.recent


def test_tallies_are_taken_and_placed_by_row(world: Any, known: Known) -> None:
    tally = Tally.of(known.vocab.histories(query_histories(world.log)), known, BOUNDS.recent)
    some = tally.take(pl.Series([5, 2]).to_numpy())
    assert (
        some.users.sort("row")
        .drop("row")
        .equals(pl.concat([tally.users.filter(row=5), tally.users.filter(row=2)]).drop("row"))
    )
    back = tally.beside(some.placed(pl.Series([5, 2]).to_numpy()))
    assert back.users.sort("row").equals(tally.users.sort("row"))
    assert back.facets.sort("row", "facet").equals(tally.facets.sort("row", "facet"))


def trait(value: str, lift: float) -> Trait:
    return Trait("genres", value, "value", lift, 9)


def test_drift_weighs_what_stands_out() -> None:
    horror = Evidence(events=50, tastes=(trait("Horror", 3.0),))
    more = replace(horror, events=80, liked=40)
    other = replace(horror, tastes=(trait("Musical", 3.0),))
    both = replace(horror, tastes=(trait("Horror", 3.0), trait("Musical", 3.0)))
    assert drift(horror, more) == 0
    assert drift(horror, other) == 1
    assert drift(horror, both) == pytest.approx(0.5)
    assert drift(Evidence(events=ENOUGH - 1), Evidence(events=ENOUGH)) == 1


def test_texts_are_kept_until_the_evidence_has_moved(world: Any, known: Known) -> None:
    before, after = parts(world.log, 2)
    living = Living.of(before, known, BOUNDS, write)
    written: dict[float, int] = {}
    for refresh in (0.0, 0.3, 1.0):
        updated, report = living.update(after, known, BOUNDS, write, refresh=refresh)
        written[refresh] = report.written
        fresh = [t == e.hash for t, e in zip(updated.texts, updated.told, strict=True)]
        assert all(fresh)  # each text is of the evidence that is kept beside it
        near = [drift(t, e) for t, e in zip(updated.told, updated.evidence, strict=True)]
        assert max(near) < max(refresh, 1e-9)
    assert written[0.0] > written[0.3] > written[1.0]
    assert report.skipped == pytest.approx(1 - report.written / report.users)


def test_what_is_saved_goes_on_where_it_was_left(world: Any, known: Known, tmp_path: Path) -> None:
    before, after = parts(world.log, 2)
    living = Living.of(before, known, BOUNDS, write)
    living.save(tmp_path / "kept")
    loaded = Living.load(tmp_path / "kept")
    assert loaded.evidence == living.evidence
    direct, _ = living.update(after, known, BOUNDS, write, refresh=0.3)
    resumed, _ = loaded.update(after, known, BOUNDS, write, refresh=0.3)
    assert (resumed.evidence, resumed.texts) == (direct.evidence, direct.texts)
    (tmp_path / "kept" / "living.json").write_text("{}")
    with pytest.raises(StorageError, match="holds no saved profiles"):
        Living.load(tmp_path / "kept")


def test_evidence_is_read_back_from_its_json(whole: dict[Any, Evidence]) -> None:
    for evidence in whole.values():
        assert Evidence.read(evidence.json) == evidence


def test_who_is_taken_out_leaves_nothing_behind(world: Any, known: Known, tmp_path: Path) -> None:
    """What is left is what there would be without them, and goes on so."""
    before, after = parts(world.log, 2)
    gone = before.frame["user_id"].unique().sort().gather_every(3)

    def others(log: InteractionLog) -> InteractionLog:
        return InteractionLog(log.frame.filter(~pl.col("user_id").is_in(gone.implode())))

    left = Living.of(before, known, BOUNDS, write).without(gone.to_list())
    never = Living.of(others(before), known, BOUNDS, write)
    assert left.users.to_list() == never.users.to_list()
    assert (left.evidence, left.told, left.texts) == (never.evidence, never.told, never.texts)
    one, two = (living.update(others(after), known, BOUNDS, write, refresh=0.0)[0] for living in (left, never))
    assert one.evidence == two.evidence
    left.save(tmp_path / "left")
    for file in (tmp_path / "left").glob("*.parquet"):
        frame = pl.read_parquet(file)
        assert "user_id" not in frame.columns or not frame["user_id"].is_in(gone.implode()).any()
