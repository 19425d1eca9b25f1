import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from doors import ITEMS, USERS, FakeRecommender, fake_bundle, real_bundle

from recsys.batch import COLUMNS, SUCCESS, read_users, run_batch
from recsys.bundle import Bundle
from recsys.cli import main
from recsys.data.ingest import Dataset
from recsys.errors import DataError, ModelError, SpecError, StorageError, UnknownUserError
from recsys.lm.replay import ScriptedLM
from recsys.rerank import Fallback, Identity


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake_bundle(tmp_path / "bundle")


def rows(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "part-*.parquet")


def asked(bundle: Bundle) -> list[list[int]]:
    recommender = bundle.recommender
    assert isinstance(recommender, FakeRecommender)
    return recommender.asked


def test_the_output_holds_every_users_slate_in_the_order_of_the_list(bundle: Bundle, tmp_path: Path) -> None:
    report = run_batch(bundle, USERS, k=4, out=tmp_path / "out", shard_size=2)
    frame = rows(tmp_path / "out")
    assert tuple(frame.columns) == COLUMNS
    assert frame["user_id"].unique(maintain_order=True).to_list() == USERS
    assert frame["rank"].to_list() == [1, 2, 3, 4] * len(USERS)
    expected = bundle.recommender.recommend(bundle.queries(USERS), 4).frame
    assert frame["item_id"].to_list() == expected["item_id"].to_list()
    assert (report.users, report.rows, report.empty, report.reranked, report.shards) == (6, 24, 0, 6, 3)
    assert json.loads((tmp_path / "out" / SUCCESS).read_text())["rows"] == 24


@pytest.mark.parametrize("rerank_users", [None, 0, 3])
def test_the_size_of_a_shard_changes_no_slate(bundle: Bundle, tmp_path: Path, rerank_users: int | None) -> None:
    frames = []
    for size in (1, 2, 4, 100):
        run_batch(bundle, USERS, k=3, out=tmp_path / str(size), shard_size=size, rerank_users=rerank_users)
        frames.append(rows(tmp_path / str(size)))
    assert all(frame.equals(frames[0]) for frame in frames)


def test_rerank_users_reranks_the_first_and_says_candidates_for_the_rest(bundle: Bundle, tmp_path: Path) -> None:
    report = run_batch(bundle, USERS, k=2, out=tmp_path / "out", shard_size=2, rerank_users=3)
    served = rows(tmp_path / "out").group_by("user_id", maintain_order=True).agg(pl.col("served_by").unique())
    assert served["served_by"].to_list() == [["reranker"]] * 3 + [["candidates"]] * 3
    assert report.reranked == 3
    assert asked(bundle) == [[7, 3], [11], [5], [2, 13]]


@pytest.mark.parametrize("lm", [None, ScriptedLM()])
def test_on_a_real_bundle_shards_and_list_order_change_no_slate(
    tiny: Dataset, tmp_path: Path, lm: ScriptedLM | None
) -> None:
    real = real_bundle(tmp_path, tiny, lm)
    users = read_users("all", real).ids[:40]
    run_batch(real, users, k=5, out=tmp_path / "whole")
    run_batch(real, users[::-1], k=5, out=tmp_path / "shards", shard_size=7)
    whole, shards = (rows(tmp_path / name).sort("user_id", "rank") for name in ("whole", "shards"))
    assert whole.equals(shards)
    assert whole["user_id"].unique(maintain_order=True).to_list() == users
    assert whole["reason"].str.len_chars().min() > 0


