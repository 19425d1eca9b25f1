"""Settings from the environment: defaults that suit the machine, one line for what is wrong, no secret shown."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from recsys import usable_cores
from recsys.errors import SpecError
from recsys.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, without this one's settings and thread counts."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RECSYS_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=env | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_THREADS", "3")
    monkeypatch.setenv("RECSYS_LM_TIMEOUT_S", "1.5")
    found = load_settings()
    assert (found.threads, found.lm_timeout_s) == (3, 1.5)


def test_what_is_wrong_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_THREADS", "0")
    with pytest.raises(SpecError, match=r"^RECSYS_THREADS: Input should be greater than or equal to 1 \("):
        load_settings()
    monkeypatch.setenv("RECSYS_LM_TIMEOUT_S", "abc")
    with pytest.raises(SpecError, match=r"RECSYS_THREADS: .*; RECSYS_LM_TIMEOUT_S: Input should be a valid number"):
        load_settings()


def test_what_was_given_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the key, given to the wrong variable."""
    monkeypatch.setenv("RECSYS_LM_TIMEOUT_S", "sk-very-secret")
    with pytest.raises(SpecError, match="RECSYS_LM_TIMEOUT_S: ") as raised:
        load_settings()
    assert "secret" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(ValidationError, match="lm_timeout_s") as below:
        Settings()
    assert "secret" not in str(below.value)


@pytest.mark.parametrize("command", ["check", "fit", "evaluate", "recommend", "batch", "serve", "fetch", "weights"])
def test_every_command_says_a_wrong_setting_in_one_line(command: str, tmp_path: Path) -> None:
    line = ("data/tiny", "--spec", "pipelines/specs/candidates.toml", "--out", str(tmp_path / "out"))
    arguments = {
        "check": ("data", "check", "data/tiny"),
        "fetch": ("data", "fetch", "ml-100k"),
        "weights": ("weights", "fetch"),
        "fit": ("fit", *line),
        "evaluate": ("evaluate", *line),
        "recommend": ("recommend", "--bundle", "none", "--user", "1"),
        "batch": ("batch", "--bundle", "none", "--out", str(tmp_path / "out")),
        "serve": ("serve", "--bundle", "none", "--port", "0"),
    }[command]
    done = python("from recsys.cli import main; main()", *arguments, RECSYS_LM_TIMEOUT_S="abc", RECSYS_OFFLINE="1")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: RECSYS_LM_TIMEOUT_S: Input should be a valid number")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_threads_are_the_cores_that_this_process_may_use() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.cpu_count = lambda: 64\n"
        "from recsys.settings import Settings; print(os.environ['OMP_NUM_THREADS'], Settings().threads)"
    )
    done = python(code)
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_without_affinity_threads_are_the_machines_cores() -> None:
    code = (
        "import os; del os.sched_getaffinity; os.cpu_count = lambda: 5\n"
        "from recsys.settings import Settings; print(os.environ['OMP_NUM_THREADS'], Settings().threads)"
    )
    done = python(code)
    assert done.stdout.split() == ["5", "5"], done.stderr


@pytest.mark.parametrize(
    ("given", "threads"), [("1", 1), ("100000", usable_cores()), ("0", usable_cores()), ("2,1", usable_cores())]
)
def test_a_users_own_thread_count_stays_and_is_kept_to(given: str, threads: int) -> None:
    code = "import os; from recsys.settings import Settings; print(os.environ['OMP_NUM_THREADS'], Settings().threads)"
    done = python(code, OMP_NUM_THREADS=given)
    assert done.stdout.split() == [given, str(threads)], done.stderr


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import recsys; print(*(set(sys.modules) - before))"
    assert python(code).stdout.split() == ["recsys"]


def test_als_runs_as_many_threads_as_openmp_is_given() -> None:
    code = "from recsys.candidates.als import _model\nprint(_model(4, 0.1, 1.0, iterations=1, seed=0).num_threads)"
    assert python(code, OMP_NUM_THREADS="1").stdout.split() == ["1"]
    assert python(code).stdout.split() == [str(usable_cores())]
