"""`recsys forget`: users leave the bundle, the profile store and the recorded answers of language models."""

from pathlib import Path
from typing import Annotated

import typer


def forget(
    user: Annotated[list[str], typer.Option(help="a user id; may be given several times")],
    bundle: Annotated[Path | None, typer.Option(help="the folder of a bundle that holds their events")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="folder of recorded LM answers (answers.sqlite); by default the cache's")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove users' events and LM texts from a bundle, their profiles and edits from the store (RECSYS_STATE_URI), and
    what language models were asked and answered about them from the cache. It cannot be taken back.

    Their ids are kept as salted hashes, so that no later import or training takes them up again.
    """
    from recsys import erasure
    from recsys.errors import SpecError
    from recsys.profiles.versions import open_store
    from recsys.settings import load_settings

    if not all(name.strip() for name in user):
        raise SpecError("--user: the id is empty")
    settings = load_settings()
    if replay is not None and not (replay / "answers.sqlite").is_file():
        raise SpecError(f"--replay {replay}: holds no recorded answers (answers.sqlite)")
    replay = replay or settings.cache_dir / "replay"
    where = [str(bundle)] if bundle else []
    where += ["the profile store", *(["recorded answers"] if replay.exists() else [])]
    if not yes:
        typer.confirm(f"Remove {', '.join(user)} from {', '.join(where)} for good?", abort=True)
    gone = erasure.forget(
        ids_of(user), bundle=bundle, store=open_store(settings.state_uri), replay=replay if replay.exists() else None
    )
    typer.echo(
        f"removed: {gone.events} events and {gone.texts} texts of the bundle, {gone.rows} profiles and edits, "
        f"{gone.answers} recorded answers"
    )
    if gone == erasure.Erased():
        typer.echo("nothing of them was there: is the id right? It is recorded as erased all the same")
    if bundle is None:
        typer.echo("no bundle was named: what bundles hold of them is still there (--bundle)")
    typer.echo(
        "still to do: sums over many users and learned weights go with the next training; raw data, registered "
        "bundles, batch output, reports and audits, backups and running servers are their keepers' to clear"
    )


def ids_of(users: list[str]) -> list[str | int]:
    """Both kinds of id that a text may be: stores tell 17 from "17"."""
    numbers = [int(user) for user in users if user.lstrip("-").isdecimal() and str(int(user)) == user]
    return [*users, *numbers]
