"""Profile texts that a language model wrote, kept by the hash of the evidence they were written from."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from recsys.data.files import atomic_file
from recsys.errors import BundleError


@dataclass(frozen=True)
class Store:
    """evidence_hash (key), text, prompt_id, model_id, as_of: one text per evidence, the last one added."""

    frame: pl.DataFrame

    SCHEMA: ClassVar[pl.Schema] = pl.Schema(
        {
            "evidence_hash": pl.String,
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
        """A store with `entries` (the same columns) as well; they take the place of older texts of their hashes."""
        both = pl.concat([self.frame, entries.select(self.SCHEMA.names()).cast(self.SCHEMA)])
        return Store(both.unique("evidence_hash", keep="last", maintain_order=True).sort("evidence_hash"))

    def lookup(self, hashes: pl.Series) -> pl.DataFrame:
        """The store's columns for each hash, in order; text is null where there is none."""
        wanted = pl.DataFrame({"evidence_hash": hashes.cast(pl.String)})
        return wanted.join(self.frame, on="evidence_hash", how="left", maintain_order="left")

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
