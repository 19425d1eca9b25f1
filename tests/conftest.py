"""Fixtures for every test: small data with known answers, settings that stay in a temporary folder, the real weights.

Libraries are imported inside the fixtures, so that collecting the tests is fast.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from recsys.data.ingest import Dataset
    from recsys.data.split import Split
    from recsys.data.synthetic import World
    from recsys.settings import Settings

pytest.register_assert_rewrite("checks", "contracts")

ROOT = Path(__file__).parents[1]
# Of the user's own settings, the tests see only where weights and real data lie.
KEPT = {"RECSYS_CACHE_DIR", "RECSYS_DATA"}
# Set in each of the processes that test side by side (`make test`).
SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
# Longest first.
SLOWEST = ("test_notebooks", "test_rerank_sequence", "test_rerank_meanings", "test_line")


def pytest_configure() -> None:
    """Side by side, compute with one thread each where the user does not say otherwise.

    A thread for every core in every process would make all of them wait for each other. Set before a library reads it.
    """
    if SIDE_BY_SIDE:
        for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS"):
            os.environ.setdefault(name, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, begin with the files that take longest: begun last, they would run on alone."""
    if SIDE_BY_SIDE:
        items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session", autouse=True)
def _only_known_settings() -> Iterator[None]:
    """No user's endpoint, device or registry leaks into a test, and no library may fetch anything."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RECSYS_") and name not in KEPT]:
            patch.delenv(name)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def tiny() -> "Dataset":
    """The generated world that ships with the project, read from its files."""
    from recsys.data.ingest import read_dataset

    return read_dataset(ROOT / "data" / "tiny")


@pytest.fixture(scope="session")
def known_world() -> "World":
    """A small generated world together with the truth that it was drawn from."""
    from recsys.data.synthetic import make_world

    return make_world(n_users=300, n_items=240, n_events=7500, seed=7, name="world")


@pytest.fixture(scope="session")
def world(known_world: "World") -> "Dataset":
    """The same world as the line reads it: users with known tastes, no files."""
    return known_world.dataset


@pytest.fixture(scope="session")
def world_split(world: "Dataset") -> "Split":
    """The world, split by `leave-last`."""
    from recsys.data.split import split_log

    return split_log(world.log, "leave-last")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real dataset by name; skips where RECSYS_DATA does not have it."""

    def find(name: str) -> Path:
        given = os.environ.get("RECSYS_DATA")
        if not given:
            pytest.skip("RECSYS_DATA is not set: it names a folder of dataset folders")
        folder = Path(given) / name
        if not folder.is_dir():
            pytest.skip(f"RECSYS_DATA has no folder {name}")
        return folder

    return find


@pytest.fixture
def settings(tmp_path: Path) -> "Settings":
    """Settings that write into a temporary folder and never touch the network; the cache there is empty."""
    from recsys.settings import Settings

    return Settings(
        cache_dir=tmp_path / "cache", offline=True, device="cpu", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"
    )


@pytest.fixture(scope="session")
def weights_settings(tmp_path_factory: pytest.TempPathFactory) -> "Settings":
    """As `settings`, for the session, with the user's real weights in the cache (by a link)."""
    from recsys.settings import Settings

    cache = tmp_path_factory.mktemp("cache")
    real = Settings().cache_dir / "weights"
    if real.is_dir():
        (cache / "weights").symlink_to(real.resolve(), target_is_directory=True)
    return Settings(cache_dir=cache, offline=True, device="cpu", tracking_uri=f"sqlite:///{cache}/mlflow.db")


def _or_skip(load: Callable[[], Any]) -> Any:
    """What `load` gives; without weights skip, or fail where continuous integration runs."""
    from recsys.errors import WeightsError

    try:
        return load()
    except WeightsError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have the weights: {error}")
        pytest.skip(f"run `make venv` to fetch the weights: {error}")


@pytest.fixture(scope="session")
def small_lm(weights_settings: "Settings") -> Any:
    """The real default language model on the CPU."""
    from recsys.lm import LMConfig, load_lm

    return _or_skip(lambda: load_lm(LMConfig(), weights_settings))


@pytest.fixture(scope="session")
def encoder(weights_settings: "Settings") -> Any:
    """The real default text encoder on the CPU."""
    from recsys.lm import EncoderConfig, load_encoder

    return _or_skip(lambda: load_encoder(EncoderConfig(), weights_settings))


@pytest.fixture
def scripted_lm() -> Any:
    """The class of language models that say what they are told to: `recsys.lm.replay.ScriptedLM`."""
    from recsys.lm.replay import ScriptedLM

    return ScriptedLM
