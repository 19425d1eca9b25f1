"""What all generators share: score every item of the vocabulary for a batch of histories, then cut the best n.

A source is a `Scorer`. Its scores are finite and additive-friendly (logarithms or cosines), because the fusion adds
them; a score at or below `floor` means "no evidence", and such items are not proposed.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from recsys.data.vocab import Histories, Vocab, place_in_group
from recsys.errors import BundleError
from recsys.tables import Candidates, Queries

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.intp]

# 16 million float32 scores (64 MB) at a time, whatever the catalog's size.
BLOCK_SCORES = 16_000_000


class Config(BaseModel):
    """Base of all generator configs: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def reads_text(self) -> bool:
        """Whether `fit` needs the catalog's text vectors."""
        return False


Variants = Sequence[tuple[Config, "Source"]]


class Scorer(ABC):
    """A fitted generator over a vocabulary of items."""

    kind: ClassVar[str]
    floor: ClassVar[float] = -np.inf

    def __init__(self, vocab: Vocab, exclude_seen: bool) -> None:
        self.vocab = vocab
        self.exclude_seen = exclude_seen

    @abstractmethod
    def scores(self, histories: Histories, at: Ints) -> Floats:
        """(queries, items) finite scores; `at` is each query's moment."""

    @property
    def name(self) -> str:
        """What this generator is called beside others."""
        return self.kind

    def propose(self, histories: Histories, at: Ints, n: int) -> tuple[Codes, Codes]:
        """Rows and codes of the `n` best items of each query: those that `generate` gives, by row, in any order in it.

        Here by scoring the whole catalog; a source overrides it where it can do with less.
        """
        seen = histories if self.exclude_seen else None
        return top_n(self.scores(histories, at), n, seen=seen, above=self.floor)

    def scores_at(self, histories: Histories, at: Ints, codes: Codes) -> Floats:
        """(queries, m) of `scores`, up to rounding: of the items `codes`, (m,) for all queries or (queries, m)."""
        scores = self.scores(histories, at)
        return scores[:, codes] if codes.ndim == 1 else np.take_along_axis(scores, codes, axis=1)

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        """Mean and standard deviation of each query's scores over the whole catalog, each (queries,)."""
        scores = self.scores(histories, at)
        return scores.mean(axis=1), scores.std(axis=1)

    def generate(self, queries: Queries, n: int) -> Candidates:
        """At most `n` items per query, best first; ties break by item id."""
        blocks = [self._generate(batch, n) for batch in queries.batches(block_rows(len(self.vocab)))]
        return Candidates(pl.concat(blocks) if blocks else _empty(queries, self.vocab))

    def _generate(self, queries: Queries, n: int) -> pl.DataFrame:
        histories = self.vocab.histories(queries)
        scores = self.scores(histories, queries.frame["at"].to_numpy())
        rows, codes = top_n(scores, n, seen=histories if self.exclude_seen else None, above=self.floor)
        return candidate_frame(queries, self.vocab, rows, codes, scores[rows, codes]).with_columns(
            source=pl.lit(self.name)
        )


