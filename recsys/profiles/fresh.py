"""Profiles kept up to date as events arrive, at the cost of the new events alone.

Evidence is always brought up to date. A text is only written anew where the evidence has moved materially from what
the text was written of, since a language model's text costs seconds and a reader gains little from "57 ratings"
becoming 58.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.data.files import atomic_folder
from recsys.errors import StorageError
from recsys.profiles.evidence import ENOUGH, Bounds, Evidence, weigh
from recsys.profiles.population import Known
from recsys.profiles.tally import TABLES, Tally
from recsys.tables import Id, InteractionLog, query_histories

_PARTS = ("tastes", "eras", "recent", "dislikes")
Write = Callable[[Sequence[Evidence]], Sequence[str]]


def drift(told: Evidence, now: Evidence) -> float:
    """How far evidence has moved, from 0 (nothing to say anew) to 1 (nothing holds any more).

    One less the weighted Jaccard likeness of what stands out, each trait by its log lift (Ruzicka 1958). Counts, span
    and the last items chosen do not matter by themselves. From too few events to enough, all is new.
    """
    if (told.events < ENOUGH) != (now.events < ENOUGH):
        return 1.0
    before, after = _strengths(told), _strengths(now)
    keys = before.keys() | after.keys()
    most = sum(max(before.get(key, 0.0), after.get(key, 0.0)) for key in keys)
    least = sum(min(before.get(key, 0.0), after.get(key, 0.0)) for key in keys)
    return 1 - least / most if most else 0.0


def _strengths(evidence: Evidence) -> dict[tuple[str, str, str], float]:
    return {
        (part, trait.attribute, trait.value): math.log(max(trait.lift, 1.0))
        for part in _PARTS
        for trait in getattr(evidence, part)
    }


@dataclass(frozen=True)
class Living:
    """Profiles of some users, in the order of `users`: a tally, what it says now, and what each text was written of."""

    users: pl.Series
    tally: Tally
    evidence: tuple[Evidence, ...]
    told: tuple[Evidence, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, log: InteractionLog, known: Known, bounds: Bounds, write: Write) -> "Living":
        """The profiles of everybody in a log."""
        queries = query_histories(log)
        tally = Tally.of(known.vocab.histories(queries), known, bounds.recent)
        found = tuple(weigh(tally, len(queries), known, bounds))
        return cls(queries.frame["user_id"], tally, found, found, tuple(write(found)))

    def update(
        self, new: InteractionLog, known: Known, bounds: Bounds, write: Write, *, refresh: float
    ) -> tuple["Living", "Refreshed"]:
        """With the events of `new`, which are none of those seen before and follow them. Users may be new.

        The evidence is exactly that of the whole history. A text is written anew from a `drift` of `refresh` on.
        """
        queries = query_histories(new)
        asked = queries.frame["user_id"]
        users = pl.concat([self.users, asked.filter(~asked.is_in(self.users.implode()))])
        place = pl.DataFrame({"user_id": users}).with_row_index("row")
        rows = asked.to_frame().join(place, on="user_id", how="left", maintain_order="left")["row"].to_numpy()
        tally = self.tally.take(rows) + Tally.of(known.vocab.histories(queries), known, bounds.recent)
        more = len(users) - len(self.users)
        evidence, told = [*self.evidence, *[Evidence()] * more], [*self.told, *[Evidence()] * more]
        texts = [*self.texts, *[""] * more]
        for row, found in zip(rows.tolist(), weigh(tally, len(rows), known, bounds), strict=True):
            evidence[row] = found
        stale = [row for row in rows.tolist() if not texts[row] or drift(told[row], evidence[row]) >= refresh]
        for row, text in zip(stale, write([evidence[row] for row in stale]), strict=True):
            told[row], texts[row] = evidence[row], text
        living = Living(users, self.tally.beside(tally.placed(rows)), tuple(evidence), tuple(told), tuple(texts))
        return living, Refreshed(len(new), len(rows), len(stale))

    def without(self, users: Sequence[Id]) -> "Living":
        """The others' alone: nothing is left of `users`."""
        gone = pl.Series(list(users), dtype=self.users.dtype)
        rows = (~self.users.is_in(gone.implode())).arg_true().to_numpy()
        evidence, told, texts = (tuple(own[row] for row in rows) for own in (self.evidence, self.told, self.texts))
        return Living(self.users.gather(rows), self.tally.take(rows), evidence, told, texts)

    def save(self, path: Path) -> None:
        """Write into the new folder `path`. Errors: `StorageError`."""
        with atomic_folder(path) as folder:
            for name in TABLES:
                getattr(self.tally, name).write_parquet(folder / f"{name}.parquet")
            told = {"told": [e.json for e in self.told], "evidence": [e.json for e in self.evidence]}
            pl.DataFrame({"user_id": self.users, **told, "text": self.texts}).write_parquet(folder / "profiles.parquet")
            (folder / "living.json").write_text(json.dumps({"recent": self.tally.recent}))

    @classmethod
    def load(cls, path: Path) -> "Living":
        """Read what `save` wrote. Errors: `StorageError` where it is something else."""
        try:
            recent = int(json.loads((path / "living.json").read_text())["recent"])
            users, facets, pool, window = (pl.read_parquet(path / f"{name}.parquet") for name in TABLES)
            tally = Tally(users.select(Tally.USERS), facets, pool, window, recent)
            frame = pl.read_parquet(path / "profiles.parquet")
            evidence, told = (tuple(map(Evidence.read, frame[name])) for name in ("evidence", "told"))
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise StorageError(
                f"{path}: holds no saved profiles: {(str(error) or repr(error)).splitlines()[0]}"
            ) from error
        return cls(frame["user_id"], tally, evidence, told, tuple(frame["text"]))


@dataclass(frozen=True)
class Refreshed:
    """What an update came to: new events, users who had some, and texts that were written anew."""

    events: int
    users: int
    written: int

    @property
    def skipped(self) -> float:
        """Share of the users with new events whose text still holds."""
        return 1 - self.written / self.users if self.users else 0.0
