"""From the rows of an items table to a Catalog: attributes with types, lists split, and one text per item."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from recsys.data.counted import counted
from recsys.data.rules import ROW
from recsys.tables import Catalog

MAX_TITLE = 300  # characters of a title that go into the text
MAX_TEXT = 2_000  # characters of a text
PROSE = frozenset({"description", "overview", "plot", "summary", "synopsis", "abstract", "text", "body", "about"})
PROSE_WORDS = 12  # a column with this many words a value, on average, is prose whatever its name
INTEGERS = r"^-?(0|[1-9]\d{0,17})$"
NUMBERS = r"^-?(0|[1-9]\d{0,17})(\.\d+)?$"
NOTHING = ("", "-", "NA", "N/A", "n/a", "NULL", "null", "None", "nan", "NaN")  # how a CSV's cell says that it is empty
NEARLY = 0.95  # a text attribute with this share of numbers is told of: a few bad cells may have made it text
MACHINE_READ = r"(^|_)(id|url|uri|link|image|poster)$"  # names of attributes that say nothing to a text model


@dataclass(frozen=True)
class ItemColumns:
    """The columns of an items table besides id and title, typed: attributes, and prose that only goes into texts."""

    attributes: list[pl.Series]
    prose: list[pl.Series]
    notes: list[str]


def build_catalog(items: pl.DataFrame, lists: Mapping[str, str], *, untyped: bool) -> tuple[Catalog, list[str]]:
    """Make the catalog out of item_id, title (both checked) and the other columns as they came.

    items   : one row an item, with its 1-based number in the file in column `__row`
    lists   : attribute -> separator, where it is not "|"
    untyped : all columns are text (CSV), so numbers and words for nothing ("n/a") among them are recognised
    returns : the catalog in the order of item_id, and notes on what was decided

    Prose (descriptions) goes into the text and not among the attributes.
    """
    columns = type_columns(items, lists, untyped=untyped)
    frame = items.select("item_id", "title").with_columns(columns.attributes)
    names, prose = [s.name for s in columns.attributes], [s.name for s in columns.prose]
    text = frame.with_columns(columns.prose).select(_text(names, frame.schema, prose)).to_series()
    cuts = _cuts(frame["title"], text)
    frame = frame.with_columns(text.str.slice(0, MAX_TEXT).alias("text"))
    return Catalog(frame.select("item_id", "title", "text", *names).sort("item_id")), [*columns.notes, *cuts]


def type_columns(items: pl.DataFrame, lists: Mapping[str, str], *, untyped: bool) -> ItemColumns:
    """Give every column besides item_id and title a type; arguments as for `build_catalog`."""
    found = ItemColumns([], [], [])
    for series in items.drop("item_id", "title", ROW).get_columns():
        filled = _emptied(series, found.notes) if untyped else series
        if filled.null_count() == len(filled):
            found.notes.append(f"item column '{series.name}' is empty: left out")
            continue
        typed = _plain(filled, found.notes)
        if typed is None:
            continue
        if typed.dtype != pl.String:
            found.attributes.append(typed)
        elif series.name not in lists and _is_prose(typed):
            found.prose.append(typed)
        else:
            attribute = _split(typed, lists.get(series.name), untyped, found.notes)
            found.attributes.append(attribute)
            if attribute.dtype == pl.String:
                found.notes.extend(_nearly_numbers(attribute, items[ROW]))
    return found


def _emptied(series: pl.Series, notes: list[str]) -> pl.Series:
    """A CSV's column with null for every cell that holds nothing but a word for nothing, and a note of these words."""
    if series.dtype != pl.String:  # a reader made numbers of it already
        return series
    text = series.str.strip_chars()
    nothing = text.is_in(NOTHING)
    words = text.filter(nothing & (text != ""))
    if len(words):
        shown = ", ".join(f"'{word}'" for word in words.unique(maintain_order=True))
        notes.append(f"item column '{series.name}': {counted(len(words), 'cell')} with {shown}: read as empty")
    return text.set(nothing, None)


def _nearly_numbers(series: pl.Series, rows: pl.Series) -> list[str]:
    """A note where nearly all values of a text attribute are numbers, with the first that is none."""
    number = series.str.contains(NUMBERS)
    n, present = int(number.sum()), series.count()
    if n == present or n < NEARLY * present:
        return []
    first = (~number).fill_null(False).arg_true()[0]
    return [
        f"item column '{series.name}': {n:,} of {present:,} values are numbers; "
        f"row {rows[first]} is '{series[first][:60]}': read as text"
    ]


