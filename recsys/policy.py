"""Policies: from ranked candidates to what is shown."""

from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from recsys.tables import Candidates, Catalog, Slates


class TopConfig(BaseModel):
    """Show the best k, as they are ranked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["top"] = "top"

    def build(self) -> "Top":
        """A policy has nothing to fit."""
        return Top()


class Top:
    """The first k of each query. It shows its choice for certain, so every propensity is 1."""

    def choose(self, ranked: Candidates, catalog: Catalog, k: int) -> Slates:
        """Slates of at most `k` items, with ranks 1..k and reasons still empty."""
        return Slates(
            ranked.frame.filter(pl.col("rank") <= k).select(
                "query_id", "item_id", "rank", "score", "served_by", propensity=pl.lit(1.0), reason=pl.lit("")
            )
        )