def test_a_rerun_computes_only_the_missing_shards(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_batch(bundle, USERS, k=2, out=out, shard_size=2)
    before = rows(out)
    (out / "part-00001.parquet").unlink()
    asked(bundle).clear()
    report = run_batch(bundle, USERS, k=2, out=out, shard_size=2)
    assert asked(bundle) == [[11, 5]]
    assert report.written == 2
    assert rows(out).equals(before)


def test_a_finished_batch_is_a_rerun_of_nothing(bundle: Bundle, tmp_path: Path) -> None:
    run_batch(bundle, USERS, k=2, out=tmp_path / "out")
    asked(bundle).clear()
    report = run_batch(bundle, USERS, k=2, out=tmp_path / "out")
    assert (asked(bundle), report.written, report.rows) == ([], 0, 12)


def test_users_whom_the_reranker_failed_are_counted_and_only_they_are_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    down = fake_bundle(tmp_path / "bundle", FakeRecommender(down={7, 11, 5, 13}))
    report = run_batch(down, USERS, k=2, out=out, shard_size=2, rerank_users=5)
    assert (report.reranked, report.not_reranked) == (2, 3)  # nobody wanted the sixth user, 13, reranked
    assert json.loads((out / SUCCESS).read_text())["not_reranked"] == 3

    better = fake_bundle(tmp_path / "bundle", FakeRecommender(down={5}))
    report = run_batch(better, USERS, k=2, out=out, shard_size=2, rerank_users=5)
    assert asked(better) == [[7], [11, 5]]
    assert (report.written, report.reranked, report.not_reranked) == (3, 4, 1)

    up = fake_bundle(tmp_path / "bundle")
    report = run_batch(up, USERS, k=2, out=out, shard_size=2, rerank_users=5)
    assert (asked(up), report.written, report.not_reranked) == ([[5]], 1, 0)
    assert json.loads((out / SUCCESS).read_text())["not_reranked"] == 0
    run_batch(up, USERS, k=2, out=tmp_path / "once", shard_size=2, rerank_users=5)
    assert rows(out).equals(rows(tmp_path / "once"))


def test_a_bundle_without_a_reranker_has_nothing_to_try_again(tmp_path: Path) -> None:
    plain = fake_bundle(tmp_path / "bundle", FakeRecommender("candidates", reranker=Identity()))
    for written in (6, 0):
        report = run_batch(plain, USERS, k=2, out=tmp_path / "out")
        assert (report.written, report.reranked, report.not_reranked) == (written, 0, 0)


def test_an_outage_of_the_language_model_is_mended_by_the_same_command(tiny: Dataset, tmp_path: Path) -> None:
    real = real_bundle(tmp_path, tiny, ScriptedLM())
    users = read_users("all", real).ids[:9]
    off = replace(real, recommender=replace(real.recommender, reranker=Fallback(_Down())))
    assert run_batch(off, users, k=5, out=tmp_path / "out", shard_size=4).not_reranked == 9
    assert run_batch(real, users, k=5, out=tmp_path / "out", shard_size=4).not_reranked == 0
    run_batch(real, users, k=5, out=tmp_path / "once", shard_size=4)
    assert rows(tmp_path / "out").equals(rows(tmp_path / "once"))


@dataclass(frozen=True)
class _Down:
    """A reranker whose language model is out of reach."""

    def rerank(self, *_: Any) -> Any:
        raise ModelError("the endpoint is gone")

    def save(self, path: Path) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ModelError("the endpoint is gone")])
def test_an_interruption_leaves_whole_shards_and_the_rerun_ends_equal(tmp_path: Path, failure: BaseException) -> None:
    out = tmp_path / "out"
    broken = fake_bundle(tmp_path / "bundle", FakeRecommender(fail_on=2, failure=failure))
    with pytest.raises(type(failure)):
        run_batch(broken, USERS, k=2, out=out, shard_size=2)
    assert sorted(path.name for path in out.iterdir()) == ["_run.json", "part-00000.parquet", "part-00001.parquet"]
    whole = fake_bundle(tmp_path / "bundle")
    run_batch(whole, USERS, k=2, out=out, shard_size=2)
    assert asked(whole) == [[2, 13]]
    run_batch(whole, USERS, k=2, out=tmp_path / "once", shard_size=2)
    assert rows(out).equals(rows(tmp_path / "once"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": 3}, "k differ"),
        ({"users": USERS[:4]}, "users differ"),
        ({"users": USERS[::-1]}, "users differ"),
        ({"rerank_users": 1}, "rerank-users differ"),
        ({"shard_size": 3}, "shard-size differ"),
    ],
)
def test_another_run_refuses_to_mix_and_names_what_differs(
    bundle: Bundle, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    options: dict[str, object] = {"users": USERS, "k": 2, "shard_size": 2}
    run_batch(bundle, out=tmp_path / "out", **options)
    before = rows(tmp_path / "out")
    with pytest.raises(StorageError, match=rf"another run \({named}\); use another --out or --restart"):
        run_batch(bundle, out=tmp_path / "out", **{**options, **change})
    assert rows(tmp_path / "out").equals(before)


def test_another_bundle_refuses_to_mix_until_restart(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_batch(bundle, USERS, k=2, out=out, shard_size=1)
    other = fake_bundle(tmp_path / "other", mark="two")
    with pytest.raises(StorageError, match="bundle differ"):
        run_batch(other, USERS, k=2, out=out, shard_size=1)
    run_batch(other, USERS[:2], k=1, out=out, restart=True)
    assert rows(out)["user_id"].to_list() == USERS[:2]


def test_a_folder_with_other_things_in_it_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "part-00000.parquet").write_text("precious")
    for restart in (False, True):
        with pytest.raises(StorageError, match="not empty and holds no batch run"):
            run_batch(bundle, USERS, k=2, out=tmp_path / "mine", restart=restart)
    assert (tmp_path / "mine" / "part-00000.parquet").read_text() == "precious"
    with pytest.raises(StorageError, match="is a file"):
        run_batch(bundle, USERS, k=2, out=tmp_path / "mine" / "part-00000.parquet")


def test_a_damaged_shard_is_named(bundle: Bundle, tmp_path: Path) -> None:
    run_batch(bundle, USERS, k=2, out=tmp_path / "out", shard_size=2)
    shard = tmp_path / "out" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"part-00001\.parquet: is damaged; remove it"):
        run_batch(bundle, USERS, k=2, out=tmp_path / "out", shard_size=2)


