"""Catalog attributes as vectors, for the towers: the values that an item carries, the bands its numbers lie in."""

import numpy as np
import polars as pl

from recsys.candidates.base import Floats
from recsys.data.vocab import Vocab
from recsys.tables import Catalog

# Values of one attribute that get a place of their own, the most frequent ones.
MOST_VALUES = 200
BANDS = 10


def attribute_vectors(catalog: Catalog, vocab: Vocab) -> Floats:
    """(items, width) of zeros and ones, and a number's standard score; an item without a value has zeros there.

    Text and lists give each value that two items or more carry, so that identifiers and prose give nothing; numbers
    give ten bands of equally many items each. The width is zero where the catalog has no attribute that says anything.
    """
    frame = pl.DataFrame({"item_id": vocab.ids}).join(
        catalog.frame.select("item_id", *catalog.attributes), on="item_id", how="left", maintain_order="left"
    )
    blocks = [
        _bands(frame[name]) if frame[name].dtype.is_numeric() else _values(frame[name]) for name in catalog.attributes
    ]
    return np.concatenate([np.zeros((len(vocab), 0), dtype=np.float32), *blocks], axis=1)


def _values(series: pl.Series) -> Floats:
    frame = pl.DataFrame({"item": np.arange(len(series)), "value": series})
    if isinstance(series.dtype, pl.List):
        frame = frame.explode("value", empty_as_null=True)
    frame = frame.drop_nulls().with_columns(pl.col("value").cast(pl.String)).unique(maintain_order=True)
    shared = frame["value"].value_counts(name="items").filter(pl.col("items") >= 2)
    shared = shared.sort(["items", "value"], descending=[True, False]).head(MOST_VALUES).with_row_index("place")
    carried = frame.join(shared, on="value")
    found = np.zeros((len(series), len(shared)), dtype=np.float32)
    found[carried["item"].to_numpy(), carried["place"].to_numpy()] = 1
    return found


def _bands(series: pl.Series) -> Floats:
    numbers = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.isfinite(numbers)
    if len(np.unique(numbers[known])) < 2:
        return np.zeros((len(series), 0), dtype=np.float32)
    borders = np.unique(np.quantile(numbers[known], np.arange(1, BANDS) / BANDS))
    found = np.zeros((len(series), len(borders) + 2), dtype=np.float32)
    found[known, np.searchsorted(borders, numbers[known])] = 1
    found[known, -1] = (numbers[known] - numbers[known].mean()) / numbers[known].std()
    return found
