"""Popularity: what everybody met; lately, where a half-life is given; in the asker's segment, where that is wanted."""

from collections.abc import Mapping
from itertools import pairwise, product
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from recsys.candidates.base import Codes, Config, Floats, Ints, Source, Variants, top_n, unseen
from recsys.data.vocab import Histories, Vocab, place_in_group
from recsys.errors import SpecError
from recsys.tables import Catalog, InteractionLog

DAY = 86_400
# Bounds the table of decayed counts to 200 MB: where span, catalog or segments are more, a row stands for several days.
MAX_CELLS = 50_000_000
# Segments beyond the largest so many are asked as everybody: their tables cost memory and, being thin, say little.
MAX_SEGMENTS = 100
NO_SEGMENTS = Vocab(pl.Series(dtype=pl.String))


class PopularConfig(Config):
    """half_life: days after which an event counts half; None counts all events alike, whenever they were.

    With a half-life, a query sees only events of whole days before its own moment, so trends are never from its future.

    by_segment : count within the query's segment, smoothed towards everybody's counts; queries without a segment, or
        with one that the log did not hold, get everybody's. For users without history it is all there is to go by.
    prior : how many events everybody's shares count for in a segment,
        share(item | segment) = (count(segment, item) + prior * share(item)) / (count(segment) + prior):
        Dirichlet smoothing (Zhai & Lafferty, "A study of smoothing methods for language models applied to information
        retrieval", ACM TOIS 22(2), 2004), so that a thin segment differs little from everybody.
    """

    kind: Literal["popular"] = "popular"
    half_life: float | None = Field(default=None, gt=0)
    by_segment: bool = False
    prior: float = Field(default=3_000.0, gt=0)
    exclude_seen: bool = True

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, fitted: several half-lives where one is asked for, several priors by segment."""
        half_lives: list[float | None] = [None] if self.half_life is None else [1.0, 3.0, 10.0, 30.0]
        priors = [300.0, 3_000.0, 30_000.0] if self.by_segment else [self.prior]
        tries = [
            self.model_copy(update={"half_life": days, "prior": prior}) for days, prior in product(half_lives, priors)
        ]
        return [(config, config.fit(log, catalog, seed=seed)) for config in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Popular":
        """Errors: `SpecError` where popularity by segment is asked for and the log has no segments."""
        vocab = Vocab.of_items(catalog)
        codes = vocab.encode(log.frame["item_id"])
        known = codes >= 0
        segments, own = self._segments(log, len(vocab))
        ts = log.frame["ts"].to_numpy()[known]
        start = int(ts.min()) if len(ts) else 0
        span = int(ts.max()) - start if len(ts) else 0
        width = DAY if self.half_life is not None else span + 1
        width = max(width, -(-span * max(len(vocab), 1) * (len(segments) + 1) // MAX_CELLS))
        decay = np.float32(1.0 if self.half_life is None else 0.5 ** (width / DAY / self.half_life))
        moments = span // width + 2
        counts = np.zeros((len(segments) + 1, moments, len(vocab)), dtype=np.float32)
        cells = (1 + (ts - start) // width) * len(vocab) + codes[known]
        np.add.at(counts[0].reshape(-1), cells, np.float32(1))
        if len(segments):
            mine = own[known] >= 0
            cells = cells[mine] + (1 + own[known][mine].astype(np.int64)) * (moments * len(vocab))
            np.add.at(counts.reshape(-1), cells, np.float32(1))
        for before, met in pairwise(counts.swapaxes(0, 1)):
            met += before
            met *= decay
        _smooth(counts, self.prior)
        table = counts.reshape(-1, len(vocab))
        return Popular(vocab, self.exclude_seen, table, start, width, self.half_life, segments)

    def _segments(self, log: InteractionLog, n_items: int) -> tuple[Vocab, Codes]:
        """The segments that get a table of their own, the largest that there is room for; and each event's, or -1."""
        if not self.by_segment:
            return NO_SEGMENTS, np.empty(0, dtype=np.intp)
        if "segment" not in log.frame.columns:
            raise SpecError(
                "generator 'popular': by_segment = true needs the column 'segment' (in interactions or users, or named "
                "under [columns] in dataset.toml); this log has none"
            )
        sizes = log.frame["segment"].drop_nulls().value_counts().sort(["count", "segment"], descending=[True, False])
        room = max(min(MAX_SEGMENTS, MAX_CELLS // (2 * max(n_items, 1)) - 1), 0)
        segments = Vocab(sizes["segment"].head(room).sort())
        return segments, segments.encode(log.frame["segment"]).astype(np.intp)


def _smooth(counts: Floats, prior: float) -> None:
    """Each segment's smoothed share of every item, times everybody's events: on the scale of everybody's counts.

    counts : (1 + segments, moments, items), everybody first; the rest is overwritten
    """
    everybody = counts[0]
    events = everybody.sum(axis=1, dtype=np.float64)[:, None]
    for own in counts[1:]:
        pulled = np.float32(prior) * everybody
        size = own.sum(axis=1, dtype=np.float64)[:, None]
        own *= events.astype(np.float32)
        own += pulled
        own /= (size + prior).astype(np.float32)


def _logs(counts: Floats) -> Floats:
    return np.asarray(np.log(np.float32(0.5) + counts), dtype=np.float32)


class Popular(Source):
    """scores = log(0.5 + decayed count of events before the query's moment).

    counts : (moments, items) decayed counts as each span of `width` seconds begins, from `start` on; the last is after
        the last event, and the only one that is asked where nothing fades. Then as many rows for each of `segments`.
    """

    kind: ClassVar[str] = "popular"
    floor: ClassVar[float] = float(np.log(np.float32(0.5)))

    def __init__(
        self,
        vocab: Vocab,
        exclude_seen: bool,
        counts: Floats,
        start: int,
        width: int,
        half_life: float | None,
        segments: Vocab = NO_SEGMENTS,
    ) -> None:
        super().__init__(vocab, exclude_seen)
        self.counts, self.start, self.width, self.half_life, self.segments = counts, start, width, half_life, segments
        moments = [(row.mean(), row.std()) for row in map(_logs, counts)]
        self._mean, self._deviation = np.asarray(moments, dtype=np.float32).T

    @property
    def name(self) -> str:
        return "popular" if self.half_life is None else "trending"

    def _row(self, histories: Histories, at: Ints) -> Ints:
        """The row of the table that holds each query's moment, and its segment."""
        moments = len(self.counts) // (len(self.segments) + 1)
        moment = np.full(len(at), moments - 1)
        if self.half_life is not None:
            moment = np.clip((at - self.start) // self.width, 0, moments - 1)
        if histories.segments is None or not len(self.segments):
            return moment
        return moment + moments * (1 + self.segments.encode(histories.segments).astype(np.int64))

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return _logs(self.counts[self._row(histories, at)])

    def propose(self, histories: Histories, at: Ints, n: int) -> tuple[Codes, Codes]:
        """From the order of each moment and segment, which its queries share."""
        shared, which = np.unique(self._row(histories, at), return_inverse=True)
        table = _logs(self.counts[shared])
        met = np.diff(histories.indptr) if self.exclude_seen else np.zeros(len(histories), dtype=np.int64)
        lines, order = top_n(table, n + int(met.max(initial=0)), above=self.floor)
        starts = np.searchsorted(lines, np.arange(len(shared) + 1))
        # As many more of the best as the user has met: `n` of them are new.
        sizes = np.minimum(n + met, np.diff(starts)[which])
        rows = np.repeat(np.arange(len(histories)), sizes)
        codes = order[starts[which][rows] + place_in_group(rows)]
        if self.exclude_seen:
            new = unseen(histories, rows, codes, len(self.vocab))
            rows, codes = rows[new], codes[new]
        keep = place_in_group(rows) < n
        return rows[keep], codes[keep]

    def scores_at(self, histories: Histories, at: Ints, codes: Codes) -> Floats:
        return _logs(self.counts[self._row(histories, at)[:, None], codes])

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        row = self._row(histories, at)
        return self._mean[row], self._deviation[row]

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"counts": self.counts}

    def options(self) -> Mapping[str, Any]:
        place = {"start": self.start, "width": self.width, "half_life": self.half_life}
        return {**place, "segments": self.segments.ids.to_list()}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> "Popular":
        place = (options["start"], options["width"], options["half_life"])
        segments = Vocab(pl.Series(options.get("segments", []), dtype=pl.String))
        return cls(vocab, options["exclude_seen"], arrays["counts"], *place, segments)
