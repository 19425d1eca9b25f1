"""Facets: the (attribute, value) pairs that a catalog's items carry and that tastes are spoken of in.

Lists and strings give their values; the first column of years or decades gives decades (else the years in titles
do); numbers of few values give each, other numbers a band between quartiles of the population. Left out are free
text, identifiers, columns that only say yes or no (in words or as 0 and 1: "you like in stock" is no taste), and
values that say nothing (one item only, or nearly every item). What was decided at fit is kept in `Column`s, so that
a new catalog is read the same way.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl

from recsys.data.vocab import Vocab
from recsys.tables import Catalog

Kind = Literal["value", "era", "band", "number"]

_FREE_TEXT = 40  # median characters above which a string column is prose, not a name
_FEW = 6  # numbers with at most so many distinct values are names, not measures
_TITLE_YEAR = r"\((1[89]\d\d|20\d\d)\)"
_YEARS = (1800, 2100)
_YES_NO = ("yes", "no", "y", "n", "true", "false", "1", "0")


@dataclass(frozen=True)
class Column:
    """How one attribute is read. `source` is the catalog column; `edges` are the inner borders of bands.

    kind : "value" (names), "number" (a few numbers), "band" (a measure), "era" (decades)
    """

    attribute: str
    source: str
    kind: Kind
    edges: tuple[float, ...] = ()


def plan(catalog: Catalog, events: np.ndarray) -> tuple[Column, ...]:
    """Decide which attributes carry tastes and how to read them.

    events : (items,) number of events of each catalog row in the population, which weighs the quartiles of bands
    """
    columns = [c for name in catalog.attributes if (c := _plan_one(catalog.frame[name], events)) is not None]
    eras = [c for c in columns if c.kind == "era"]
    columns = [c for c in columns if c not in eras[1:]]
    dated = catalog.frame["title"].str.contains(_TITLE_YEAR).mean()
    if not eras and "year" not in catalog.attributes and float(dated or 0) >= 0.5:  # type: ignore[arg-type]
        columns.append(Column("year", "title", "era"))
    return tuple(columns)


def _plan_one(series: pl.Series, events: np.ndarray) -> Column | None:
    name = series.name
    if series.dtype == pl.List(pl.String):
        values = series.list.explode(empty_as_null=False).drop_nulls()
        return Column(name, name, "value") if _reused(values) and not _says_yes_or_no(values) else None
    if series.dtype == pl.String:
        values = series.drop_nulls()
        if _says_yes_or_no(values):
            return None
        if _are_years(values.str.replace(r"^(\d{3}0)s$", "$1").cast(pl.Float64, strict=False)):
            return Column(name, name, "era")
        median = values.str.len_chars().median()
        prose = isinstance(median, float | int) and median > _FREE_TEXT
        return None if prose or not _reused(values) else Column(name, name, "value")
    return _plan_number(series, events) if series.dtype.is_numeric() else None


def _plan_number(series: pl.Series, events: np.ndarray) -> Column | None:
    numbers = series.cast(pl.Float64)
    usable = numbers.is_finite().fill_null(False)
    values = numbers.filter(usable)
    distinct = values.n_unique()
    if distinct < 2 or set(values.unique()) == {0.0, 1.0}:
        return None
    if _are_years(values):
        return Column(series.name, series.name, "era")
    whole = bool((values == values.round()).all())
    if whole and distinct == len(values) and distinct > 50:
        return None  # an identifier
    if distinct <= _FEW:
        return Column(series.name, series.name, "number")
    weights = events[usable.to_numpy()] + 1e-9  # so that a catalog nobody has touched still has quartiles
    order = np.argsort(values.to_numpy(), kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    edges = {_round(float(values[int(order[int(np.searchsorted(share, q))])])) for q in (0.25, 0.5, 0.75)}
    inner = sorted(e for e in edges if e > float(values.to_numpy().min()))
    return Column(series.name, series.name, "band", tuple(inner)) if inner else None


def _round(edge: float) -> float:
    """Two significant digits: borders are for reading."""
    return float(f"{edge:.2g}")


def _are_years(values: pl.Series) -> bool:
    """Whether all but a stray one in twenty are whole numbers that look like years."""
    inside = values.is_between(*_YEARS) & (values == values.round())
    return float(inside.fill_null(False).mean() or 0) >= 0.95  # type: ignore[arg-type]


def _says_yes_or_no(values: pl.Series) -> bool:
    """Whether every value is a yes or a no; empty text counts as missing."""
    said = values.str.strip_chars().str.to_lowercase()
    return bool(said.filter(said != "").is_in(_YES_NO).all())


def _reused(values: pl.Series) -> bool:
    """Whether at least half of the entries carry a value that another item carries too."""
    values = values.drop_nulls()
    return len(values) > 0 and bool(values.is_duplicated().mean() >= 0.5)  # type: ignore[operator]


def expand(catalog: Catalog, vocab: Vocab, columns: tuple[Column, ...]) -> pl.DataFrame:
    """The facets of every item: item (Int32 code), attribute, value, kind (String), each once per item."""
    codes = pl.Series("item", vocab.encode(catalog.frame["item_id"]))
    parts = []
    for column in columns:
        if column.source not in catalog.frame.columns:
            continue
        frame = pl.DataFrame([codes, catalog.frame[column.source].alias("value")])
        if frame["value"].dtype == pl.List(pl.String):
            frame = frame.explode("value", empty_as_null=True)
        if frame["value"].dtype.is_float():
            frame = frame.filter(pl.col("value").is_finite())
        frame = frame.drop_nulls().with_columns(value=_read(column)).drop_nulls()
        parts.append(
            frame.filter(pl.col("value").str.strip_chars() != "")
            .unique(maintain_order=True)
            .with_columns(attribute=pl.lit(column.attribute), kind=pl.lit(column.kind))
            .select("item", "attribute", "value", "kind")
        )
    schema = {"item": pl.Int32, "attribute": pl.String, "value": pl.String, "kind": pl.String}
    return pl.concat(parts).cast(schema) if parts else pl.DataFrame(schema=schema)  # type: ignore[arg-type]


def _read(column: Column) -> pl.Expr:
    value = pl.col("value")
    if column.source == "title":
        value = value.str.extract(_TITLE_YEAR)
    if column.kind == "era":
        year = value.cast(pl.String).str.strip_suffix("s").cast(pl.Float64, strict=False)
        decade = pl.when(year.is_between(*_YEARS)).then(year.floordiv(10) * 10).cast(pl.Int64)
        return pl.format("{}s", decade)
    if column.kind == "band":
        return _band(column.edges, value.cast(pl.Float64, strict=False))
    number = value.cast(pl.Float64, strict=False)
    if column.kind == "number":
        whole = number.cast(pl.Int64, strict=False)
        return pl.when(number == whole).then(whole.cast(pl.String)).otherwise(number.cast(pl.String))
    return value.cast(pl.String)


def _band(edges: tuple[float, ...], value: pl.Expr) -> pl.Expr:
    """ "under 10", "10 to 20", "20+": the band that holds the value, its lower border included."""
    text = [f"{edge:g}" for edge in edges]
    names = [f"under {text[0]}", *(f"{a} to {b}" for a, b in pairwise(text)), f"{text[-1]}+"]
    above = pl.sum_horizontal(value >= edge for edge in edges)
    return above.replace_strict(dict(enumerate(names)), return_dtype=pl.String)
