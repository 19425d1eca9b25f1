"""`recsys fit`, `recsys evaluate`, `recsys recommend`: the line itself."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from recsys.data.ingest import Dataset
    from recsys.settings import Settings

DataArgument = Annotated[str, typer.Argument(help="a dataset folder, or the name of a fetched one (ml-100k)")]
SpecOption = Annotated[Path, typer.Option("--spec", help="the recipe, a TOML file")]
SeedOption = Annotated[int, typer.Option(help="seed of everything random")]
SHOWN = 10  # segments that are named


def _dataset(data: str, settings: "Settings") -> "Dataset":
    from recsys.data.datasets import dataset_path
    from recsys.data.ingest import read_dataset
    from recsys.erasure import without_erased
    from recsys.profiles.versions import open_store

    return without_erased(read_dataset(dataset_path(data, settings)), open_store(settings.state_uri))


def fit(
    data: DataArgument,
    spec: SpecOption,
    out: Annotated[Path, typer.Option(help="the bundle's folder; must not exist yet")],
    seed: SeedOption = 0,
    replace: Annotated[bool, typer.Option(help="replace a bundle that is there")] = False,
) -> None:
    """Fit the whole line on all of a dataset's log and write a bundle."""
    from rich import print as show

    from recsys import bundle
    from recsys.settings import load_settings
    from recsys.spec import fit as fit_line
    from recsys.spec import load_spec

    settings, recipe = load_settings(), load_spec(spec)
    bundle.refuse_taken(out, replace=replace)
    dataset = _dataset(data, settings)
    fitted = fit_line(dataset, recipe, settings, seed=seed)
    bundle.write(out, fitted.recommender, dataset, spec=fitted.spec, replace=replace)
    if verdict := fitted.tuning.get("reranker", {}).get("verdict"):
        show(f"reranker: {verdict}")
    show(f"bundle: {out}  ({sum(fitted.seconds.values()):.0f} s)")