class Source(Scorer):
    """A scorer that is plain arrays and options, and so is saved without pickle."""

    @abstractmethod
    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """What was learned, as plain arrays."""

    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """What was chosen, as plain JSON."""

    @classmethod
    @abstractmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> Self:
        """The inverse of `arrays` and `options`."""

    def save(self, path: Path) -> None:
        """Write vocabulary (Parquet), arrays (npz) and options (JSON) into the folder `path`."""
        path.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"item_id": self.vocab.ids}).write_parquet(path / "items.parquet")
        np.savez(path / "arrays.npz", **dict[str, Any](self.arrays()))
        options = {"kind": self.kind, "exclude_seen": self.exclude_seen, **self.options()}
        (path / "options.json").write_text(json.dumps(options, indent=1, sort_keys=True))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Errors: `BundleError` for a missing file or another kind of source."""
        return cls.restore(*cls.stored(path))

    @classmethod
    def stored(cls, path: Path) -> tuple[Vocab, Mapping[str, npt.NDArray[Any]], Mapping[str, Any]]:
        """What `restore` takes, read from the folder `path`; errors as for `load`."""
        try:
            options = json.loads((path / "options.json").read_text())
            vocab = Vocab(pl.read_parquet(path / "items.parquet")["item_id"])
            with np.load(path / "arrays.npz", allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: this is no readable candidate source ({error})") from error
        if options["kind"] != cls.kind:
            raise BundleError(f"{path}: holds a '{options['kind']}' source, not '{cls.kind}'")
        return vocab, arrays, options


def block_rows(n_items: int) -> int:
    """How many queries to score at once so that memory stays bounded."""
    return max(1, min(1024, BLOCK_SCORES // max(n_items, 1)))


def top_n(
    scores: Floats,
    n: int,
    *,
    seen: Histories | None = None,
    codes: Codes | None = None,
    above: float = -np.inf,
) -> tuple[Codes, Codes]:
    """Rows and codes of the `n` best scores of each row, best first; ties go to the lower code.

    scores : (rows, columns) finite, or -inf for what must not be chosen; the seen items are overwritten with that
    above  : only greater scores are chosen
    codes  : (columns,) or (rows, columns) the items' codes, where a column is not a code itself
    """
    if seen is not None:
        scores[seen.rows(), seen.items] = -np.inf
    columns = scores.shape[1]
    n = min(n, columns)
    if n < 1 or not len(scores):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    least = np.maximum(nth_best(scores, n), np.nextafter(np.float32(above), np.float32(np.inf)))
    chosen = np.flatnonzero(scores >= least[:, None])
    rows, items = np.divmod(chosen, columns)
    if codes is not None:
        items = codes[items] if codes.ndim == 1 else codes.ravel()[chosen]
    # One sortable number a cell: the score's bits, turned so that the best comes first, then the code.
    bits = (scores.ravel()[chosen] + np.float32(0)).view(np.uint32)
    turned = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    key = (turned.astype(np.uint64) << np.uint64(32)) | items.astype(np.uint64)
    counts = np.bincount(rows, minlength=len(scores))
    padded = np.full((len(scores), counts.max()), np.iinfo(np.uint64).max)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = key
    padded.sort(axis=1)
    kept = np.minimum(counts, n)
    best = padded[np.arange(padded.shape[1]) < kept[:, None]]
    return np.repeat(np.arange(len(scores)), kept), (best & np.uint64(0xFFFFFFFF)).astype(np.intp)


def nth_best(scores: Floats, n: int) -> Floats:
    """(rows,) numbers that at least the `n` best scores of a row reach, and not many more.

    The n-th best of the maxima of groups of columns: each of n groups then has a member that reaches it. Several
    times faster than to partition whole rows.
    """
    columns = scores.shape[1]
    size = columns // (4 * n)
    if size > 1:
        groups = columns // size
        scores = scores[:, : groups * size].reshape(len(scores), size, groups).max(axis=1)
    worst = scores.shape[1] - n
    return np.asarray(np.partition(scores, worst, axis=1)[:, worst])


def product(users: Floats, items: Floats) -> Floats:
    """users @ items.T, (queries, dim) by (items, dim), with the same bits for a query alone as in a batch.

    BLAS multiplies a single row by another routine (gemv) whose sums round differently, so a lone row gets company.
    Where even that depends on a row's place, sums are taken in double precision, and what differs is rounded away.
    """
    if not _steady():
        return (users.astype(np.float64) @ items.T.astype(np.float64)).astype(np.float32)
    if len(users) == 1:
        return (np.concatenate([users, users]) @ items.T)[:1]
    return users @ items.T


@cache
def _steady() -> bool:
    """Whether this machine's BLAS gives a row of a product the same bits wherever it stands, two rows or many."""
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((n, 48)).astype(np.float32) for n in (64, 997))
    many = users @ items.T
    return all(np.array_equal((users[row : row + 2] @ items.T)[:1], many[row : row + 1]) for row in range(63))


def product_at(users: Floats, items: Floats, codes: Codes) -> Floats:
    """(queries, m) of `product`, of the items `codes`, (m,) for all queries or (queries, m)."""
    if codes.ndim == 1:
        return product(users, items[codes])
    return np.asarray((items[codes] @ users[:, :, None])[:, :, 0])


@dataclass(frozen=True)
class Spread:
    """Mean (dim,) and covariance (dim, dim) of item vectors: the moments of inner products in closed form."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, vectors: Floats) -> "Spread":
        mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        covariance = (vectors.T @ vectors).astype(np.float64) / max(len(vectors), 1) - np.outer(mean, mean)
        return cls(mean, covariance.astype(np.float32))

    def moments(self, users: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of users @ vectors.T, (users, dim) by (items, dim), over the items."""
        variance = np.einsum("qd,qd->q", users @ self.covariance, users)
        return users @ self.mean, np.sqrt(np.maximum(variance, 0))


def unseen(histories: Histories, rows: Codes, codes: Codes, n_items: int) -> npt.NDArray[np.bool_]:
    """Which of the pairs of a query's row and an item's code are not in the query's history."""
    met = histories.rows().astype(np.int64) * n_items + histories.items
    return ~np.isin(rows * n_items + codes, met)


def candidate_frame(queries: Queries, vocab: Vocab, rows: Codes, codes: Codes, scores: Floats) -> pl.DataFrame:
    """The candidates' columns, but for `source`; rows must be grouped by query, best first."""
    return pl.DataFrame(
        {
            "query_id": queries.frame["query_id"].gather(rows),
            "item_id": vocab.decode(codes),
            "score": scores.astype(np.float64),
            "rank": place_in_group(rows) + 1,
        }
    ).with_columns(served_by=pl.lit("candidates"))


def _empty(queries: Queries, vocab: Vocab) -> pl.DataFrame:
    none = np.empty(0, dtype=np.intp)
    return candidate_frame(queries, vocab, none, none, np.empty(0, dtype=np.float32)).with_columns(source=pl.lit(""))


def decayed(histories: Histories, n_items: int, *, decay: float, length: int) -> Any:
    """(queries, items) CSR matrix of history weights (1 + lag)^-decay over the last `length` events.

    lag is 0 for the newest event; an item met more than once adds up.
    """
    import scipy.sparse as sp

    lags = histories.lags()
    keep = lags < length
    weights = (1.0 + lags[keep]) ** np.float32(-decay)
    indptr = np.concatenate([[0], np.cumsum(keep)])[histories.indptr]
    matrix = sp.csr_matrix((weights.astype(np.float32), histories.items[keep], indptr), shape=(len(histories), n_items))
    matrix.sum_duplicates()
    return matrix
