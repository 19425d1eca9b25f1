"""WHERE things run and live: paths, devices, addresses, limits. WHAT is built stands in a spec (`recsys.spec`).

Every field can be set by an environment variable with the prefix `RECSYS_` (for example `RECSYS_CACHE_DIR`).
Nothing here makes a folder or touches the network.
"""

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys"


class Settings(BaseSettings):
    """Where to run. Built once per process by the caller (CLI, pipeline, service) and passed down."""

    model_config = SettingsConfigDict(env_prefix="RECSYS_", frozen=True, extra="ignore")

    cache_dir: Path = Field(default_factory=_default_cache, description="weights, fetched data, replayed LM answers")
    data: Path | None = Field(default=None, description="folder of dataset folders, for tests and benchmarks")
    device: str = Field(default="auto", description="auto | cpu | cuda | cuda:0 | mps")
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    offline: bool = Field(default=False, description="never touch the network, even where a command asks for it")
    tracking_uri: str = Field(default="sqlite:///mlruns/mlflow.db", description="MLflow tracking and registry")
    lm_url: str | None = Field(default=None, description="base URL of an OpenAI-compatible server")
    lm_api_key: SecretStr | None = Field(default=None, description="key for lm_url; never printed or stored")
    lm_timeout_s: float = Field(default=60.0, gt=0)
