"""The command line in processes of its own: what it writes and shows, and one line for everything that goes wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
SPECS = ROOT / "pipelines" / "specs"

# Everything that the line has but for models: fits in a second, and stands where a test is about files and messages.
PLAIN = """
name = "plain"
depth = 30
[generator]
kind = "fusion"
sources = [{ kind = "transitions" }, { kind = "popular" }]
[lm]
kind = "none"
[reranker]
kind = "identity"
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recsys(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command line in a process of its own, with an empty cache and no network."""
    cache = tmp_path_factory.mktemp("empty-cache")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}
    env |= {"RECSYS_CACHE_DIR": str(cache), "RECSYS_OFFLINE": "1", "NO_COLOR": "1"}

    def run(
        *arguments: object, largest_file: int | None = None, columns: int = 200
    ) -> subprocess.CompletedProcess[str]:
        code = "from recsys.cli import main; main()"
        if largest_file is not None:
            code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({largest_file}, {largest_file})); {code}"
        return subprocess.run(
            [sys.executable, "-c", code, "--quiet", *map(str, arguments)],
            cwd=ROOT,
            env=env | {"COLUMNS": str(columns)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def plain_spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "plain.toml"
    path.write_text(PLAIN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain_bundle(recsys: Run, plain_spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "bundle"
    done = recsys("fit", "data/tiny", "--spec", plain_spec, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 1 and one line on stderr that names what is wrong; nothing of a traceback anywhere."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_the_help_names_every_command(recsys: Run) -> None:
    done = recsys("--help")
    assert done.returncode == 0
    for command in ("data", "weights", "fit", "evaluate", "recommend", "batch", "serve"):
        assert re.search(rf"\b{command}\b", done.stdout), command


def test_evaluate_writes_metrics_ranks_and_a_report(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = recsys("evaluate", "data/tiny", "--spec", plain_spec, "--sample-users", 20, "--out", out, columns=60)
    assert done.returncode == 0, done.stderr
    for file in ("metrics.json", "per_query.parquet", "slates.parquet", "report.html"):
        assert f": {out / file}\n" in done.stdout, "a path that can be copied"
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"data", "split", "stages", "lift", "seconds", "peak_rss_mb"} <= set(metrics)
    names = {
        "ndcg@10",
        "recall@10",
        "mrr@10",
        "recall@50",
        "recall@100",
        "coverage@10",
        "coverage@100",
        "popularity@10",
        "ci95",
    }
    assert all(names <= set(stage) for stage in metrics["stages"].values())
    assert len(pl.read_parquet(out / "per_query.parquet")) == 20
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)


def test_recommend_shows_a_user_in_the_terminal(recsys: Run, plain_bundle: Path, tiny: Any) -> None:
    user = tiny.log.frame["user_id"][0]
    done = recsys("recommend", "--bundle", plain_bundle, "--user", user, "--k", 5)
    assert done.returncode == 0, done.stderr
    titles = tiny.catalog.frame["title"].to_list()
    assert sum(title in done.stdout for title in titles) >= 5


def test_titles_with_brackets_are_shown_as_they_are(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "bundle"
    data.mkdir()
    items = "".join(f"{n},[rec] part {n}\n" for n in range(12))
    events = "".join(f"{user},{(user + n) % 12},{n}\n" for user in range(12) for n in range(5))
    (data / "items.csv").write_text(f"item_id,title\n{items}")
    (data / "interactions.csv").write_text(f"user_id,item_id,position\n{events}")
    assert recsys("fit", data, "--spec", plain_spec, "--out", out).returncode == 0
    done = recsys("recommend", "--bundle", out, "--user", 3, "--k", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[rec] part") >= 4 + 5  # the slate and the recent history


def test_a_rerun_of_batch_changes_nothing(recsys: Run, plain_bundle: Path, tmp_path: Path) -> None:
    batch = ("batch", "--bundle", plain_bundle, "--users", "all", "--k", 3, "--out", tmp_path / "out")
    assert recsys(*batch).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-*.parquet")}
    assert recsys(*batch).returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-*.parquet")} == before


def test_an_unknown_user_is_one_line(recsys: Run, plain_bundle: Path) -> None:
    assert_one_line(recsys("recommend", "--bundle", plain_bundle, "--user", "nobody"), "nobody")
    assert_one_line(recsys("recommend", "--bundle", plain_bundle, "--user", "99999999"), "99999999")


def test_k_larger_than_the_catalog_is_one_line(recsys: Run, plain_bundle: Path, tiny: Any, tmp_path: Path) -> None:
    k, out, user = len(tiny.catalog) + 1, tmp_path / "out", tiny.log.frame["user_id"][0]
    assert_one_line(recsys("batch", "--bundle", plain_bundle, "--k", k, "--out", out), str(k), str(len(tiny.catalog)))
    assert_one_line(recsys("recommend", "--bundle", plain_bundle, "--user", user, "--k", k), str(k))
    assert not out.exists()


def test_a_corrupted_bundle_is_one_line(recsys: Run, plain_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(plain_bundle, copy)
    with (copy / "log.parquet").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 255]))
    assert_one_line(recsys("recommend", "--bundle", copy, "--user", 1), "log.parquet")
    assert_one_line(recsys("batch", "--bundle", tmp_path / "none", "--out", tmp_path / "out"), "none")
    assert not (tmp_path / "out").exists()


def test_no_weights_and_no_network_is_one_line(recsys: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    missing = recsys("fit", "data/tiny", "--spec", SPECS / "llm.toml", "--out", out)
    assert_one_line(missing, "weights", "recsys weights fetch")
    assert_one_line(recsys("weights", "fetch"), "weights")
    assert not out.exists()


def test_a_missing_data_folder_is_one_line(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_line(recsys("evaluate", tmp_path / "nothing", "--spec", plain_spec, "--out", out), "nothing")
    assert_one_line(recsys("data", "check", tmp_path / "nothing"), "nothing")
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("depth = 30", "depth = 0"), ("depth",)),
        (("depth = 30", "deep = 30"), ("deep",)),
        (('kind = "popular"', 'kind = "psychic"'), ("generator", "psychic")),
        (('kind = "transitions"', 'kind = "transitions", window = "wide"'), ("window",)),
        (("depth = 30", "depth = "), ("TOML",)),
        (('kind = "identity"', 'kind = "packed"'), ("reranker", "lm")),
    ],
    ids=["out of range", "unknown field", "unknown kind", "wrong type", "no TOML", "a reranker without a model"],
)
def test_a_bad_spec_is_one_line_that_names_the_field(
    recsys: Run, tmp_path: Path, change: tuple[str, str], words: tuple[str, ...]
) -> None:
    assert change[0] in PLAIN
    spec = tmp_path / "bad.toml"
    spec.write_text(PLAIN.replace(*change), encoding="utf-8")
    assert_one_line(recsys("fit", "data/tiny", "--spec", spec, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_missing_spec_is_one_line(recsys: Run, tmp_path: Path) -> None:
    done = recsys("fit", "data/tiny", "--spec", tmp_path / "none.toml", "--out", tmp_path / "out")
    assert_one_line(done, "none.toml")


def test_users_with_one_event_only_are_one_line(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    data = tmp_path / "single"
    data.mkdir()
    (data / "interactions.csv").write_text("user_id,item_id\n1,a\n2,b\n")
    (data / "items.csv").write_text("item_id,title\na,One\nb,Two\n")
    done = recsys("evaluate", data, "--spec", plain_spec, "--out", tmp_path / "out")
    assert_one_line(done, "one event")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("largest_file", [4096, 20_000], ids=["in the first table", "later"])
def test_a_full_disk_in_mid_write_is_one_line_and_leaves_nothing(
    recsys: Run, plain_spec: Path, tmp_path: Path, largest_file: int
) -> None:
    out = tmp_path / "deep" / "bundle"
    done = recsys("fit", "data/tiny", "--spec", plain_spec, "--out", out, largest_file=largest_file)
    assert_one_line(done, str(out))
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_taken_is_one_line(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert_one_line(recsys("fit", "data/tiny", "--spec", plain_spec, "--out", tmp_path), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
