"""`recsys profile` and `recsys forget`, and that every door keeps to what users changed."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from doors import real_bundle
from typer.testing import CliRunner, Result

from recsys.bundle import load
from recsys.cli import app
from recsys.data.ingest import Dataset
from recsys.errors import RecsysError, SpecError
from recsys.lm.replay import ReplayLM, ScriptedLM
from recsys.profiles.edits import Edit
from recsys.profiles.versions import open_store
from recsys.serve.rank import Ranker, RankRequest
from recsys.settings import Settings

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def fitted(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_bundle(tmp_path_factory.mktemp("profile"), tiny).path


@pytest.fixture
def recsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line beside a store and a cache of its own."""
    monkeypatch.setenv("RECSYS_STATE_URI", f"sqlite:///{tmp_path}/state.db")
    monkeypatch.setenv("RECSYS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, fails: bool = False) -> Result:
        done = CliRunner().invoke(app, ["--quiet", *map(str, arguments)])
        assert (done.exception is not None) == fails, done.output
        if fails:
            assert isinstance(done.exception, RecsysError | SystemExit), done.exception
        return done

    return run


@pytest.fixture(scope="module")
def user(tiny: Dataset) -> str:
    """Who has chosen most."""
    counts = tiny.log.frame.group_by("user_id").len().sort("len", "user_id", descending=[True, False])
    return str(counts["user_id"][0])


def slate(done: Result) -> list[str]:
    return [line.split("│")[2].strip() for line in done.output.splitlines() if line.startswith("│")]


def genre(fitted: Path, recsys: Run, user: str) -> str:
    """The genre that the user's slate has most of."""
    bundle = load(fitted, Settings())
    items = bundle.recommender.recommend(bundle.queries([user]), 10).frame
    held = items.join(bundle.catalog.frame, on="item_id")["genres"].list.explode()
    return str(held.value_counts(sort=True, name="n").sort("n", "genres", descending=[True, False])["genres"][0])


def test_a_profile_is_shown_with_what_it_rests_on(fitted: Path, recsys: Run, user: str, tmp_path: Path) -> None:
    plain = recsys("profile", "show", "--bundle", fitted, "--user", user).output
    assert "written by the template" in plain
    assert "rests on the user's own choices" in plain
    whole = recsys("profile", "show", "--bundle", fitted, "--user", user, "--evidence").output
    assert whole.startswith(plain)
    assert "claim: events|n=" in whole
    assert "anchors" in whole
    assert not (tmp_path / "state.db").exists(), "looking writes nothing"


def test_an_edit_is_told_changes_the_slate_and_can_be_taken_back(fitted: Path, recsys: Run, user: str) -> None:
    value = genre(fitted, recsys, user)
    before = recsys("recommend", "--bundle", fitted, "--user", user).output
    told = recsys("profile", "edit", "--bundle", fitted, "--user", user, "--forget", f"genres={value.upper()}").output
    assert "does not count on" in told
    assert "You asked us not to count on" in told
    after = recsys("recommend", "--bundle", fitted, "--user", user).output
    assert "You asked us not to count on" in after
    genres = dict(
        load(fitted, Settings()).catalog.frame.select(pl.col("item_id").cast(pl.String), "genres").iter_rows()
    )
    assert (
        any(value in genres[item] for item in slate(recsys("recommend", "--bundle", fitted, "--user", user))) is False
    )
    assert slate(recsys("recommend", "--bundle", fitted, "--user", user)) != before
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", f"genres={value}")
    assert recsys("recommend", "--bundle", fitted, "--user", user).output == before


def test_a_difference_is_told_in_words(fitted: Path, recsys: Run, user: str) -> None:
    first = recsys("profile", "diff", "--bundle", fitted, "--user", user)
    assert "halfway through the history" in first.output
    assert "more choice" in first.output or "more rating" in first.output
    recsys("profile", "save", "--bundle", fitted)
    assert "nothing that the profile would say" in recsys("profile", "diff", "--bundle", fitted, "--user", user).output
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--say", "nothing sad")
    assert 'you told us "nothing sad"' in recsys("profile", "diff", "--bundle", fitted, "--user", user).output
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", "nothing sad")
    assert 'you took back "nothing sad"' in recsys("profile", "diff", "--bundle", fitted, "--user", user).output
    fails = recsys("profile", "diff", "--bundle", fitted, "--user", user, "--from", -1, fails=True)
    assert "no profile was kept as of -1" in str(fails.exception)


def test_where_none_was_kept_profiles_are_worked_out_as_they_were(
    fitted: Path, recsys: Run, user: str, tmp_path: Path
) -> None:
    bundle = load(fitted, Settings())
    times = bundle.queries([user]).frame["times"][0]
    third, late = times[len(times) // 3], times[-3]
    since = int((times <= third).sum())
    both = recsys("profile", "diff", "--bundle", fitted, "--user", user, "--from", third, "--to", late).output
    assert f"as of {third}, worked out from the history" in both
    assert re.search(rf"from .*\b{third}\b.* to .*\b{late}\b", both)
    more = int((times <= late).sum()) - since
    assert re.search(rf"- {more} more (choice|rating)s?\n", both)
    before = recsys("profile", "diff", "--bundle", fitted, "--user", user, "--from", -5, "--to", -5).output
    assert "nothing that the profile would say" in before
    assert not (tmp_path / "state.db").exists()


def test_after_changes_and_withdrawals_the_last_one_kept_is_compared(fitted: Path, recsys: Run, user: str) -> None:
    edit = ("profile", "edit", "--bundle", fitted, "--user", user)
    recsys(*edit, "--pin", "genres=Horror")
    recsys(*edit, "--withdraw", "horror")
    recsys(*edit, "--say", "hello")
    told = recsys("profile", "diff", "--bundle", fitted, "--user", user).output
    assert 'you told us "hello"' in told
    assert "horror" not in told.lower(), "that was taken back before the last one was kept"


def test_an_edit_counts_though_an_earlier_one_bears_a_later_time(
    fitted: Path, recsys: Run, user: str, tmp_path: Path
) -> None:
    """As it is once the youngest events were forgotten, or beside the bundle of a shorter log."""
    bundle = load(fitted, Settings())
    key = bundle.queries([user]).frame["user_id"][0]
    store = open_store(f"sqlite:///{tmp_path}/state.db")
    store.edit(key, Edit(bundle.now + 500, "pin", "genres", "Horror"))
    assert "count on horror" in recsys("profile", "show", "--bundle", fitted, "--user", user).output
    told = recsys("profile", "edit", "--bundle", fitted, "--user", user, "--forget", "horror").output
    assert "You asked us not to count on horror" in told
    assert "You asked us to count on" not in told
    assert store.edits([key])["at"].to_list() == [bundle.now + 500, bundle.now + 501]


def test_what_the_catalog_has_lost_since_can_be_taken_back(
    fitted: Path, recsys: Run, user: str, tmp_path: Path
) -> None:
    key = load(fitted, Settings()).queries([user]).frame["user_id"][0]
    store = open_store(f"sqlite:///{tmp_path}/state.db")
    for attribute in ("genres", "studio"):
        store.edit(key, Edit(0, "pin", attribute, "Zeppelins"))
    two = recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", "zeppelins", fails=True)
    assert "no value that this catalog tells apart" in str(two.exception), "which of the two is not said"
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", "Studio = zeppelins")
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", "zeppelins")
    assert "eppelins" not in recsys("profile", "show", "--bundle", fitted, "--user", user).output


def test_forgetting_says_where_nothing_was_found(fitted: Path, recsys: Run, user: str, tmp_path: Path) -> None:
    said = recsys("forget", "--user", "nobody", "--yes").output
    assert "nothing of them was there" in said
    assert "no bundle was named" in said
    none = recsys("forget", "--user", user, "--replay", tmp_path / "empty", "--yes", fails=True)
    assert "holds no recorded answers" in str(none.exception)
    lm = ReplayLM(ScriptedLM(), tmp_path / "answers")
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--say", "zeppelins and brimstone")
    lm.generate(["They said: zeppelins and brimstone", "They said nothing"])
    said = recsys("forget", "--user", user, "--replay", tmp_path / "answers", "--yes").output
    assert "1 recorded answers" in said
    assert "nothing of them was there" not in said


def test_everybodys_profile_is_kept_once(fitted: Path, recsys: Run, tmp_path: Path) -> None:
    for _ in range(2):
        recsys("profile", "save", "--bundle", fitted)
    store = open_store(f"sqlite:///{tmp_path}/state.db")
    bundle = load(fitted, Settings())
    users = bundle.log.frame["user_id"].unique(maintain_order=True)
    now = bundle.recommender.profiles.as_of(bundle.queries(users.to_list())).frame
    assert store.as_of(users, bundle.now)["text"].to_list() == now["text"].to_list()
    assert all(len(store.versions(one)) == 1 for one in users)


def test_a_batch_after_an_edit_is_another_run(fitted: Path, recsys: Run, user: str, tmp_path: Path) -> None:
    value, out = genre(fitted, recsys, user), tmp_path / "out"
    recsys("batch", "--bundle", fitted, "--out", out)
    recsys("batch", "--bundle", fitted, "--out", out)
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--forget", f"genres={value}")
    again = recsys("batch", "--bundle", fitted, "--out", out, fails=True)
    assert "holds shards of another run (edits differ)" in str(again.exception)
    recsys("batch", "--bundle", fitted, "--out", tmp_path / "new")
    rows = pl.read_parquet(tmp_path / "new" / "part-*.parquet").filter(pl.col("user_id").cast(pl.String) == user)
    assert rows["item_id"].cast(pl.String).to_list() == slate(recsys("recommend", "--bundle", fitted, "--user", user))
    assert json.loads((tmp_path / "new" / "_run.json").read_text())["edits"] is not None
    assert "edits" in json.loads((out / "_run.json").read_text())


def test_the_endpoint_keeps_to_an_edit_from_the_next_request_on(
    fitted: Path, recsys: Run, user: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = genre(fitted, recsys, user)
    ranker = Ranker.of(load(fitted, Settings()), open_store(f"sqlite:///{tmp_path}/state.db"))
    bundle, request = ranker.bundle, RankRequest(user_id=user)
    carriers = set(bundle.catalog.frame.filter(pl.col("genres").list.contains(value))["item_id"])
    before = ranker.rank(request)
    assert carriers & {item.item_id for item in before.items}
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--forget", f"genres={value}")
    assert not carriers & {item.item_id for item in ranker.rank(request).items}
    # A store that cannot be read costs the edits, not the answer.
    (tmp_path / "state.db").write_bytes(b"no database at all" * 100)
    assert ranker.rank(request) == before
    assert "is not heeded" in caplog.text


def test_an_edit_that_makes_no_sense_costs_no_answer(
    fitted: Path, user: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a foreign writer may put it into the database."""
    address = f"sqlite:///{tmp_path}/state.db"
    bundle = load(fitted, Settings())
    store, key = open_store(address), bundle.queries([user]).frame["user_id"][0]
    store.edit(key, Edit(0, "say", text="hello"))
    with closing(sqlite3.connect(tmp_path / "state.db")) as database, database:
        database.execute("update profile_edits set action = 'love'")
    ranker, request = Ranker.of(bundle, store), RankRequest(user_id=user)
    assert ranker.rank(request) == Ranker.of(bundle).rank(request)
    assert "none of pin, forget, say, withdraw" in caplog.text


def test_who_is_forgotten_is_in_no_file_and_in_no_later_import_and_training(
    fitted: Path, recsys: Run, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(fitted, bundle)
    recsys("profile", "save", "--bundle", bundle)
    recsys("profile", "edit", "--bundle", bundle, "--user", user, "--say", "zeppelins and brimstone")
    store = open_store(f"sqlite:///{tmp_path}/state.db")
    key = load(bundle, Settings()).queries([user]).frame["user_id"][0]
    assert store.versions(key)
    stopped = CliRunner().invoke(app, ["forget", "--bundle", str(bundle), "--user", user], input="n\n")
    assert stopped.exit_code == 1
    assert store.versions(key)
    said = recsys("forget", "--bundle", bundle, "--user", user, "--yes").output
    assert "removed: " in said
    assert "still to do" in said
    assert not store.versions(key)
    assert not len(store.edits([key]))
    assert b"brimstone" not in (tmp_path / "state.db").read_bytes()
    assert key not in load(bundle, Settings()).log.frame["user_id"]
    gone = recsys("profile", "show", "--bundle", bundle, "--user", user, fails=True)
    assert "is not in the log of bundle" in str(gone.exception)
    spec = tmp_path / "plain.toml"
    spec.write_text(
        'name = "p"\n[generator]\nkind = "popular"\n[lm]\nkind = "none"\n[reranker]\nkind = "identity"\n', "utf-8"
    )
    tiny = Path(__file__).parents[1] / "data" / "tiny"
    whole, less = tmp_path / "whole", tmp_path / "less"
    imported = recsys("data", "import", tiny, less).output
    assert "note: 1 user left out: their erasure is recorded" in imported
    monkeypatch.setenv("RECSYS_STATE_URI", f"sqlite:///{tmp_path}/other.db")
    assert "left out" not in recsys("data", "import", tiny, whole).output
    before, after = (pl.read_parquet(folder / "interactions.parquet") for folder in (whole, less))
    assert after.equals(before.filter(pl.col("user_id") != key))
    assert not (tmp_path / "other.db").exists()
    monkeypatch.setenv("RECSYS_STATE_URI", f"sqlite:///{tmp_path}/state.db")
    recsys("fit", tiny, "--spec", spec, "--out", tmp_path / "again")
    assert key not in load(tmp_path / "again", Settings()).log.frame["user_id"]


def test_every_edit_leaves_a_version_and_the_youngest_is_what_stands(
    fitted: Path, recsys: Run, user: str, tmp_path: Path
) -> None:
    for text in ("first", "second"):
        recsys("profile", "edit", "--bundle", fitted, "--user", user, "--say", text)
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", "first")
    store, bundle = open_store(f"sqlite:///{tmp_path}/state.db"), load(fitted, Settings())
    key = bundle.queries([user]).frame["user_id"][0]
    said = [[claim for claim in version.claims if claim.startswith("said|")] for version in store.versions(key)]
    assert said == [[], ["said|first"], ["said|first", "said|second"], ["said|second"]]
    now = bundle.heeding(store, [key]).recommender.profiles.as_of(bundle.queries([user])).frame["text"][0]
    assert store.as_of([key], 2**62)["text"].to_list() == [now]


def test_who_was_forgotten_does_not_come_back_by_an_older_bundle(
    fitted: Path, recsys: Run, user: str, tmp_path: Path
) -> None:
    recsys("forget", "--user", user, "--yes")
    done = recsys("profile", "edit", "--bundle", fitted, "--user", user, "--say", "hello", fails=True)
    assert "was forgotten" in str(done.exception)
    assert "1 were forgotten and are left out" in recsys("profile", "save", "--bundle", fitted).output
    store = open_store(f"sqlite:///{tmp_path}/state.db")
    assert not store.versions(load(fitted, Settings()).queries([user]).frame["user_id"][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one of --pin"),
        (["--pin", "genres=Horror", "--say", "x"], "give one of --pin"),
        (["--pin", "genres=Zeppelins"], "no value that this catalog tells apart; near are: "),
        (["--pin", ""], "no value that this catalog tells apart"),
        (["--say", " \n "], "--say: the text is empty"),
        (["--say", "x" * 5000], "characters"),
        (["--withdraw", "what was never said"], "was not said; the user changed: nothing"),
        (["--pin", "religion=Islam"], "of this nothing is kept of anybody"),
    ],
)
def test_an_edit_that_cannot_be_made_says_why_and_is_not_kept(
    fitted: Path, recsys: Run, user: str, tmp_path: Path, options: list[str], message: str
) -> None:
    done = recsys("profile", "edit", "--bundle", fitted, "--user", user, *options, fails=True)
    assert message in str(done.exception)
    assert not (tmp_path / "state.db").exists()


def test_a_value_that_was_not_changed_cannot_be_taken_back(fitted: Path, recsys: Run, user: str) -> None:
    value = genre(fitted, recsys, user)
    recsys("profile", "edit", "--bundle", fitted, "--user", user, "--pin", value)
    other = next(g for g in ("Comedy", "Drama", "Horror", "Western") if g != value)
    done = recsys("profile", "edit", "--bundle", fitted, "--user", user, "--withdraw", other, fails=True)
    assert isinstance(done.exception, SpecError)
    assert "the user changed: counts on" in str(done.exception)


@pytest.mark.parametrize("command", ["show", "diff", "edit"])
def test_an_unknown_user_or_bundle_is_one_line(fitted: Path, recsys: Run, command: str, tmp_path: Path) -> None:
    more = ["--say", "x"] if command == "edit" else []
    unknown = recsys("profile", command, "--bundle", fitted, "--user", "nobody here", *more, fails=True)
    assert "nobody here" in str(unknown.exception)
    missing = recsys("profile", command, "--bundle", tmp_path / "none", "--user", "1", *more, fails=True)
    assert "no bundle here" in str(missing.exception)


def test_a_store_that_is_no_store_is_said(fitted: Path, recsys: Run, user: str, tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database at all" * 100)
    done = recsys("profile", "show", "--bundle", fitted, "--user", user, fails=True)
    assert "state.db" in str(done.exception)
