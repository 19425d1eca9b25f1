"""`recsys batch` and `recsys serve`: the two doors of a bundle."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.data.counted import counted

if TYPE_CHECKING:
    from recsys.batch import BatchReport, UserList

BundleOption = Annotated[str, typer.Option(help="a bundle's folder, or models:/NAME@ALIAS")]

SHOWN = 5  # unknown ids that are named
USUAL = 10  # items per user


def batch(
    bundle: BundleOption,
    out: Annotated[Path, typer.Option(help="folder for the Parquet shards; the same one again goes on")],
    users: Annotated[str, typer.Option(help="all, or a file: one id per line, or CSV or Parquet with user_id")] = "all",
    k: Annotated[int | None, typer.Option(help="items per user; 10, or all where there are fewer")] = None,
    rerank_users: Annotated[
        int | None, typer.Option(min=0, help="rerank only the first N users; the rest get the candidates' order")
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(help="what users ask for in words: CSV or Parquet with user_id and request")
    ] = None,
    skip_unknown: Annotated[bool, typer.Option("--skip-unknown", help="leave out ids that the log lacks")] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="users per shard; changes no slate")] = 256,
    restart: Annotated[bool, typer.Option("--restart", help="remove the shards in --out and begin anew")] = False,
) -> None:
    """Write everybody's top k as Parquet. An interrupted run goes on when the same command is given again."""
    from recsys.batch import read_users, run_batch
    from recsys.data.requests import read_requests
    from recsys.profiles.versions import open_store
    from recsys.registry import open_bundle
    from recsys.settings import load_settings

    settings = load_settings()
    opened = open_bundle(bundle, settings)
    chosen = read_users(users, opened, skip_unknown=skip_unknown)
    opened = opened.heeding(open_store(settings.state_uri), chosen.ids)
    asked = read_requests(requests, {str(user): user for user in chosen.ids}) if requests is not None else {}
    try:
        report = run_batch(
            opened,
            chosen.ids,
            k=min(USUAL, len(opened.catalog)) if k is None else k,
            out=out,
            rerank_users=rerank_users,
            shard_size=shard_size,
            restart=restart,
            requests=asked,
        )
    except KeyboardInterrupt:
        print(f"stopped: {out} holds whole shards only; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    if k is None and len(opened.catalog) < USUAL:
        print(f"note: the catalog holds {counted(len(opened.catalog), 'item')}: no user gets {USUAL}", file=sys.stderr)
    _show(report, chosen)


def _show(report: "BatchReport", chosen: "UserList") -> None:
    from rich.console import Console

    notes = []
    if report.written:
        notes.append(f"this run wrote {report.written} users in {report.seconds:.1f} s")
        notes.append(f"{report.written / report.seconds:.0f} users/s")
    else:
        notes.append("everything was there already")
    if report.not_reranked:
        notes.append(
            f"{report.not_reranked} users keep the candidates' order because the reranker failed on them;"
            " the same command tries them again"
        )
    if report.requests:
        notes.append(f"{report.requests - report.unread} of {report.requests} requests in words were read")
    if report.empty:
        notes.append(f"{report.empty} users got no item")
    if chosen.repeated:
        notes.append(f"{chosen.repeated} repeated ids counted once")
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{report.users} users ({report.reranked} reranked), {report.rows} rows, {report.shards} shards: "
        f"{report.out}/part-*.parquet\n{'; '.join(notes)}",
        markup=False,
    )
    if chosen.unknown:
        some = ", ".join(f"'{name}' (line {line})" for line, name in chosen.unknown[:SHOWN])
        more = f" and {len(chosen.unknown) - SHOWN} more" if len(chosen.unknown) > SHOWN else ""
        console.print(f"left out, unknown to the log: {some}{more}", markup=False)


def serve(
    bundle: BundleOption,
    host: Annotated[
        str, typer.Option(help="address to listen on; anything but 127.0.0.1 opens it to others")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
) -> None:
    """Answer POST /v1/rank over HTTP, by the same recommender as batch. Ctrl-C ends it.

    What users change in their profiles meanwhile (recsys profile edit) counts from their next request on.
    """
    from recsys.profiles.versions import open_store
    from recsys.registry import open_bundle
    from recsys.serve.app import claim_port, create_app, run
    from recsys.settings import load_settings

    settings = load_settings()
    with claim_port(host, port) as sock:
        app = create_app(open_bundle(bundle, settings), open_store(settings.state_uri))
        address = f"[{host}]" if ":" in host else host
        print(f"serving on http://{address}:{sock.getsockname()[1]} (API: /docs; Ctrl-C ends)", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("note: no authentication; whoever reaches this address can ask", file=sys.stderr)
        run(app, sock)
