"""Popularity, as of each query's moment where a half-life is given: what everybody met lately."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Config, Floats, Ints, Source, Variants
from recsys.data.vocab import Histories, Vocab
from recsys.tables import Catalog, InteractionLog

DAY = 86_400
# Bounds the table of decayed counts to 80 MB whatever span and catalog are.
MAX_CELLS = 20_000_000


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
        buckets = span // width + 1
        counts = np.zeros((buckets, len(vocab)), dtype=np.float32)
        np.add.at(counts, ((ts - start) // width, codes[known]), 1.0)
        return Popular(vocab, self.exclude_seen, counts, start, width, self.half_life)


class Popular(Source):
    """scores = log(0.5 + decayed count of events before the query's moment)."""

    kind: ClassVar[str] = "popular"
    floor: ClassVar[float] = float(np.log(np.float32(0.5)))

    def __init__(
        self, vocab: Vocab, exclude_seen: bool, counts: Floats, start: int, width: int, half_life: float | None
    ) -> None:
        super().__init__(vocab, exclude_seen)
        self.counts, self.start, self.width, self.half_life = counts, start, width, half_life
        if half_life is None:
            self._table = np.log(0.5 + counts.sum(axis=0, keepdims=True))
        else:
            decay = np.float32(0.5 ** (width / DAY / half_life))
            table = np.zeros((len(counts) + 1, counts.shape[1]), dtype=np.float32)
            for bucket, met in enumerate(counts):
                table[bucket + 1] = decay * (table[bucket] + met)
            self._table = np.log(0.5 + table)

    @property
    def name(self) -> str:
        return "popular" if self.half_life is None else "trending"

    def scores(self, histories: Histories, at: Ints) -> Floats:
        if self.half_life is None:
            return np.repeat(self._table, len(histories), axis=0)
        moment = np.clip((at - self.start) // self.width, 0, len(self._table) - 1)
        return np.asarray(self._table[moment], dtype=np.float32)

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"counts": self.counts}

    def options(self) -> Mapping[str, Any]:
        return {"start": self.start, "width": self.width, "half_life": self.half_life}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> "Popular":
        place = (options["start"], options["width"], options["half_life"])
        return cls(vocab, options["exclude_seen"], arrays["counts"], *place)
