"""The pipelines as they are run: a process of their own, on the world that ships with the project."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from recsys import bundle
from recsys.cli import main
from recsys.profiles import EvidenceProfiles
from recsys.promotion import METRIC
from recsys.registry import Registry, open_bundle
from recsys.settings import Settings

ROOT = Path(__file__).parents[1]
SPEC = """
name = "small"
generator = {{ kind = "{kind}" }}
lm = {{ kind = "none" }}
reranker = {{ kind = "identity" }}
"""
MODEL = "retrained"


@dataclass(frozen=True)
class Place:
    """A folder for outputs, and the registry that tests share: making its database takes seconds."""

    folder: Path
    settings: Settings

    @property
    def registry(self) -> Registry:
        return Registry.of(self.settings)

    def retrain(self, data: Path, kind: str, out: str) -> subprocess.CompletedProcess[str]:
        spec = self.folder / f"{kind}.toml"
        spec.write_text(SPEC.format(kind=kind))
        return _run(
            *[
                str(data),
                "--spec",
                str(spec),
                "--out",
                str(self.folder / out),
                "--model",
                MODEL,
                "--sample-users",
                "50",
            ],
            RECSYS_TRACKING_URI=self.settings.tracking_uri,
            RECSYS_CACHE_DIR=str(self.settings.cache_dir),
        )


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "pipelines" / "retrain.py"), *arguments]
    environment = {**os.environ, "RECSYS_OFFLINE": "1", **variables}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("retrain")
    home = tmp_path_factory.getbasetemp() / "shared registry"
    home.mkdir(exist_ok=True)
    return Place(folder, Settings(tracking_uri=f"sqlite:///{home / 'mlflow.db'}", cache_dir=folder / "cache"))


@pytest.fixture(scope="module")
def first(place: Place) -> subprocess.CompletedProcess[str]:
    """The first retraining: a sound recipe on the world as it is."""
    done = place.retrain(ROOT / "data" / "tiny", "transitions", "first")
    assert done.returncode == 0, done.stderr
    return done


def test_retraining_ends_with_a_registered_champion(place: Place, first: subprocess.CompletedProcess[str]) -> None:
    assert f"version 1 of '{MODEL}' is the champion: first version" in first.stdout
    assert f"recsys serve --bundle models:/{MODEL}@champion" in first.stdout
    champion = place.registry.champion(MODEL)
    assert champion is not None
    assert champion.number == 1
    assert champion.interval is not None
    assert champion.interval[0] <= champion.metric <= champion.interval[1]


def test_the_champion_is_the_bundle_that_was_written_and_knows_the_whole_log(
    place: Place, first: subprocess.CompletedProcess[str]
) -> None:
    loaded = open_bundle(f"models:/{MODEL}@champion", place.settings)
    written = bundle.load(place.folder / "first" / "bundle", place.settings)
    assert loaded.name == written.name
    queries = written.queries()
    assert loaded.recommender.recommend(queries, 5).frame.equals(written.recommender.recommend(queries, 5).frame)
    log = pl.read_csv(ROOT / "data" / "tiny" / "interactions.csv")
    assert len(loaded.log) == len(log)


def test_the_evaluation_lies_in_the_output_and_in_the_run(
    place: Place, first: subprocess.CompletedProcess[str]
) -> None:
    files = {"metrics.json", "per_query.parquet", "slates.parquet", "report.html"}
    assert {file.name for file in (place.folder / "first" / "evaluation").iterdir()} == files
    stored = place.registry.resolve(f"models:/{MODEL}/1").parent
    assert {file.name for file in (stored / "evaluation").iterdir()} == files


def test_the_champions_texts_are_at_hand_unless_it_cannot_be_read(
    place: Place, first: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `recsys.spec.fit` does with them: test_profiles_standing."""
    found = place.registry.champions_profiles(MODEL)
    written = bundle.load(place.folder / "first" / "bundle", place.settings).recommender.profiles
    assert isinstance(found, EvidenceProfiles)
    assert isinstance(written, EvidenceProfiles)
    assert found.config == written.config
    altered = shutil.copytree(place.folder / "first" / "bundle", tmp_path / "altered")
    (altered / "profiles" / "wording.txt").write_text("[nothing]\n")
    monkeypatch.setattr(Registry, "resolve", lambda *_: altered)
    assert place.registry.champions_profiles(MODEL) is None
    assert place.registry.champions_profiles("nobody") is None


def test_batch_reads_the_champion_by_its_alias(
    place: Place,
    first: subprocess.CompletedProcess[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RECSYS_TRACKING_URI", place.settings.tracking_uri)
    monkeypatch.setenv("RECSYS_CACHE_DIR", str(place.settings.cache_dir))
    arguments = ["batch", "--bundle", f"models:/{MODEL}@champion", "--k", "3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["recsys", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    users = pl.read_parquet(tmp_path / "out" / "part-*.parquet")["user_id"].n_unique()
    assert f"{users} users (0 reranked), {3 * users} rows" in capsys.readouterr().out


def test_on_new_data_the_recipes_are_compared_on_the_new_data(
    place: Place, first: subprocess.CompletedProcess[str]
) -> None:
    data = place.folder / "next day"
    shutil.copytree(ROOT / "data" / "tiny", data)
    log = pl.read_csv(data / "interactions.csv", infer_schema=False)
    log.head(len(log) - 20).write_csv(data / "interactions.csv")

    worse = place.retrain(data, "popular", "second")
    assert worse.returncode == 0, worse.stderr
    assert f"is the challenger: {METRIC}" in worse.stdout
    assert re.search(r"is worse than the 0\.\d+ of version 1's recipe on the same data", worse.stdout)
    assert place.registry.champion(MODEL).number == 1

    same = place.retrain(data, "transitions", "third")
    assert same.returncode == 0, same.stderr
    assert re.search(r"is not worse than the 0\.\d+ of version 1's recipe on the same data", same.stdout)
    assert place.registry.champion(MODEL).number == 3

    log.head(len(log) * 3 // 4).write_csv(data / "interactions.csv")
    cut = place.retrain(data, "transitions", "fourth")
    assert cut.returncode == 0, cut.stderr
    assert f"version 4 of '{MODEL}' is the challenger" in cut.stdout
    assert re.search(
        r"but its log has \d+ events, over 10% fewer than the \d+ of version 3: check the data", cut.stdout
    )
    assert "the champion is still version 3" in cut.stdout
    assert place.registry.champion(MODEL).number == 3


def test_a_registry_out_of_reach_shows_before_the_work(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC.format(kind="popular"))
    arguments = [str(ROOT / "data" / "tiny"), "--spec", str(spec), "--out", str(tmp_path / "out")]
    done = _run(*arguments, RECSYS_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: registry http://127.0.0.1:9 is out of reach")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
