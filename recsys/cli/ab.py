"""`recsys ab`: plan, assign, check and read experiments; other policies, mixed rankings, made-up people."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl

app = typer.Typer(
    help="Experiments: plan, assign, check, read; logged policies; interleaving; made-up people.", no_args_is_help=True
)

# Rows of CSV from which types are told, and what stands there for nothing.
INFER, NULLS = 100_000, ["", "NA", "N/A", "null", "NULL", "None"]

PlanArgument = Annotated[Path, typer.Argument(help="the experiment, a TOML file", metavar="EXP.toml")]
DataOption = Annotated[
    Path, typer.Option("--data", help="rows as .parquet or .csv; a folder or a glob of Parquet, too")
]


@app.command()
def analyze(
    plan: PlanArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="folder for readout.json, readout.html and readout.md")],
    log: Annotated[bool, typer.Option("--log", help="log it to MLflow, too (RECSYS_TRACKING_URI)")] = False,
) -> None:
    """Read an experiment: whether it may be read, then what it did."""
    from rich.console import Console
    from rich.markdown import Markdown

    from recsys.experiment import Experiment
    from recsys.experiment import analyze as read

    experiment = Experiment.read(plan)
    readout = read(experiment, _rows(data, [experiment.unit, experiment.variant]))
    readout.write(out)
    Console().print(Markdown(readout.as_markdown()))
    typer.echo(f"written: {out / 'readout.html'}")
    if log:
        from recsys.registry import Registry
        from recsys.settings import load_settings

        typer.echo(f"logged as run {Registry.of(load_settings()).log_readout(out)}")


@app.command()
def check(plan: PlanArgument, data: DataOption) -> None:
    """Say whether the data may be read, and show no effect. Exit status 3 where nothing may be concluded."""
    from recsys.experiment import Experiment
    from recsys.experiment import analyze as read

    experiment = Experiment.read(plan)
    readout = read(experiment, _rows(data, [experiment.unit, experiment.variant]))
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

    experiment = Experiment.read(plan)
    rows = _rows(data, [experiment.unit])
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

    experiment = Experiment.read(plan)
    rows = _rows(units, [experiment.unit])
    if experiment.unit not in rows.collect_schema():
        raise DataError(f"{units}: no column '{experiment.unit}' (unit)")
    frame = rows.select(experiment.unit).unique(maintain_order=True).collect()
    if frame[experiment.unit].null_count():
        typer.echo("rows without a unit are left out")
        frame = frame.drop_nulls()
    variants = pl.Series(experiment.variant, experiment.assign(frame[experiment.unit].to_list()), dtype=pl.String)
    frame = frame.with_columns(variants)
    with atomic_file(out) as file:
        frame.write_csv(file) if out.suffix == ".csv" else frame.write_parquet(file)
    _print(frame.group_by(experiment.variant).len("units").sort(experiment.variant), str(out))


@app.command()
def ope(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="rows: session, place, reward, propensity (the log's), target (the policy's in question); maybe shown "
            "and wanted (a model's), item_propensity and item_target, user_id",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="a .json file for the estimates")] = None,
    clip: Annotated[float | None, typer.Option(help="larger weights are set to this", min=1)] = None,
    confidence: Annotated[float, typer.Option(help="of the intervals", min=0.5, max=0.999)] = 0.95,
) -> None:
    """What another policy would have earned. Exit status 3 where the log supports no estimator without a model."""
    import json

    from recsys.data.files import atomic_file
    from recsys.experiment.offpolicy import compare, logged_of, possible
    from recsys.experiment.readout import finite

    logged = logged_of(_rows(data))
    table = compare(logged, possible(logged), confidence=confidence, **({} if clip is None else {"clip": clip}))
    shown = ["estimator", "value", "low", "high", "logged", "effective", "mean_weight", "largest", "clipped"]
    _print(table.select(shown), f"reward a session, {len(logged.reward)} sessions")
    refused = table.filter(table["refused"] != "")
    for row in refused.iter_rows(named=True):
        typer.echo(f"- {row['estimator']} is refused: {row['refused']}")
    if out is not None:
        with atomic_file(out) as file:
            file.write_text(json.dumps(finite(table.to_dicts()), indent=2) + "\n", encoding="utf-8")
    weighed = table.filter(table["estimator"] != "dm")
    if len(refused) == len(weighed):
        raise typer.Exit(3)


@app.command()
def interleave(
    out: Annotated[Path | None, typer.Option(help="the .parquet file of lists to write")] = None,
    rankings: Annotated[
        list[str] | None, typer.Option("--ranking", help="NAME=FILE: user_id, item_id, rank, as batch jobs write them")
    ] = None,
    lists: Annotated[Path | None, typer.Option(help="lists that were shown, as written before")] = None,
    clicks: Annotated[Path | None, typer.Option(help="user_id, item_id: a row for each click on them")] = None,
    k: Annotated[int, typer.Option("-k", help="length of a list", min=1)] = 10,
    method: Annotated[str, typer.Option(help="team-draft, probabilistic or optimized")] = "team-draft",
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
) -> None:
    """Mix rankings into one list for each user (--ranking, twice or more, and --out), or say which of them clicks on
    such lists prefer (--lists and --clicks)."""
    from recsys.data.files import atomic_file
    from recsys.errors import SpecError
    from recsys.experiment.interleave import METHODS, judged, lists_of

    if lists is not None and clicks is not None:
        _print(judged(_rows(lists).collect(), _rows(clicks).collect()), "credit of a list, other minus one")
        return
    if not rankings or out is None:
        raise SpecError("give --ranking NAME=FILE twice and --out, or --lists and --clicks")
    if method not in METHODS:
        raise SpecError(f"--method: must be one of {', '.join(METHODS)}, not '{method}'")
    given = {name: _rows(path).collect() for name, path in _named(rankings).items()}
    found = lists_of(given, k, method, seed)
    with atomic_file(out) as file:
        found.write_parquet(file)
    n = found["user_id"].n_unique()
    typer.echo(f"{n} lists of {k} by {method}: {out}")
    for name, frame in given.items():
        if lost := frame["user_id"].n_unique() - n:
            typer.echo(f"{lost} users of '{name}' are not in all rankings, and have no list")


@app.command()
def simulate(
    plan: PlanArgument,
    out: Annotated[Path, typer.Option(help="the .parquet file of exposures to write")],
    slates: Annotated[
        list[str] | None, typer.Option("--slates", help="VARIANT=FILE: user_id, item_id, rank, one for each variant")
    ] = None,
    likes: Annotated[
        Path | None, typer.Option(help="with --slates: user_id, item_id, chance of a click by who looks at the item")
    ] = None,
    users: Annotated[int, typer.Option(help="made-up users", min=2)] = 2000,
    items: Annotated[int, typer.Option(help="made-up items", min=10)] = 200,
    lift: Annotated[float, typer.Option(help="share of the control's error that treatments lack", max=1)] = 0.1,
    days: Annotated[int, typer.Option(min=1)] = 14,
    sessions: Annotated[float, typer.Option(help="of a user, a day", min=0.001)] = 0.5,
    k: Annotated[int, typer.Option("-k", help="places of a slate", min=1)] = 10,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Try a plan, or rankers' slates, on made-up people; write exposures to analyze, and say what is true."""
    from dataclasses import replace

    from recsys.data.files import atomic_file
    from recsys.errors import SpecError
    from recsys.experiment import Experiment
    from recsys.experiment.simulate import People
    from recsys.experiment.trial import Shows, fixed_of, people_of, rankers, trial

    experiment = Experiment.read(plan)
    if (slates is None) != (likes is None):
        raise SpecError("--slates and --likes belong together")
    shows: dict[str, Shows]
    if slates is not None and likes is not None:
        people, ids = people_of(_rows(likes).collect())
        shows = {name: fixed_of(_rows(path).collect(), ids, name) for name, path in _named(slates).items()}
        found = trial(experiment, people, shows, days=days, sessions=sessions, k=k, seed=seed, ids=ids)
    else:
        people = replace(People.made(users, items, seed=seed), model="cascade")
        shows = {**rankers(people, experiment, lift, seed)}
        found = trial(experiment, people, shows, days=days, sessions=sessions, k=k, seed=seed)
    with atomic_file(out) as file:
        found.rows.write_parquet(file)
    control = found.truth[experiment.control]
    for name, value in found.truth.items():
        typer.echo(f"{name}: {value:.4f} clicks a session in truth ({value / control - 1:+.2%})")
    typer.echo(f"{len(found.rows)} exposures: {out}")


