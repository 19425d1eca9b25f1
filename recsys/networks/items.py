"""Items as vectors, from what the catalog says of them: its text, and the values and bands of its attributes."""

import numpy as np
import polars as pl

from recsys.data.vocab import Vocab
from recsys.errors import SpecError
from recsys.protocols import Floats
from recsys.tables import Catalog

# A row that differs from the mean of all by less than this differs by rounding.
ROUNDING = 1e-4
# Values of one attribute that get a place of their own, the most frequent ones.
MOST_VALUES = 200
BANDS = 10


def item_vectors(catalog: Catalog, vocab: Vocab) -> Floats:
    """(items, dim) text vectors in the vocabulary's order. Errors: `SpecError` when the catalog has none."""
    if "embedding" not in catalog.frame.columns:
        raise SpecError("the catalog has no text vectors: name an encoder in the spec, under [encoder]")
    frame = pl.DataFrame({"item_id": vocab.ids}).join(
        catalog.frame.select("item_id", "embedding"), on="item_id", how="left", maintain_order="left"
    )
    vectors = np.ascontiguousarray(frame["embedding"].to_numpy(), dtype=np.float32)
    if not np.isfinite(vectors).all():
        item = frame["item_id"][int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise SpecError(
            f"catalog: item {item!r}: its embedding has numbers that are not finite: mend it, or leave out `embedding`"
        )
    return vectors


def centred(vectors: Floats) -> Floats:
    """Unit vectors of what sets each row apart from the mean of all; zero for a row that is the mean itself.

    Texts of one catalog share most of their vector, whatever they say; without that part cosines tell them apart (Mu &
    Viswanath, "All-but-the-top", ICLR 2018).
    """
    apart = vectors - vectors.mean(axis=0, keepdims=True)
    norms = np.linalg.norm(apart, axis=1, keepdims=True)
    return np.asarray(apart * (norms > ROUNDING) / np.maximum(norms, ROUNDING), dtype=np.float32)


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
