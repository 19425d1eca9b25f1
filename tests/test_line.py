"""The whole line on the small world with the real small LM: fit, bundle, load, batch, recommend, and bad input."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from checks import backwards, one_by_one
from recsys import bundle
from recsys.errors import BundleError
from recsys.tables import Queries

ROOT = Path(__file__).parents[1]
SPECS = ROOT / "pipelines" / "specs"
TOLERANCE = 1e-4

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


def assert_same_rows(left: pl.DataFrame, right: pl.DataFrame) -> None:
    """The same items in the same order, with the same reasons; scores to the last bits of a float32."""
    assert_frame_equal(left, right, abs_tol=TOLERANCE, rel_tol=TOLERANCE)


@pytest.fixture(scope="module")
def evaluated(tiny: Any, small_lm: Any, encoder: Any, weights_settings: Any) -> Any:
    """The default line, evaluated on a few users; the numbers of users are small because the LM reads on a CPU."""
    from recsys.evaluate import evaluate
    from recsys.spec import load_spec

    spec = load_spec(SPECS / "llm.toml")
    spec = spec.model_copy(
        update={
            "depth": 40,
            "reranker": spec.reranker.model_copy(update={"depth": 12, "tune_users": 40}),
            "profiles": spec.profiles.model_copy(update={"lm_users": 3}),
        }
    )
    return spec, evaluate(tiny, spec, weights_settings, sample_users=16, seed=0, lm=small_lm)


@pytest.fixture(scope="module")
def written(evaluated: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec, found = evaluated
    return bundle.write(
        tmp_path_factory.mktemp("line") / "bundle", found.fitted.recommender, tiny, spec=spec, known=found.known
    )


@pytest.fixture(scope="module")
def loaded(written: Path, weights_settings: Any, small_lm: Any) -> Any:
    return bundle.load(written, weights_settings, lm=small_lm)


@pytest.mark.weights
def test_a_loaded_bundle_gives_the_slates_of_the_evaluation(evaluated: Any, loaded: Any) -> None:
    _, found = evaluated
    assert_same_rows(loaded.recommender.recommend(found.questions.queries, 10).frame, found.slates.frame)


@pytest.mark.weights
def test_the_language_model_has_ordered_what_is_shown(evaluated: Any) -> None:
    _, found = evaluated
    assert set(found.slates.frame["served_by"]) == {"reranker"}
    assert found.slates.frame["reason"].str.len_chars().min() > 0  # type: ignore[operator]


@pytest.mark.weights
def test_a_batch_equals_singles_whatever_its_order(loaded: Any) -> None:
    queries = Queries(loaded.queries().frame.head(8))
    together = loaded.recommender.recommend(queries, 10).frame
    singles = pl.concat([loaded.recommender.recommend(query, 10).frame for query in one_by_one(queries)])
    turned = loaded.recommender.recommend(backwards(queries), 10).frame
    assert_same_rows(singles, together)
    key = ["query_id", "rank"]
    assert_same_rows(turned.sort(key), together.sort(key))


@pytest.mark.weights
def test_batch_writes_what_recommend_says(loaded: Any, tmp_path: Path) -> None:
    from recsys.batch import run_batch

    users = loaded.log.frame["user_id"].unique().sort().head(6).to_list()
    run_batch(loaded, users, k=5, out=tmp_path / "out", shard_size=4, progress=False)
    rows = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    slates = loaded.recommender.recommend(loaded.queries(users), 5).frame
    assert rows.columns == ["user_id", "item_id", "rank", "score", "propensity", "served_by", "reason"]
    assert_same_rows(rows, slates.rename({"query_id": "user_id"}).select(rows.columns))


@pytest.mark.weights
def test_the_stages_answer_the_same_questions(evaluated: Any) -> None:
    _, found = evaluated
    assert list(found.metrics["stages"]) == ["popular", "candidates", "reranked"]
    assert found.per_query.columns == ["query_id", "user_id", "item_id", "popular", "candidates", "reranked"]
    both = found.per_query.select(pl.col("candidates", "reranked").is_null())
    assert both["candidates"].equals(both["reranked"].rename("candidates"))  # a permutation loses and finds nothing
    assert {"delta", "relative", "ci95", "p"} <= set(found.metrics["lift"]["ndcg@10"])


@pytest.mark.weights
def test_a_bundle_with_one_altered_missing_or_added_file_does_not_load(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(written, copy)
    bundle.read_manifest(copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(BundleError, match=re.escape(path.name)):
            bundle.read_manifest(copy)
        path.unlink()
        with pytest.raises(BundleError, match=re.escape(path.name)):
            bundle.read_manifest(copy)
        path.write_bytes(whole)
    (copy / "generator" / "extra.json").write_text("{}")
    with pytest.raises(BundleError, match=r"extra\.json"):
        bundle.read_manifest(copy)


@pytest.mark.weights
def test_the_five_lines_of_the_readme_run(
    written: Path,
    weights_settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [len(block.strip().splitlines()) for block in code] == [5]
    (tmp_path / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo" / "bundle").symlink_to(written, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_CACHE_DIR", str(weights_settings.cache_dir))
    monkeypatch.setenv("RECSYS_OFFLINE", "1")
    exec(compile(code[0], "README.md", "exec"), {})
    assert "item_id" in capsys.readouterr().out


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recsys(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command line in a process of its own, with an empty cache and no network."""
    cache = tmp_path_factory.mktemp("empty-cache")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}
    env |= {"RECSYS_CACHE_DIR": str(cache), "RECSYS_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}

    def run(*arguments: object, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.run(
            [sys.executable, "-c", "from recsys.cli import main; main()", "--quiet", *map(str, arguments)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=limit,
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
    import json

    out = tmp_path / "out"
    done = recsys("evaluate", "data/tiny", "--spec", plain_spec, "--sample-users", 20, "--out", out)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout.replace("\n", "")
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"data", "split", "stages", "lift", "seconds", "peak_rss_mb"} <= set(metrics)
    names = {"ndcg@10", "recall@10", "mrr@10", "recall@50", "recall@100", "coverage@10", "ci95"}
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


def test_a_full_disk_in_mid_write_is_one_line_and_leaves_nothing(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    done = recsys("fit", "data/tiny", "--spec", plain_spec, "--out", tmp_path / "deep" / "bundle", largest_file=4096)
    assert_one_line(done, "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_taken_is_one_line(recsys: Run, plain_spec: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert_one_line(recsys("fit", "data/tiny", "--spec", plain_spec, "--out", tmp_path), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
