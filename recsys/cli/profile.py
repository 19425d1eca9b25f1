"""`recsys profile`: what a profile says and what it rests on, what changed in it, and what users change themselves."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from recsys.bundle import Bundle
    from recsys.profiles.edits import Edit, Edits
    from recsys.profiles.evidence import Evidence
    from recsys.profiles.source import EvidenceProfiles
    from recsys.profiles.versions import ProfileStore, Version
    from recsys.tables import Queries

app = typer.Typer(help="Profiles in words: show, edit, keep, compare.", no_args_is_help=True)

BundleOption = Annotated[str, typer.Option(help="a bundle's folder, or models:/NAME@ALIAS")]
UserOption = Annotated[str, typer.Option(help="a user id of the bundle's log")]


@app.command()
def show(
    bundle: BundleOption,
    user: UserOption,
    evidence: Annotated[bool, typer.Option("--evidence", help="also what it rests on, with counts and items")] = False,
) -> None:
    """Show a user's profile, and what the user changed in it."""
    from rich.console import Console

    from recsys.profiles.edits import explain

    opened, _ = _opened(bundle, user)
    profiles, queries = _profiles(opened), opened.queries([user])
    row = profiles.as_of(queries).frame.row(0, named=True)
    console = Console(highlight=False)
    console.print(row["text"], markup=False)
    written = "by the template" if row["model_id"] == "template" else f"by {row['model_id']} ({row['prompt_id']})"
    rests = {"user": "the user's own choices", "persona": "what people like the user like", "global": "everybody's"}
    console.print(f"\nwritten {written}, as of {_moment(opened, row['as_of'])}; rests on {rests[row['level']]}")
    for edit in _standing(profiles.edits, queries):
        console.print(f"- {explain(edit, profiles.listener)}", markup=False)
    if evidence:
        (found,) = profiles.evidence(queries)
        console.print(_table(found, opened, profiles))
        for claim in row["claims"]:
            console.print(f"claim: {claim}", markup=False)


@app.command()
def edit(
    bundle: BundleOption,
    user: UserOption,
    pin: Annotated[str | None, typer.Option(help="count on a value: genres=Horror, or horror")] = None,
    forget: Annotated[str | None, typer.Option(help="do not count on a value, and show fewer of it")] = None,
    not_disliked: Annotated[str | None, typer.Option(help="a value that is not disliked, whatever ratings say")] = None,
    say: Annotated[str | None, typer.Option(help="something in the user's own words")] = None,
    withdraw: Annotated[str | None, typer.Option(help="take back: a value, or what was said")] = None,
) -> None:
    """Change a user's profile: it says so first, slates keep to it from now on, and what it was is kept."""
    from dataclasses import replace

    from rich.console import Console

    from recsys.errors import SpecError
    from recsys.profiles.edits import explain

    given = {
        "pin": pin,
        "forget": forget,
        "not_disliked": not_disliked,
        "say": say,
        "withdraw": withdraw,
    }
    chosen = {name: text for name, text in given.items() if text is not None}
    if len(chosen) != 1:
        raise SpecError("give one of --pin, --forget, --not-disliked, --say and --withdraw")
    ((kind, text),) = chosen.items()
    opened, store = _opened(bundle, user)
    profiles, queries = _profiles(opened), opened.queries([user])
    user_id = queries.frame["user_id"][0]
    if store.buried([user_id])[0]:
        raise SpecError(f"user '{user}' was forgotten (recsys forget): nothing is kept of them any more")
    at = max([opened.now, *(int(before) + 1 for before in store.edits([user_id])["at"])])
    made = _edit(kind, text, profiles, _standing(profiles.edits, queries), at)
    (now,) = profiles.versions(queries)
    if not store.versions(user_id):
        store.put([now])
    store.edit(user_id, made)
    (after,) = _profiles(opened.heeding(store, [user])).versions(queries)
    store.put([replace(after, as_of=at)])  # by its own moment: each edit leaves a version
    console = Console(highlight=False)
    console.print(f"User {user} {explain(made, profiles.listener)}.\n", markup=False)
    console.print(after.text, markup=False)


