"""`recsys data`: check, import, fetch and generate datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.data.counted import counted

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from recsys.data.check import CheckReport, Stats

app = typer.Typer(help="Datasets: check, import, fetch, generate.", no_args_is_help=True)

QuarantineOption = Annotated[
    Path | None, typer.Option(help="write the bad rows with reasons to this .parquet or .csv file")
]
ReplaceOption = Annotated[bool, typer.Option("--replace", help="replace a folder that is there")]
SHOWN = 5  # rows of each violation that are printed; the rest is counted


@app.command()
def check(
    folder: Annotated[str, typer.Argument(help="a dataset folder, or the name of a fetched one")],
    quarantine: QuarantineOption = None,
) -> None:
    """Say what a dataset holds and what is wrong with it; exit status 1 where it cannot be used."""
    from rich.console import Console

    from recsys.data.check import check_dataset
    from recsys.data.datasets import dataset_path
    from recsys.settings import load_settings

    path = dataset_path(folder, load_settings())
    report = check_dataset(path, quarantine=quarantine)
    _show(report, Console())
    if quarantine is not None and len(report.violations):
        typer.echo(f"bad rows, with reasons: {quarantine}")
    if not report.usable:
        hint = f"`recsys data import {folder} OUT --quarantine FILE` writes a copy without the bad rows"
        typer.echo(
            f"not usable: {counted(len(report.violations), 'violation')}" + (f"; {hint}" if report.stats else "")
        )
        raise typer.Exit(1)
    typer.echo("usable")


@app.command(name="import")
def import_(
    src: Annotated[Path, typer.Argument(help="a folder, or the file of interactions")],
    out: Annotated[Path, typer.Argument(help="the dataset folder to write")],
    form: Annotated[
        str, typer.Option("--format", help="auto | dataset | movielens | recbole | csv | parquet | jsonl")
    ] = "auto",
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="public=theirs, such as user_id=uid; may be repeated")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="the file of items, where SRC is a file")] = None,
    name: Annotated[str | None, typer.Option(help="the dataset's name; else the folder's")] = None,
    quarantine: QuarantineOption = None,
    replace: ReplaceOption = False,
) -> None:
    """Import MovieLens, RecBole, CSV, Parquet or JSONL files into the dataset format, without users who were erased."""
    from typing import cast, get_args

    from recsys.data.importers import import_dataset
    from recsys.data.readers import Format
    from recsys.profiles.versions import open_store
    from recsys.settings import load_settings

    if form not in get_args(Format):
        raise typer.BadParameter(f"is one of {', '.join(get_args(Format))}", param_hint="--format")
    names: dict[str, list[str]] = {}
    for pair in mapping or []:
        public, equals, theirs = pair.partition("=")
        if not (public and equals and theirs):
            raise typer.BadParameter(f"{pair!r} is not of the form public=theirs", param_hint="--map")
        names.setdefault(public, []).append(theirs)
    done = import_dataset(
        src,
        out,
        form=cast(Format, form),
        mapping=names,
        items=items,
        name=name,
        quarantine=quarantine,
        replace=replace,
        erased=open_store(load_settings().state_uri).buried,
    )
    for note in done.notes:
        typer.echo(f"note: {note}")
    if done.licence:
        typer.echo(f"licence: {done.licence}")
    if done.quarantined:
        typer.echo(f"set aside: {counted(done.quarantined, 'bad row')}, in {quarantine}")
    if done.orphaned:
        refer, stay = ("event refers", "it stays") if done.orphaned == 1 else ("events refer", "they stay")
        typer.echo(
            f"{done.orphaned:,} {refer} to items that were set aside: {stay} in the log and "
            f"{'is' if done.orphaned == 1 else 'are'} never recommended"
        )
    typer.echo(f"{done.path}: {counted(done.events, 'event')}, {counted(done.items, 'item')}")


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="ml-100k | ml-1m | ml-10m | ml-20m | ml-25m | ml-latest-small | ml-latest")
    ],
    source: Annotated[Path | None, typer.Option("--from", help="an archive or folder you already have")] = None,
    out: Annotated[Path | None, typer.Option(help="write here instead of into the cache")] = None,
    sha256: Annotated[str | None, typer.Option(help="what the archive must hash to")] = None,
    force: Annotated[bool, typer.Option("--force", help="fetch anew although it is there")] = False,
) -> None:
    """Fetch a public dataset from its publisher, check its hash, and say where it lies and under which terms."""
    from recsys.data.datasets import fetch as run
    from recsys.settings import load_settings

    got = run(name, load_settings(), source=source, out=out, sha256=sha256, force=force)
    for note in got.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"licence: {got.licence}")
    if got.sha256:
        typer.echo(f"sha256 of the archive: {got.sha256}")
    typer.echo(f"{name}: {got.path} (from {got.origin})")


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="the dataset folder to write")],
    users: Annotated[int, typer.Option(min=1)] = 1_000,
    items: Annotated[int, typer.Option(min=1)] = 800,
    events: Annotated[int, typer.Option(min=1)] = 30_000,
    seed: Annotated[int, typer.Option(help="the same numbers and seed give the same world")] = 0,
    name: Annotated[str | None, typer.Option(help="the dataset's name; else the folder's")] = None,
    form: Annotated[str, typer.Option("--format", help="parquet | csv")] = "parquet",
    replace: ReplaceOption = False,
) -> None:
    """Generate a world: readable items, users with known tastes, and the events that follow from them."""
    from recsys.data.files import refuse_taken
    from recsys.data.synthetic import make_world, write_world

    if form not in ("parquet", "csv"):
        raise typer.BadParameter("is 'parquet' or 'csv'", param_hint="--format")
    refuse_taken(out, replace=replace)
    world = make_world(users, items, events, seed, name=name or out.resolve().name)
    write_world(world, out, form="csv" if form == "csv" else "parquet", replace=replace)
    typer.echo(
        f"{out}: {counted(len(world.interactions), 'event')}, {counted(users, 'user')}, {counted(items, 'item')}"
    )


def _show(report: "CheckReport", console: "Console") -> None:
    from rich.markup import escape

    console.print(
        f"[bold]{escape(report.name)}[/bold]" + (f"   licence: {escape(report.licence)}" if report.licence else "")
    )
    if report.stats is not None:
        _show_stats(report.stats, console)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    if not len(report.violations):
        return
    console.print()
    cut = False
    for (file, column, reason), rows in report.violations.group_by("file", "column", "reason", maintain_order=True):
        place = file if column is None else f"{file}, column '{column}'"
        console.print(f"violation: {place}: {reason}{_examples(rows)}", markup=False)
        cut |= len(rows) > SHOWN
    if report.violations["row"].is_not_null().any():
        console.print("rows count from 1, without the header" + ("; --quarantine FILE writes them all" if cut else ""))


def _examples(rows: "pl.DataFrame") -> str:
    """How many rows break a rule, and the first few with their values; of a fault of the whole column its example."""
    found = [
        f"row {row:,}" + ("" if value is None else f" {value[:60]!r}")
        for row, value in rows.select("row", "value").head(SHOWN).iter_rows()
        if row is not None
    ]
    if not found:
        value = rows["value"][0]
        return "" if value is None else f" (here {value[:60]!r})"
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f" ({len(rows):,}): {', '.join(found)}{more}"


def _show_stats(stats: "Stats", console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_row("events", f"{stats.events:,}" + _kinds(stats.event_kinds))
    table.add_row("users", f"{stats.users:,} ({stats.single_event_users:,} with one event only)")
    table.add_row("items", f"{stats.items:,} ({stats.unmet:,} without any event)")
    table.add_row("density", f"{stats.density:.3%} of the user-item pairs")
    if stats.span:
        first, last = stats.span
        table.add_row("time", f"{first:%Y-%m-%d} to {last:%Y-%m-%d} ({counted((last - first).days, 'day')})")
    else:
        table.add_row("time", "none: events are ordered by position")
    table.add_row("events a user", "  ".join(f"{name} {value:,.0f}" for name, value in stats.events_per_user.items()))
    low, mean, high = stats.weights
    table.add_row("weights", f"{low:g} to {high:g}, mean {mean:.2f}")
    table.add_row(
        "repeated",
        f"{counted(stats.equal_rows, 'equal row')}, {counted(stats.repeated_pairs, 'event')} on an item met before",
    )
    events, items = stats.orphans
    table.add_row("orphans", f"{counted(events, 'event')} on {counted(items, 'item')} that the items table lacks")
    table.add_row(
        "text", f"{stats.text_coverage:.1%} of items say more than a title; {stats.text_words:.0f} words on average"
    )
    for a in stats.attributes:
        examples = ", ".join(value[:30] for value in a.examples)
        table.add_row(
            f"  {a.name}", escape(f"{a.type}, {a.coverage:.0%} filled, {counted(a.distinct, 'value')}: {examples}")
        )
    console.print(table)


def _kinds(kinds: dict[str, int]) -> str:
    return "" if len(kinds) < 2 else " (" + ", ".join(f"{kind} {n:,}" for kind, n in kinds.items()) + ")"
