"""`recsys ab`: plan, assign, check and read experiments."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl

app = typer.Typer(help="Experiments: plan, assign, check, read.", no_args_is_help=True)

PlanArgument = Annotated[Path, typer.Argument(help="the experiment, a TOML file", metavar="EXP.toml")]
DataOption = Annotated[
    Path, typer.Option("--data", help="rows as .parquet or .csv; a folder or a glob of Parquet, too")
]


@app.command()
def analyze(
    plan: PlanArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="folder for readout.json, readout.html and readout.md")],
) -> None:
    """Read an experiment: whether it may be read, then what it did."""
    from rich.console import Console
    from rich.markdown import Markdown

    from recsys.experiment import Experiment
    from recsys.experiment import analyze as read

    readout = read(Experiment.read(plan), _rows(data))
    readout.write(out)
    Console().print(Markdown(readout.as_markdown()))
    typer.echo(f"written: {out / 'readout.html'}")


@app.command()
def check(plan: PlanArgument, data: DataOption) -> None:
    """Say whether the data may be read, and show no effect. Exit status 3 where nothing may be concluded."""
    from recsys.experiment import Experiment
    from recsys.experiment import analyze as read

    readout = read(Experiment.read(plan), _rows(data))
    for name, n in readout.ratio.counts.items():
        typer.echo(f"{name}: {n} units")
    typer.echo(f"sample ratio: p = {readout.ratio.p:.3g}, at any look {readout.ratio.sequential_p:.3g}")
    for sentence in (*readout.refusals, *readout.warnings):
        typer.echo(f"- {sentence}")
    if readout.refusals:
        raise typer.Exit(3)
    typer.echo("may be read")


@app.command()
def design(
    plan: PlanArgument,
    data: Annotated[Path, typer.Option("--history", help="rows as the experiment will have, from before")],
    effect: Annotated[float, typer.Option(help="the smallest relative effect that matters, such as 0.02")] = 0.02,
    power: Annotated[float, typer.Option(help="the chance to find it", min=0.05, max=0.999)] = 0.8,
    daily: Annotated[float | None, typer.Option(help="new units a day, for the duration", min=1)] = None,
    runs: Annotated[int, typer.Option("--aa", help="random splits of the history to try the analysis on", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="of the splits")] = 0,
) -> None:
    """How many units an experiment needs, from the history, and whether its analysis keeps its promises on it."""
    from recsys.experiment import Experiment
    from recsys.experiment.power import a_a, needed

    experiment, rows = Experiment.read(plan), _rows(data)
    _print(needed(experiment, rows, effect, wanted=power, daily=daily), f"for {effect:+.1%} with power {power:.0%}")
    if runs:
        _print(a_a(experiment, rows, runs, seed), f"{runs} random splits of the history")


@app.command()
def assign(
    plan: PlanArgument,
    units: Annotated[Path, typer.Option("--units", help="a .parquet or .csv file with the plan's unit column")],
    out: Annotated[Path, typer.Option(help="the .parquet or .csv file to write: unit, variant")],
) -> None:
    """Write each unit's variant; none for who does not take part."""
    import polars as pl

    from recsys.data.files import atomic_file
    from recsys.errors import DataError
    from recsys.experiment import Experiment

    experiment, rows = Experiment.read(plan), _rows(units)
    if experiment.unit not in rows.collect_schema():
        raise DataError(f"{units}: no column '{experiment.unit}' (unit)")
    frame = rows.select(experiment.unit).unique(maintain_order=True).collect()
    variants = pl.Series(experiment.variant, experiment.assign(frame[experiment.unit].to_list()), dtype=pl.String)
    frame = frame.with_columns(variants)
    with atomic_file(out) as file:
        frame.write_csv(file) if out.suffix == ".csv" else frame.write_parquet(file)
    _print(frame.group_by(experiment.variant).len("units").sort(experiment.variant), str(out))


def _rows(path: Path) -> "pl.LazyFrame":
    import polars as pl

    from recsys.errors import DataError

    try:
        if path.suffix == ".csv":
            return pl.scan_csv(path, try_parse_dates=True)
        where = path / "**/*.parquet" if path.is_dir() else path
        rows = pl.scan_parquet(where)
        rows.collect_schema()
        return rows
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: is not readable as Parquet or CSV ({str(error).splitlines()[0]})") from error


def _print(frame: "pl.DataFrame", title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in frame.columns:
        table.add_column(name, justify="left" if frame[name].dtype == str else "right")
    for row in frame.iter_rows():
        table.add_row(*("-" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x) for x in row))
    Console().print(table)