@app.command()
def save(
    bundle: BundleOption,
    users: Annotated[str, typer.Option(help="all, or a file: one id per line, or CSV or Parquet with user_id")] = "all",
) -> None:
    """Keep everybody's profile as it is now (RECSYS_STATE_URI), so that later ones can be compared with it."""
    import polars as pl
    from tqdm import tqdm

    from recsys.batch import read_users
    from recsys.data.counted import counted
    from recsys.errors import SpecError
    from recsys.profiles.versions import open_store
    from recsys.registry import open_bundle
    from recsys.settings import load_settings

    settings = load_settings()
    opened, store = open_bundle(bundle, settings), open_store(settings.state_uri)
    listed = pl.Series(read_users(users, opened).ids)
    chosen = listed.filter(~store.buried(listed)).to_list()
    if not chosen:
        raise SpecError("all of these users were forgotten (recsys forget)")
    opened = opened.heeding(store, chosen)
    with tqdm(total=len(chosen), desc="profiles", unit="user", disable=None) as bar:
        for some in opened.queries(chosen).batches(1000):
            store.put(_profiles(opened).versions(some))
            bar.update(len(some))
    left = f"; {len(listed) - len(chosen)} were forgotten and are left out" if len(chosen) < len(listed) else ""
    typer.echo(f"{counted(len(chosen), 'profile')} kept{left}")


@app.command()
def diff(
    bundle: BundleOption,
    user: UserOption,
    since: Annotated[int | None, typer.Option("--from", help="as of this moment, on the log's clock")] = None,
    until: Annotated[int | None, typer.Option("--to", help="as of this moment; now by default")] = None,
) -> None:
    """Say in words what changed in a profile between two that were kept, or since the last other one that was.

    Where none was kept, the profile is worked out as it was at --from, or halfway through the history.
    """
    from rich.console import Console

    from recsys.profiles.diff import claims_of_version
    from recsys.profiles.diff import diff as compare

    opened, store = _opened(bundle, user)
    profiles, queries = _profiles(opened), opened.queries([user])
    (now,) = profiles.versions(queries)
    kept = store.versions(queries.frame["user_id"][0])
    if kept:
        others = [version for version in kept if version.claims != now.claims]
        old = (others or kept)[-1] if since is None else _as_of(opened, kept, since)
        new = now if until is None else _as_of(opened, kept, until)
    else:
        old, new = _earlier(profiles, queries, since), now if until is None else _earlier(profiles, queries, until)
        how = "halfway through the history" if since is None else f"as of {since}, worked out from the history"
        print(f"note: no profile was kept (recsys profile save); compared is the one {how}", file=sys.stderr)
    titles = {str(item): title for item, title in opened.catalog.frame.select("item_id", "title").iter_rows()}
    noun = "rating" if '"rated":true' in new.evidence else "choice"
    lines = compare(claims_of_version(old), claims_of_version(new), titles=titles, noun=noun)
    console = Console(highlight=False)
    console.print(f"from {_moment(opened, old.as_of)} to {'now' if new is now else _moment(opened, new.as_of)}:")
    for line in lines or ["nothing that the profile would say"]:
        console.print(f"- {line}", markup=False)


def _opened(bundle: str, user: str) -> "tuple[Bundle, ProfileStore]":
    """The bundle beside what the user changed, and the store of that."""
    from recsys.profiles.versions import open_store
    from recsys.registry import open_bundle
    from recsys.settings import load_settings

    settings = load_settings()
    opened, store = open_bundle(bundle, settings), open_store(settings.state_uri)
    opened.queries([user])
    return opened.heeding(store, [user]), store


def _profiles(bundle: "Bundle") -> "EvidenceProfiles":
    from recsys.profiles.source import EvidenceProfiles

    assert isinstance(bundle.recommender.profiles, EvidenceProfiles)  # there is no other kind in a bundle
    return bundle.recommender.profiles


def _standing(edits: "Edits", queries: "Queries") -> "tuple[Edit, ...]":
    return next(iter(edits.as_of(queries).values()), ())