def evaluate(
    data: DataArgument,
    spec: SpecOption,
    out: Annotated[Path, typer.Option(help="folder of metrics.json, per_query.parquet, slates.parquet, report.html")],
    split: Annotated[str, typer.Option(help="leave-last | time")] = "leave-last",
    k_core: Annotated[int | None, typer.Option(min=1, help="keep users and items with this many events")] = None,
    sample_users: Annotated[
        int | None, typer.Option(min=1, help="evaluate this many users; everybody is fitted")
    ] = None,
    seed: SeedOption = 0,
    report: Annotated[bool, typer.Option(help="write report.html")] = True,
    bundle_out: Annotated[
        Path | None, typer.Option("--bundle", help="also write the evaluated line as a bundle")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace a bundle that is there")] = False,
) -> None:
    """Fit, then measure every stage on held-out events, ranking the whole catalog."""
    from rich.console import Console

    from recsys import bundle
    from recsys.data.files import refuse_taken
    from recsys.evaluate import evaluate as run
    from recsys.evaluate import write_results
    from recsys.report import stage_table, write_report
    from recsys.settings import load_settings
    from recsys.spec import load_spec

    if split not in ("leave-last", "time"):
        raise typer.BadParameter("is 'leave-last' or 'time'", param_hint="--split")
    settings, recipe = load_settings(), load_spec(spec)
    if bundle_out is not None:
        bundle.refuse_taken(bundle_out, replace=replace)
    refuse_taken(out, replace=True)
    dataset = _dataset(data, settings)
    found = run(
        dataset,
        recipe,
        settings,
        split=split,  # type: ignore[arg-type]  # checked above
        core=k_core,
        sample_users=sample_users,
        seed=seed,
    )
    write_results(found, out)
    console = Console()
    console.print(stage_table(found.metrics))
    # Paths are not broken at the edge of the terminal: they are to be copied.
    say = partial(console.print, markup=False, soft_wrap=True)
    say(f"metrics : {out / 'metrics.json'}\nper query: {out / 'per_query.parquet'}\nslates  : {out / 'slates.parquet'}")
    if report:
        from recsys.report.assemble import report_data

        write_report(out / "report.html", report_data(found, dataset))
        say(f"report  : {out / 'report.html'}")
    if bundle_out is not None:
        outside = f", nor of users and items outside the {k_core}-core" if k_core else ""
        bundle.write(
            bundle_out,
            found.fitted.recommender,
            dataset,
            spec=found.fitted.spec,
            known=found.known,
            metrics=found.metrics["stages"],
            replace=replace,
        )
        say(f"bundle  : {bundle_out}  (knows nothing of the test events{outside})")


def recommend(
    bundle: Annotated[str, typer.Option(help="a bundle's folder, or models:/NAME@ALIAS")],
    user: Annotated[
        str | None, typer.Option(help="a user id of the bundle's log; if left out, a visitor without a past")
    ] = None,
    request: Annotated[
        str, typer.Option(help="what they want, in words: 'something light, no horror'; read by rerankers that can")
    ] = "",
    segment: Annotated[
        str | None, typer.Option(help="the visitor's group, as the log writes segments; goes without --user")
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, help="how many items; 10, or all where there are fewer")] = None,
) -> None:
    """Show one user's recent history, profile and recommendations, or what a visitor would get."""
    import polars as pl
    from rich.console import Console

    from recsys.profiles.versions import open_store
    from recsys.registry import open_bundle
    from recsys.rerank.heard import heard
    from recsys.settings import load_settings

    if user is not None and segment is not None:
        raise typer.BadParameter("goes without --user: the log knows its users' own", param_hint="--segment")
    settings = load_settings()
    opened = open_bundle(bundle, settings)
    if user is None:
        queries = opened.adhoc([], segment=None if segment is None else segment.strip(), request=request)
    else:
        queries = opened.queries([user], [request])
        opened = opened.heeding(open_store(settings.state_uri), [user])
    slates = opened.recommender.recommend(queries, k or min(10, len(opened.catalog)))
    profile = opened.recommender.profiles.as_of(queries).frame["text"][0]
    titles = opened.catalog.frame.select("item_id", "title")
    recent = pl.DataFrame({"item_id": queries.frame["history"][0].tail(5).reverse()}).join(
        titles, on="item_id", how="left", maintain_order="left"
    )
    console = Console()
    lately = ", ".join(title or "?" for title in recent["title"])
    console.print("A visitor without a past" if user is None else f"User {user}, lately: {lately}", markup=False)
    console.print(f"\n{profile}\n", markup=False)
    if segment is not None and (why := _not_counted(segment.strip(), opened.recommender.segments)):
        print(f"note: {why}", file=sys.stderr)
    if asked := queries.frame["request"][0]:
        became = heard(opened.recommender.reranker, asked, slates)
        if became.unread:
            print(f"note: the request was not read: {became.unread}", file=sys.stderr)
        if became.meaning:
            console.print(f"understood: {became.meaning}\n", markup=False)
    if not len(slates):
        console.print("Nothing is left to recommend: everything that could be proposed was met before.")
        return
    console.print(_slate(slates.frame.join(titles, on="item_id", maintain_order="left")))


def _not_counted(segment: str, known: Sequence[str]) -> str:
    """Why a visitor's segment changed nothing; empty where its own counts were used."""
    if not known:
        why = "by_segment is not in its recipe, or was fitted a weight of zero"
        return f"this bundle has no popularity by segment ({why}): everybody's figures were used"
    if segment in known:
        return ""
    some = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    return f"segment {segment!r} is not known to this bundle, and everybody's figures were used; known are: {some}"


def _slate(rows: "pl.DataFrame") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("#", "item_id", "title", "score", "why", "by")
    for row in rows.iter_rows(named=True):
        table.add_row(
            str(row["rank"]),
            escape(str(row["item_id"])),
            escape(row["title"]),
            f"{row['score']:.3f}",
            escape(row["reason"]),
            row["served_by"],
        )
    return table
