"""Profile texts that a language model wrote, kept with the user and the evidence that they were written of."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from recsys.data.files import atomic_file
from recsys.errors import BundleError


@dataclass(frozen=True)
class Store:
    """One text per evidence and user, the last one added.

    evidence_hash : of `evidence` (JSON)
    user_id       : String, null for somebody without one
    as_of         : Int64, time of the last event that the text is written of
    """

    frame: pl.DataFrame

    SCHEMA: ClassVar[pl.Schema] = pl.Schema(
        {
            "evidence_hash": pl.String,
            "user_id": pl.String,
            "evidence": pl.String,
            "text": pl.String,
            "prompt_id": pl.String,
            "model_id": pl.String,
            "as_of": pl.Int64,
        }
    )

    @classmethod
    def empty(cls) -> "Store":
        """A store without texts."""
        return cls(pl.DataFrame(schema=cls.SCHEMA))

    def __len__(self) -> int:
        return len(self.frame)

    def add(self, entries: pl.DataFrame) -> "Store":
        """A store with `entries` (the same columns) as well; they take the place of older texts of the same key."""
        both = pl.concat([self.frame, entries.select(self.SCHEMA.names()).cast(self.SCHEMA)])
        key = ["evidence_hash", "user_id"]
        return Store(both.unique(key, keep="last", maintain_order=True).sort(key))

    def lookup(self, hashes: pl.Series, users: pl.Series, at: pl.Series) -> pl.DataFrame:
        """The store's columns for each row of three equally long series, in order; text is null where there is none.

        First what was written of the very same evidence, for the user or for another; else the youngest text of the
        user that is no younger than `at`.
        """
        asked = pl.DataFrame({"hash": hashes.cast(pl.String), "user": users.cast(pl.String), "at": at})
        asked = asked.with_row_index("row")
        same = pl.col("user_id").eq_missing(pl.col("user"))
        exact = asked.join(self.frame, left_on="hash", right_on="evidence_hash").with_columns(
            rank=pl.when(same).then(0).otherwise(1)
        )
        own = asked.join(self.frame, left_on="user", right_on="user_id").filter(pl.col("as_of") <= pl.col("at"))
        columns = ["row", "rank", *self.SCHEMA.names()]
        found = pl.concat(
            [
                exact.with_columns(evidence_hash="hash").select(columns),
                own.with_columns(user_id="user", rank=pl.lit(2)).select(columns),
            ]
        )
        best = found.sort("row", "rank", "as_of", "evidence_hash", descending=[False, False, True, False]).unique(
            "row", keep="first"
        )
        rows = asked.select("row").join(best.drop("rank"), on="row", how="left", maintain_order="left")
        return rows.drop("row")

    def save(self, path: Path) -> None:
        """Write one Parquet file. Errors: `StorageError`."""
        with atomic_file(path) as temporary:
            self.frame.write_parquet(temporary)

    @classmethod
    def load(cls, path: Path) -> "Store":
        """Read what `save` wrote. Errors: `BundleError` when it is missing or something else."""
        try:
            return cls(pl.read_parquet(path).select(cls.SCHEMA.names()).cast(cls.SCHEMA))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise BundleError(f"{path}: not a store of profile texts: {str(error).splitlines()[0]}") from error