def _edit(kind: str, text: str, profiles: "EvidenceProfiles", standing: "tuple[Edit, ...]", at: int) -> "Edit":
    """The edit that an option asks for. Errors: `SpecError`."""
    from recsys.data.requests import clean_request
    from recsys.errors import SpecError
    from recsys.profiles.edits import NO_DISLIKE, OWN_PACE, Edit, explain, value_of
    from recsys.profiles.privacy import scrub

    if kind in ("say", "withdraw"):
        words = scrub(clean_request(text))
        if not words:
            raise SpecError(f"--{kind}: the text is empty")
        if kind == "say":
            return Edit(at, "say", text=words)
        said = [edit for edit in standing if edit.action == "say" and edit.text.casefold() == words.casefold()]
        if said:
            return Edit(at, "withdraw", text=said[0].text)
        # By the names that it was changed under, too: the catalog may have lost the value since.
        named = [edit for edit in standing if edit.value and _is_named(edit, text)]
        if len(named) == 1:
            return Edit(at, "withdraw", *named[0].of)
        there = "; ".join(explain(edit, profiles.listener) for edit in standing) or "nothing"
        if not any(edit.value for edit in standing):
            raise SpecError(f"--withdraw: '{text}' was not said; the user changed: {there}")
    value = value_of(text, profiles.listener, profiles.config.sensitive)
    if value == OWN_PACE and kind not in ("forget", "withdraw"):
        raise SpecError(f"--{kind.replace('_', '-')}: how often somebody comes back can only be forgotten")
    if kind == "withdraw":
        if not any(edit.of == value for edit in standing):
            raise SpecError(f"--withdraw: nothing was changed of '{text}'; the user changed: {there}")
        return Edit(at, "withdraw", *value)
    if kind == "not_disliked":
        return Edit(at, "forget", *value, NO_DISLIKE)
    return Edit(at, "pin" if kind == "pin" else "forget", *value)


def _is_named(edit: "Edit", text: str) -> bool:
    """Whether "attribute=value", or the value alone, is what the edit is about; in any case."""
    attribute, equals, value = (part.strip().casefold() for part in text.partition("="))
    if not equals:
        return attribute == edit.value.casefold()
    return (attribute, value) == (edit.attribute.casefold(), edit.value.casefold())


def _as_of(bundle: "Bundle", kept: "list[Version]", moment: int | None) -> "Version":
    """The youngest that is no younger than the moment. Errors: `SpecError` where there is none."""
    from recsys.errors import SpecError

    fit = [version for version in kept if moment is None or version.as_of <= moment]
    if not fit:
        there = ", ".join(_moment(bundle, version.as_of) for version in kept[:10]) or "none"
        raise SpecError(f"no profile was kept as of {moment}; there are those as of: {there}")
    return fit[-1]


def _earlier(profiles: "EvidenceProfiles", queries: "Queries", at: int | None) -> "Version":
    """The profile of a query as it was at a moment; halfway through the history where none is named."""
    import polars as pl

    from recsys.tables import Queries

    times = queries.frame["times"][0]
    events = len(times) // 2 if at is None else int((times <= at).sum())
    moment = at if at is not None else times[events - 1] if events else 0
    cut = queries.frame.with_columns(
        pl.col("history", "weights", "times").list.head(events), at=pl.lit(moment, dtype=pl.Int64)
    )
    return profiles.versions(Queries(cut))[0]


def _moment(bundle: "Bundle", at: int) -> str:
    """A date where the log has times."""
    from datetime import UTC, datetime

    if not _has_dates(bundle):
        return f"event {at}"
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d} ({at})"


def _has_dates(bundle: "Bundle") -> bool:
    return bool(bundle.manifest["data"].get("clock") == "time")


def _table(found: "Evidence", bundle: "Bundle", profiles: "EvidenceProfiles") -> "Table":
    """What is known, part by part, the strongest first."""
    from rich.markup import escape
    from rich.table import Table

    from recsys.data.counted import counted
    from recsys.data.words import article_first
    from recsys.profiles.evidence import TRAITS

    titles: Mapping[object, str] = dict(bundle.catalog.frame.select("item_id", "title").iter_rows())
    unnamed = set(profiles.known.vocab.decode(profiles.known.unnamed.to_numpy()))
    pace = "" if found.pace is None or not _has_dates(bundle) else f", {found.pace:.1f} a week"
    columns = ("part", "what", "times the usual", "events", "for example")
    table = Table(*columns, title=f"{counted(found.events, 'event')}{pace}", title_justify="left")
    for part in TRAITS:
        for trait in getattr(found, part):
            name = profiles.phrases.facet(trait.attribute, trait.value, trait.kind)
            some = ", ".join(article_first(titles.get(item, str(item))) for item in trait.items if item not in unnamed)
            count = counted(trait.n, "day") if part == "rhythm" else str(trait.n)
            table.add_row(part, escape(name), f"{trait.lift:.1f}", count, escape(some))
    for part in ("anchors", "latest"):
        for item in getattr(found, part):
            table.add_row(part, escape(article_first(item.title)), "", "", escape(str(item.item_id)))
    return table
