"""Popularity, as of each query's moment where a half-life is given: what everybody met lately."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Codes, Config, Floats, Ints, Source, Variants, top_n, unseen
from recsys.data.vocab import Histories, Vocab, place_in_group
from recsys.tables import Catalog, InteractionLog

DAY = 86_400
# Bounds the table of decayed counts to 200 MB: where span and catalog are larger, it has a row for several days.
MAX_CELLS = 50_000_000


class PopularConfig(Config):
    """half_life: days after which an event counts half; None counts all events alike, whenever they were.

    With a half-life, a query sees only events of whole days before its own moment, so trends are never from its future.
    """

    kind: Literal["popular"] = "popular"
    half_life: float | None = Field(default=None, gt=0)
    exclude_seen: bool = True

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, fitted: several half-lives where one is asked for."""
        if self.half_life is None:
            return [(self, self.fit(log, catalog, seed=seed))]
        tries = [self.model_copy(update={"half_life": days}) for days in (1.0, 3.0, 10.0, 30.0)]
        return [(config, config.fit(log, catalog, seed=seed)) for config in tries]

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "Popular":
        vocab = Vocab.of_items(catalog)
        codes = vocab.encode(log.frame["item_id"])
        known = codes >= 0
        ts = log.frame["ts"].to_numpy()[known]
        start = int(ts.min()) if len(ts) else 0
        span = int(ts.max()) - start if len(ts) else 0
        width = DAY if self.half_life is not None else span + 1
        width = max(width, -(-span * max(len(vocab), 1) // MAX_CELLS))
        decay = np.float32(1.0 if self.half_life is None else 0.5 ** (width / DAY / self.half_life))
        counts = np.zeros((span // width + 2, len(vocab)), dtype=np.float32)
        np.add.at(counts.reshape(-1), (1 + (ts - start) // width) * len(vocab) + codes[known], np.float32(1))
        for before, met in pairwise(counts):
            met += before
            met *= decay
        return Popular(vocab, self.exclude_seen, counts, start, width, self.half_life)


def _logs(counts: Floats) -> Floats:
    return np.asarray(np.log(np.float32(0.5) + counts), dtype=np.float32)


class Popular(Source):
    """scores = log(0.5 + decayed count of events before the query's moment).

    counts : (moments, items) decayed counts as each span of `width` seconds begins, from `start` on; the last is after
        the last event, and the only one that is asked where nothing fades
    """

    kind: ClassVar[str] = "popular"
    floor: ClassVar[float] = float(np.log(np.float32(0.5)))

    def __init__(
        self, vocab: Vocab, exclude_seen: bool, counts: Floats, start: int, width: int, half_life: float | None
    ) -> None:
        super().__init__(vocab, exclude_seen)
        self.counts, self.start, self.width, self.half_life = counts, start, width, half_life
        moments = [(row.mean(), row.std()) for row in map(_logs, counts)]
        self._mean, self._deviation = np.asarray(moments, dtype=np.float32).T

    @property
    def name(self) -> str:
        return "popular" if self.half_life is None else "trending"

    def _moment(self, at: Ints) -> Ints:
        """The row of the table that holds each query's moment."""
        if self.half_life is None:
            return np.full(len(at), len(self.counts) - 1)
        return np.clip((at - self.start) // self.width, 0, len(self.counts) - 1)

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return _logs(self.counts[self._moment(at)])

    def propose(self, histories: Histories, at: Ints, n: int) -> tuple[Codes, Codes]:
        """From the order of each moment, which its queries share."""
        moments, which = np.unique(self._moment(at), return_inverse=True)
        table = _logs(self.counts[moments])
        met = np.diff(histories.indptr) if self.exclude_seen else np.zeros(len(histories), dtype=np.int64)
        lines, order = top_n(table, n + int(met.max(initial=0)), above=self.floor)
        starts = np.searchsorted(lines, np.arange(len(moments) + 1))
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
        return _logs(self.counts[self._moment(at)[:, None], codes])

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        moment = self._moment(at)
        return self._mean[moment], self._deviation[moment]

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"counts": self.counts}

    def options(self) -> Mapping[str, Any]:
        return {"start": self.start, "width": self.width, "half_life": self.half_life}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> "Popular":
        place = (options["start"], options["width"], options["half_life"])
        return cls(vocab, options["exclude_seen"], arrays["counts"], *place)
