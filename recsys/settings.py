"""WHERE things run and live: paths, devices, addresses, limits. WHAT is built stands in a spec (`recsys.spec`).

Every field can be set by an environment variable with the prefix `RECSYS_` (for example `RECSYS_CACHE_DIR`).
Nothing here makes a folder or touches the network.
"""

import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from recsys import usable_cores
from recsys.errors import SpecError

_PREFIX = "RECSYS_"


def default_threads() -> int:
    """Threads to compute with where nobody says: `OMP_NUM_THREADS`, but no more than the usable cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(wanted), usable_cores()) if wanted.isdecimal() and int(wanted) else usable_cores()


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys"


class Settings(BaseSettings):
    """Where to run. Built once per process by the caller (see `load_settings`) and passed down."""

    # An error must not show what was given: it may be the key.
    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    cache_dir: Path = Field(
        default_factory=_default_cache, description="weights, fetched data, recorded LM answers, unfinished trainings"
    )
    data: Path | None = Field(default=None, description="folder of dataset folders, for tests and benchmarks")
    device: str = Field(default="auto", description="auto | cpu | cuda | cuda:0 | mps")
    threads: int = Field(default_factory=default_threads, ge=1, description="of torch, for local models")
    offline: bool = Field(default=False, description="never touch the network, even where a command asks for it")
    tracking_uri: str = Field(default="sqlite:///mlruns/mlflow.db", description="MLflow tracking and registry")
    state_uri: str = Field(
        default="sqlite:///state/recsys.db",
        description="profile versions, edits and erasures of one set of users: sqlite:///FILE (from the folder that a "
        "command runs in), sqlite:////FILE, postgresql://..., or a folder",
        repr=False,  # it may hold a password
    )
    lm_url: str | None = Field(default=None, description="base URL of an OpenAI-compatible server")
    lm_api_key: SecretStr | None = Field(default=None, description="key for lm_url; never printed or stored")
    lm_timeout_s: float = Field(default=60.0, gt=0)


def load_settings() -> Settings:
    """Settings from the environment. Errors: `SpecError` naming the variables that are wrong, not their values."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(f"{_PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{faults} (an environment variable: mend or unset it)") from None