def test_a_shard_of_other_users_is_named(bundle: Bundle, tmp_path: Path) -> None:
    run_batch(bundle, USERS, k=2, out=tmp_path / "out", shard_size=2)
    (tmp_path / "out" / "part-00001.parquet").write_bytes((tmp_path / "out" / "part-00000.parquet").read_bytes())
    with pytest.raises(StorageError, match=r"part-00001\.parquet: holds other users"):
        run_batch(bundle, USERS, k=2, out=tmp_path / "out", shard_size=2)


@pytest.mark.parametrize("k", [0, -1, len(ITEMS) + 1])
def test_k_outside_the_catalog_is_refused_before_anything_is_written(bundle: Bundle, tmp_path: Path, k: int) -> None:
    with pytest.raises(SpecError, match=f"k = {k} does not fit"):
        run_batch(bundle, USERS, k=k, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_error_and_leaves_only_whole_shards(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "part-00001.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run_batch(bundle, USERS, k=2, out=out, shard_size=2)
    assert sorted(path.name for path in out.iterdir()) == ["_run.json", "part-00000.parquet"]


def test_a_killed_run_leaves_nothing_that_a_reader_or_the_rerun_trips_over(tmp_path: Path) -> None:
    """A real process, killed by SIGTERM in the middle of a shard's computation."""
    out = tmp_path / "out"
    program = f"""
        import time
        from pathlib import Path
        from doors import USERS, FakeRecommender, fake_bundle, real_bundle
        from recsys.batch import run_batch

        class Slow(FakeRecommender):
            def recommend(self, queries, k):
                time.sleep(0.3)
                return super().recommend(queries, k)

        bundle = fake_bundle(Path("bundle"), Slow())
        run_batch(bundle, USERS, k=2, out=Path({str(out)!r}), shard_size=1)
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env=env)
    deadline = time.monotonic() + 60
    while not (out / "part-00001.parquet").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert not (out / SUCCESS).exists()
    done = len(list(out.glob("part-*.parquet")))
    assert 2 <= done < len(USERS)
    (out / ".0badc0de.part-00005.parquet").write_text("half a shard, as SIGKILL leaves it")
    bundle = fake_bundle(tmp_path / "bundle")
    run_batch(bundle, USERS, k=2, out=out, shard_size=1)
    assert len(asked(bundle)) == len(USERS) - done
    assert pl.read_parquet(out / "*.parquet").height == 2 * len(USERS)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `recsys ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["recsys", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_says_what_lies_where_and_what_was_left_out(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recsys.registry.open_bundle", lambda text, settings: bundle)
    users, out = tmp_path / "users.txt", tmp_path / "out"
    users.write_text("5\nnobody\n3\n5\n")
    options = ["batch", "--bundle", "any", "--out", str(out), "--k", "2", "--users", str(users), "--rerank-users", "1"]
    assert command(monkeypatch, *options) == 1
    assert "error: " in (err := capsys.readouterr().err)
    assert "users.txt line 2: user 'nobody'" in err
    assert not out.exists()
    assert command(monkeypatch, *options, "--skip-unknown") == 0
    said = capsys.readouterr().out
    assert f"2 users (1 reranked), 4 rows, 1 shards: {out}/part-*.parquet" in said
    assert "1 repeated ids counted once" in said
    assert "left out, unknown to the log: 'nobody' (line 2)" in said


def test_the_command_says_how_many_were_not_reranked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    down = fake_bundle(tmp_path / "bundle", FakeRecommender(down={7, 2}))
    monkeypatch.setattr("recsys.registry.open_bundle", lambda text, settings: down)
    assert command(monkeypatch, "batch", "--bundle", "any", "--out", str(tmp_path / "out"), "--k", "2") == 0
    said = capsys.readouterr().out
    assert "6 users (4 reranked)" in said
    assert "2 users keep the candidates' order because the reranker failed on them; the same command tries" in said


def test_without_k_a_small_catalog_is_enough_and_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = fake_bundle(tmp_path / "bundle", FakeRecommender(items=ITEMS[:4]))
    monkeypatch.setattr("recsys.registry.open_bundle", lambda text, settings: small)
    options = ["batch", "--bundle", "any", "--out", str(tmp_path / "out")]
    assert command(monkeypatch, *options) == 0
    assert capsys.readouterr().err == "note: the catalog holds 4 items: no user gets 10\n"
    assert set(rows(tmp_path / "out")["user_id"]) == set(small.log.frame["user_id"])
    assert command(monkeypatch, *options, "--k", "10") == 1
    assert "k = 10 does not fit: the catalog holds 4 items" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = fake_bundle(tmp_path / "bundle", FakeRecommender(fail_on=2, failure=KeyboardInterrupt()))
    monkeypatch.setattr("recsys.registry.open_bundle", lambda text, settings: broken)
    assert command(monkeypatch, "batch", "--bundle", "any", "--out", str(tmp_path / "out"), "--k", "2") == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_users_all_are_the_logs_users(bundle: Bundle) -> None:
    assert read_users("all", bundle).ids == sorted(USERS)


@pytest.mark.parametrize("name", ["users.txt", "users.csv", "users.parquet"])
def test_a_user_file_is_read_in_order_and_repeats_count_once(bundle: Bundle, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frame = pl.DataFrame({"other": ["a", "b", "c", "d"], "user_id": [5, 3, 5, 13]})
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".csv":
        frame.write_csv(path)
    else:
        path.write_text("5\n\n 3 \r\n5\n13")
    users = read_users(str(path), bundle)
    assert (users.ids, users.repeated, users.unknown) == ([5, 3, 13], 1, [])


@pytest.mark.parametrize(("name", "line"), [("users.txt", 3), ("users.csv", 4), ("users.parquet", 3)])
def test_an_unknown_user_is_named_with_its_line_or_skipped_and_reported(
    bundle: Bundle, tmp_path: Path, name: str, line: int
) -> None:
    path = tmp_path / name
    frame = pl.DataFrame({"user_id": ["5", "3", "nobody", "13", "99"]})
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".csv":
        frame.write_csv(path)
    else:
        path.write_text("\n".join(frame["user_id"]))
    with pytest.raises(UnknownUserError, match=rf"{name} line {line}: user 'nobody' .*2 of 5 .*--skip-unknown"):
        read_users(str(path), bundle)
    users = read_users(str(path), bundle, skip_unknown=True)
    assert users.ids == [5, 3, 13]
    assert users.unknown == [(line, "nobody"), (line + 2, "99")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.txt", b"", "holds no user ids"),
        ("users.txt", b"nobody", "holds no user id that the bundle's log knows"),
        ("users.txt", b"5\n\xff\xfe", "line 2: is not UTF-8"),
        ("users.csv", b"id\n5\n", "column 'user_id' is missing"),
        ("users.csv", b"", "cannot be read as a user list"),
        ("users.csv", b"user_id\n\xff\n", "not UTF-8|cannot be read"),
        ("users.parquet", b"not parquet", "cannot be read as a user list"),
        ("missing.txt", None, "No such file"),
        ("missing.parquet", None, "No such file"),
    ],
)
def test_a_bad_user_file_is_one_line_that_names_it(
    bundle: Bundle, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_users(str(tmp_path / name), bundle, skip_unknown=True)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
