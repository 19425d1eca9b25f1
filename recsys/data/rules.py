"""Rules on the rows of a table, and the violations that break them.

Each column has a typed expression and a few rules (`recsys.data.columns`). All rules of a table are counted in one
lazy pass; only where one fires are its rows fetched.
"""

from dataclasses import dataclass, field

import polars as pl

from recsys.data.source import RawTable

VIOLATIONS = pl.Schema(
    {"file": pl.String, "row": pl.Int64, "column": pl.String, "value": pl.String, "reason": pl.String}
)
ROW = "__row"
SHOWN = 200  # characters of a bad value that are kept


@dataclass(frozen=True)
class Rule:
    """A column, the rows that break it (true or false, never null), and why."""

    column: str
    broken: pl.Expr
    reason: str


@dataclass
class TypedTable:
    """How to read one table: typed columns, the rules on their rows, and what is wrong with whole columns.

    typed  : the name in the tables of the line (`ts`, `weight`, ...) -> an expression over `rows`
    faults : (column, value, reason) of what concerns no single row; with one of these the table cannot be read
    """

    raw: RawTable
    typed: dict[str, pl.Expr] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    faults: list[tuple[str | None, str | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> pl.LazyFrame:
        """The raw rows, with their 1-based number in column `__row`."""
        return self.raw.frame.with_row_index(ROW, offset=1)

    def good(self, *columns: str) -> pl.LazyFrame:
        """Typed columns of the rows that break no rule at all."""
        return self.only_good().select(self.typed[c].alias(c) for c in columns)

    def only_good(self) -> pl.LazyFrame:
        """The raw rows that break no rule."""
        return self.rows.filter(~pl.any_horizontal(rule.broken for rule in self.rules)) if self.rules else self.rows

    def violations(self) -> pl.DataFrame:
        """Every violation: whole columns first (row null), then in the order of rows."""
        whole = [(self.raw.file, None, *fault) for fault in self.faults]
        found = [pl.DataFrame(whole, schema=VIOLATIONS, orient="row")]
        counts = self.raw.collect(self.rows.select(r.broken.sum().alias(str(i)) for i, r in enumerate(self.rules)))
        fired = [rule for i, rule in enumerate(self.rules) if counts[str(i)][0]]
        if fired:
            found.append(pl.concat([self.raw.collect(self._broken(rule)) for rule in fired]).sort("row", "column"))
        return pl.concat(found)

    def _broken(self, rule: Rule) -> pl.LazyFrame:
        return self.rows.filter(rule.broken).select(
            file=pl.lit(self.raw.file),
            row=pl.col(ROW).cast(pl.Int64),
            column=pl.lit(rule.column),
            value=pl.col(rule.column).cast(pl.String).str.slice(0, SHOWN),
            reason=pl.lit(rule.reason),
        )
