"""Cold items: those without any event when a generator was fitted. A share of a list can be kept for them."""

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.candidates.base import Codes
from recsys.data.vocab import Vocab
from recsys.tables import InteractionLog


def cold_codes(log: InteractionLog, vocab: Vocab) -> Codes:
    """Codes of the items without an event in the log, ascending."""
    met = np.zeros(len(vocab) + 1, dtype=bool)
    met[vocab.encode(log.frame["item_id"].unique())] = True
    return np.flatnonzero(~met[:-1])


def places_kept(n: int, share: float, start: int) -> npt.NDArray[np.int64]:
    """Ranks up to `n` that are kept: of those from `start` on, every (1 / share)-th.

    Whatever `n` is, they are the same ranks, so that a short list is the head of a long one.
    """
    taken = np.floor(np.arange(n - start + 2) * share + 1e-9)
    return np.flatnonzero(np.diff(taken) > 0) + start


def with_places_kept(warm: pl.DataFrame, cold: pl.DataFrame, n: int, share: float, start: int) -> pl.DataFrame:
    """Candidates of warm items with those of cold items in the places kept for them, cut to `n` per query.

    Where there are too few cold items, warm ones move up; where the warm ones end, the rest of the cold ones follow.
    The scores of cold items lie between those of their neighbours, so that the order of scores is the order of the
    list; what the sources say of them stays in their own columns.
    """
    kept = places_kept(n, share, start)
    others = np.setdiff1d(np.arange(1, n + len(kept) + 1), kept)
    rest = np.arange(len(cold)) + others.max(initial=0) + n + 1
    placed = pl.concat(
        frame.with_columns(place=pl.Series(places, dtype=pl.Int64).gather(frame["rank"] - 1), kept=pl.lit(is_cold))
        for frame, places, is_cold in ((warm, others, False), (cold, np.concatenate([kept, rest]), True))
    )
    order = placed.select(pl.col("query_id").unique(maintain_order=True)).with_row_index("order")
    placed = placed.join(order, on="query_id", how="left").sort("order", "place")
    own = pl.when(~pl.col("kept")).then("score")
    gap = (~pl.col("kept")).cum_sum().over("query_id")
    placed = placed.with_columns(
        above=own.forward_fill().over("query_id"), below=own.backward_fill().over("query_id"), gap=gap
    ).with_columns(
        step=pl.col("kept").cum_sum().over("query_id", "gap"), steps=pl.col("kept").sum().over("query_id", "gap") + 1
    )
    above, below = pl.col("above").fill_null(pl.col("below") + 1), pl.col("below").fill_null(pl.col("above") - 1)
    between = above - (above - below) * pl.col("step") / pl.col("steps")
    return (
        placed.with_columns(score=pl.when("kept").then(between.fill_null(pl.col("score"))).otherwise("score"))
        .with_columns(rank=pl.col("place").rank("ordinal").over("query_id").cast(warm.schema["rank"]))
        .filter(pl.col("rank") <= n)
        .select(warm.columns)
    )