def _named(given: list[str]) -> dict[str, Path]:
    from recsys.errors import SpecError

    found = {}
    for pair in given:
        name, _, path = pair.partition("=")
        if not name or not path:
            raise SpecError(f"'{pair}' must be NAME=FILE")
        if name in found:
            raise SpecError(f"'{name}' is given twice")
        found[name] = Path(path)
    return found


def _rows(path: Path, text: Sequence[str] = ()) -> "pl.LazyFrame":
    """Rows of Parquet or CSV, a file, a folder or a glob. text : columns of CSV that are text whatever they look like.

    Errors: `DataError` for what is not there, or no table.
    """
    import polars as pl

    from recsys.errors import DataError

    where = str(path)
    kinds = (
        {file.suffix.lower() for file in path.iterdir() if file.is_file()} if path.is_dir() else {path.suffix.lower()}
    )
    csv = ".csv" in kinds and ".parquet" not in kinds
    if not path.exists() and not any(sign in where for sign in "*?["):
        raise DataError(f"{path}: there is no such file or folder")
    try:
        if csv:
            files = str(path / "*.csv") if path.is_dir() else where
            rows = pl.scan_csv(files, try_parse_dates=True, infer_schema_length=INFER, null_values=NULLS)
            if own := [column for column in text if column in rows.collect_schema()]:
                kept = dict.fromkeys(own, pl.String())
                rows = pl.scan_csv(
                    files, try_parse_dates=True, infer_schema_length=INFER, null_values=NULLS, schema_overrides=kept
                )
            return rows
        shards = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if len({tuple(pl.read_parquet_schema(shard).items()) for shard in shards if shard.exists()}) > 1:
            # They differ in how wide their numbers are.
            return pl.concat([pl.scan_parquet(shard) for shard in shards], how="vertical_relaxed")
        rows = pl.scan_parquet(shards)
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
