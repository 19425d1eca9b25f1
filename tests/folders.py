"""Dataset folders for the data tests."""

from pathlib import Path
from typing import Any

import polars as pl

ITEMS = "item_id,title\n1,One\n2,Two\n"


def folder(tmp_path: Path, interactions: Any, items: Any = ITEMS, toml: str | None = None) -> Path:
    """A dataset folder; a table is CSV text or a frame (then Parquet)."""
    for stem, table in (("interactions", interactions), ("items", items)):
        if isinstance(table, pl.DataFrame):
            table.write_parquet(tmp_path / f"{stem}.parquet")
        else:
            (tmp_path / f"{stem}.csv").write_text(table, encoding="utf-8")
    if toml is not None:
        (tmp_path / "dataset.toml").write_text(toml, encoding="utf-8")
    return tmp_path
