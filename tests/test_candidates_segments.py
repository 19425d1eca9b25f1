"""Popularity by segment: for users without history, what others of their group met."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from checks import assert_same_candidates
from contracts import GeneratorContract
from recsys.candidates import FusionConfig, PopularConfig, TransitionsConfig, counted_segments, popular
from recsys.candidates.popular import DAY, Popular
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog, Queries, adhoc_query

# 4 women met item 1 and one man did; 2 men met item 2; item 0 was met by all three segments, null included.
EVENTS = [*(("F", 1),) * 4, ("M", 1), ("M", 2), ("M", 2), ("F", 0), ("M", 0), (None, 0)]
CATALOG = Catalog(pl.DataFrame({"item_id": range(4), "title": ["t"] * 4, "text": ["t"] * 4}))


def log_of(events: list[tuple[str | None, int]], ts: list[int] | None = None) -> InteractionLog:
    frame = pl.DataFrame(events, schema={"segment": pl.String, "item_id": pl.Int64}, orient="row")
    return InteractionLog.of(
        frame.with_columns(
            pl.Series("ts", ts or [0] * len(events), dtype=pl.Int64),
            user_id=pl.int_range(pl.len()),
            event=pl.lit("interaction"),
            weight=pl.lit(1.0),
        )
    )


def newcomer(segment: str | None, at: int = 0) -> Queries:
    return adhoc_query([], at=at, dtype=pl.Int64, segment=segment)


def shares(source: Popular, segment: str | None, at: int = 0) -> list[float]:
    """The smoothed share of each item: what the scores are the logarithms of."""
    counts = np.exp(source.scores(source.vocab.histories(newcomer(segment, at)), np.array([at]))[0]) - 0.5
    return [round(float(share), 4) for share in counts / counts.sum()]


def with_segments(log: InteractionLog) -> InteractionLog:
    """The users in four groups of uneven size, and a fifth of no known segment."""
    group = pl.col("user_id").rank("dense") % 10
    return InteractionLog(
        log.frame.with_columns(segment=pl.when(group < 8).then((group.sqrt().floor()).cast(pl.String)))
    )


class SegmentContract(GeneratorContract):
    """The suite over a log with segments, and queries of known, unknown and no segments."""

    @pytest.fixture(scope="class")
    @classmethod
    def queries(cls, world_split: Any) -> Queries:
        frame = world_split.questions("test").queries.frame.head(40)
        asked = pl.Series("segment", ["0.0", "1.0", "2.0", None, "nobody has it"] * 8)
        return Queries(frame.with_columns(asked))

    @classmethod
    def fit(cls, log: InteractionLog, catalog: Catalog, **changes: Any) -> Any:
        return super().fit(with_segments(log), catalog, **changes)

    def test_segments_differ(self, generator: Any, queries: Queries) -> None:
        empty = queries.frame.with_columns(pl.col("history", "weights", "times").list.head(0), pl.col("at").max())
        answer = generator.generate(Queries(empty.head(5)), 10).frame
        lists = [part["item_id"].to_list() for part in answer.partition_by("query_id", maintain_order=True)]
        assert lists[3] == lists[4]
        assert len({tuple(one) for one in lists}) == 4


class TestPopularBySegment(SegmentContract):
    config = PopularConfig(by_segment=True, prior=20.0)
    margin = 0.0  # the questions of the world have no segments: the answers are popular's own


class TestTrendingBySegment(SegmentContract):
    """With a table that is bounded to a few rows for each segment."""

    config = PopularConfig(by_segment=True, prior=20.0, half_life=10.0)
    margin = -0.05  # the world has no trends: a recency window only throws counts away

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def large(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(popular, "MAX_CELLS", 60_000)
            yield

    def test_its_table_keeps_to_the_bound(self, generator: Any) -> None:
        assert len(generator.segments) == 3
        assert generator.counts.size < 2 * 60_000


def test_a_segments_counts_are_smoothed_towards_everybodys() -> None:
    source = PopularConfig(by_segment=True, prior=4.0).fit(log_of(EVENTS), CATALOG, seed=0)
    # everybody: 3, 5, 2 of 10 events; women: 1, 4, 0 of 5; men: 1, 1, 2 of 4
    women = [(1 + 4 * 0.3) / 9, (4 + 4 * 0.5) / 9, (0 + 4 * 0.2) / 9, 0.0]
    men = [(1 + 4 * 0.3) / 8, (1 + 4 * 0.5) / 8, (2 + 4 * 0.2) / 8, 0.0]
    assert shares(source, "F") == [round(share, 4) for share in women]
    assert shares(source, "M") == [round(share, 4) for share in men]
    assert shares(source, None) == [0.3, 0.5, 0.2, 0.0]
    assert source.generate(newcomer("M"), 3).frame["item_id"].to_list() == [1, 2, 0]
    assert source.generate(newcomer("F"), 9).frame["item_id"].to_list() == [1, 0, 2]  # nobody met item 3


@pytest.mark.parametrize("segment", [None, "unheard of", ""])
def test_without_a_known_segment_the_answer_is_populars_own(segment: str | None) -> None:
    log = log_of(EVENTS)
    everybody = PopularConfig().fit(log, CATALOG, seed=0).generate(newcomer(None), 9).frame
    assert (
        PopularConfig(by_segment=True).fit(log, CATALOG, seed=0).generate(newcomer(segment), 9).frame.equals(everybody)
    )


def test_queries_without_the_column_get_everybodys() -> None:
    source = PopularConfig(by_segment=True).fit(log_of(EVENTS), CATALOG, seed=0)
    assert "segment" not in newcomer(None).frame.columns
    assert source.generate(newcomer(None), 9).frame.equals(
        source.generate(Queries(newcomer(None).frame.with_columns(segment=pl.lit(None, dtype=pl.String))), 9).frame
    )


def test_where_all_segments_are_null_or_there_is_one_all_is_as_for_everybody() -> None:
    plain = PopularConfig().fit(log_of(EVENTS), CATALOG, seed=0).generate(newcomer(None), 9)
    for segment in (None, "all"):
        log = log_of([(segment, item) for _, item in EVENTS])
        source = PopularConfig(by_segment=True).fit(log, CATALOG, seed=0)
        assert_same_candidates(source.generate(newcomer("all"), 9), plain)
        assert len(source.segments) == (segment is not None)


def test_a_segment_of_one_event_hardly_differs_from_everybody() -> None:
    log = log_of([*EVENTS, ("X", 2)])
    source = PopularConfig(by_segment=True, prior=1_000.0).fit(log, CATALOG, seed=0)
    np.testing.assert_allclose(shares(source, "X"), shares(source, None), atol=0.001)
    bold = PopularConfig(by_segment=True, prior=0.001).fit(log, CATALOG, seed=0)
    assert bold.generate(newcomer("X"), 1).frame["item_id"].to_list() == [2]


def test_a_log_without_segments_is_refused_in_words_and_plain_popularity_does_not_look_at_them() -> None:
    log = log_of(EVENTS)
    bare = InteractionLog(log.frame.drop("segment"))
    with pytest.raises(SpecError, match="by_segment = true needs the column 'segment'"):
        PopularConfig(by_segment=True).fit(bare, CATALOG, seed=0)
    with_them, without = (PopularConfig().fit(some, CATALOG, seed=0) for some in (log, bare))
    assert with_them.counts.tobytes() == without.counts.tobytes()


def test_a_trend_is_the_segments_own_and_never_from_the_future() -> None:
    log = log_of([("F", 1), ("M", 2), ("F", 2)], ts=[0, 0, 3 * DAY])
    source = PopularConfig(half_life=1.0, by_segment=True, prior=0.01).fit(log, CATALOG, seed=0)
    assert [source.generate(newcomer("F", day * DAY), 1).frame["item_id"].to_list() for day in (0, 2, 5)] == [
        [],
        [1],
        [2],
    ]
    assert source.generate(newcomer("M", 2 * DAY), 1).frame["item_id"].to_list() == [2]


def test_only_the_largest_segments_have_tables_where_room_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popular, "MAX_SEGMENTS", 1)
    source = PopularConfig(by_segment=True).fit(log_of(EVENTS), CATALOG, seed=0)
    assert source.segments.ids.to_list() == ["F"]
    assert shares(source, "M") == shares(source, None)
    monkeypatch.setattr(popular, "MAX_CELLS", 8)
    nothing = PopularConfig(by_segment=True).fit(log_of(EVENTS), CATALOG, seed=0)
    assert nothing.segments.ids.to_list() == []
    assert shares(nothing, "F") == shares(nothing, None)


def test_variants_are_several_priors() -> None:
    tries = PopularConfig(by_segment=True).variants(log_of(EVENTS), CATALOG, seed=0)
    assert [config.prior for config, _ in tries] == [300.0, 3_000.0, 30_000.0]  # type: ignore[attr-defined]
    assert len(PopularConfig(by_segment=True, half_life=2.0).variants(log_of(EVENTS), CATALOG, seed=0)) == 12
    assert [config for config, _ in PopularConfig().variants(log_of(EVENTS), CATALOG, seed=0)] == [PopularConfig()]


def test_a_fusion_passes_segments_on_and_keeps_them_when_saved(world_split: Any, world: Any, tmp_path: Path) -> None:
    log = with_segments(world_split.known)
    sources = (TransitionsConfig(), PopularConfig(by_segment=True, prior=20.0))
    config = FusionConfig(sources=sources, tune_sources=False)
    asked = Queries(
        pl.concat([newcomer(s).frame.with_columns(query_id=pl.lit(s)) for s in ("0.0", "1.0", "nobody has it")])
    )
    for above in (50_000, 10):  # the whole catalog, and only what some source proposes
        fusion = config.model_copy(update={"pool_above": above}).fit(log, world.catalog, seed=0)
        answer = fusion.generate(asked, 10)
        lists = [part["item_id"].to_list() for part in answer.frame.partition_by("query_id", maintain_order=True)]
        assert len({tuple(one) for one in lists}) == 3
        fusion.save(tmp_path / str(above))
        assert_same_candidates(type(fusion).load(tmp_path / str(above)).generate(asked, 10), answer)
        assert fusion.config.sources[1].by_segment  # type: ignore[union-attr]
        segments = tuple(log.frame["segment"].drop_nulls().unique().sort())
        assert counted_segments(fusion) == segments
        fusion.weights[1] = 0.0  # where it was left out, nobody's segment counts
        assert counted_segments(fusion) == ()