def _plain(series: pl.Series, notes: list[str]) -> pl.Series | None:
    """The column as String, Int64, Float64 or List(String); None, and a note, where it is none of these."""
    dtype = series.dtype
    if isinstance(dtype, pl.Array | pl.List):
        inner = dtype.inner
        if inner == pl.String or isinstance(inner, pl.Categorical | pl.Enum) or inner.is_numeric():
            return series.cast(pl.List(pl.String)).list.drop_nulls()
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum) or dtype.is_temporal() or dtype == pl.Boolean:
        text = series.cast(pl.String).str.strip_chars()
        return text.set(text == "", None)
    elif dtype.is_integer():
        whole = series.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == series.null_count() else series.cast(pl.String)
    elif dtype.is_numeric():
        number = series.cast(pl.Float64)
        return number.set(~number.is_finite(), None)
    notes.append(f"item column '{series.name}' is {dtype}, neither text, number nor list: left out")
    return None


def _is_prose(series: pl.Series) -> bool:
    """Whether values are sentences: by the column's name, or by many words between one "|" and the next."""
    if series.name.lower() in PROSE:
        return True
    words = series.str.count_matches(r"\S+").sum()
    pieces = series.str.count_matches(r"\|").sum() + series.count()
    return bool(words >= PROSE_WORDS * pieces)


def _split(series: pl.Series, separator: str | None, untyped: bool, notes: list[str]) -> pl.Series:
    """Text to lists where it holds lists, to numbers where an untyped column holds only numbers."""
    if separator is None and series.str.contains("|", literal=True).any():
        separator = "|"
    if separator is None and _looks_spaced(series):
        separator = " "
        notes.append(f"item column '{series.name}' looks like lists separated by spaces: split")
    if separator is not None:
        pieces = series.str.split(separator).list.eval(pl.element().str.strip_chars())
        return pieces.list.eval(pl.element().filter(pl.element().str.len_bytes() > 0))
    if untyped:
        for pattern, dtype in ((INTEGERS, pl.Int64), (NUMBERS, pl.Float64)):
            if series.drop_nulls().str.contains(pattern).all():
                return series.cast(dtype)
    return series


def _looks_spaced(series: pl.Series) -> bool:
    """Whether values are lists of one-word tags with spaces between, such as "Animation Children's Comedy".

    Few distinct tokens, many distinct combinations, no token twice in a value, and the tokens also occur alone: two
    words that belong together ("United States") do not.
    """
    values = series.drop_nulls().unique()
    tokens = values.str.extract_all(r"\S+")
    lengths = tokens.list.len()
    distinct = tokens.explode().drop_nulls().unique()
    if (lengths > 1).mean() in (None, 0.0) or len(distinct) > 200 or len(values) < 2 * len(distinct):
        return False
    if (tokens.list.n_unique() != lengths).any():
        return False
    alone = values.filter(lengths == 1)
    occurrences = tokens.explode().drop_nulls()
    return bool(occurrences.is_in(alone.implode()).mean() >= 0.8)  # type: ignore[operator]


def _text(attributes: list[str], schema: pl.Schema, prose: list[str]) -> pl.Expr:
    """ "title. attribute: a, b. attribute: c. description", with white space made single."""
    parts = [pl.col("title").str.slice(0, MAX_TITLE)]
    for name in attributes:
        value = pl.col(name)
        if isinstance(schema[name], pl.List):
            value = pl.when(value.list.len() > 0).then(value.list.join(", "))
        elif schema[name] == pl.Float64:
            whole = value.cast(pl.Int64, strict=False)
            value = pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
        parts.append(pl.lit(f"{name.replace('_', ' ')}: ") + value.cast(pl.String))
    parts.extend(pl.col(name) for name in prose)
    return pl.concat_str(parts, separator=". ", ignore_nulls=True).str.replace_all(r"\s+", " ").alias("text")


def _cuts(titles: pl.Series, texts: pl.Series) -> list[str]:
    """Notes on what is too long for a text."""
    notes = []
    if long := int((titles.str.len_chars() > MAX_TITLE).sum()):
        longer = counted(long, "title is", "titles are")
        notes.append(f"{longer} longer than {MAX_TITLE} characters: cut to that in the item's text")
    if cut := int((texts.str.len_chars() > MAX_TEXT).sum()):
        notes.append(
            f"{counted(cut, 'item text is', 'item texts are')} longer than {MAX_TEXT:,} characters: cut to that"
        )
    return notes
