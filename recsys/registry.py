"""Runs, registered bundles and the alias `champion`, kept in MLflow. The only module that imports it.

A bundle is registered as it is, a folder of plain files: no MLflow flavour and no pickle. The names in use
(experiment, model, aliases, tags, metrics) stand in `mlflow/README.md`.
"""

import hashlib
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from recsys import __version__
from recsys import bundle as bundles
from recsys.bundle import Bundle
from recsys.data.files import atomic_folder
from recsys.data.ingest import Dataset
from recsys.errors import BundleError, RegistryError
from recsys.profiles import EvidenceProfiles
from recsys.promotion import EVENTS, METRIC, Promotion, Version, judge
from recsys.settings import Settings

log = logging.getLogger(__name__)

MODEL, EXPERIMENT = "recommender", "recsys"
CHAMPION, CHALLENGER = "champion", "challenger"
SETTING = "setting"
"""Tag of a run: which data, split and sample its metrics were measured on. Only metrics of equal settings compare."""

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
# MLflow reports usage over the network unless told not to, retries for minutes, and prints addresses and bars.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Registry:
    """MLflow's tracking store and model registry at one address; connected on first use.

    Errors: every method raises `RegistryError` when the address is out of reach or MLflow refuses.
    """

    uri: str
    cache: Path
    """Where bundles from a remote artifact store are kept once downloaded."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.tracking_uri, settings.cache_dir / "registry")

    def log_run(
        self,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, Any],
        artifacts: Mapping[str, Path],
        tags: Mapping[str, str],
    ) -> str:
        """Log one run as a whole and return its id; a run that could not be logged to its end is marked failed.

        `params` and `metrics` may be nested: keys are joined by "/", places in a list count as keys from 0, and "@"
        becomes "_at_" (MLflow allows no "@"). Metrics that are not finite numbers are left out. Each of `artifacts`
        is a folder, whose content goes under the name, or a file, which keeps its own.
        """
        with self._errors():
            from mlflow.entities import Metric, Param

            run_id: str = self._client.create_run(self._experiment(), tags=dict(tags)).info.run_id
            status = "FAILED"
            try:
                now = int(time.time() * 1000)
                for some in _chunks([Param(key, str(value)) for key, value in _flat(params)], 100):
                    self._client.log_batch(run_id, params=some)
                numbers = [(key, float(v)) for key, v in _flat(metrics) if isinstance(v, int | float)]
                points = [Metric(key, value, now, 0) for key, value in numbers if math.isfinite(value)]
                for some in _chunks(points, 1000):
                    self._client.log_batch(run_id, metrics=some)
                for name, path in artifacts.items():
                    if path.is_dir():
                        self._client.log_artifacts(run_id, str(path), name)
                    else:
                        self._client.log_artifact(run_id, str(path))
                status = "FINISHED"
            finally:
                self._client.set_terminated(run_id, status)
        return run_id

    def log_readout(self, folder: Path) -> str:
        """Log what `recsys ab analyze` wrote into `folder` as a run, and return its id.

        Params: the experiment's name, its decision; metrics: `ab/METRIC/VARIANT/...`; artifacts: the files.
        Errors: `RegistryError` where the folder holds no readout.
        """
        try:
            found = json.loads((folder / "readout.json").read_text("utf-8"))
            rows = [(str(row["name"]), str(row["variant"]), row) for row in found["metrics"]]
            params = {"experiment": found["experiment"], "decision": found["decision"], "units": found["srm"]["counts"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{folder}: holds no readout.json that `recsys ab analyze` wrote") from error
        kept = ("effect", "se", "ci", "p", "p_adjusted", "relative", "relative_ci", "sequential_ci")
        measured: dict[str, Any] = {}
        for name, variant, row in rows:
            measured.setdefault(name, {})[variant] = {key: row[key] for key in kept}
        return self.log_run(
            params=params,
            metrics={"ab": measured, "srm": {"p": found["srm"]["p"]}},
            artifacts={"readout": folder},
            tags={"kind": "experiment"},
        )

    def register(self, bundle: Path, run_id: str, *, name: str = MODEL) -> int:
        """Store the bundle folder with the run and make it the next version of `name`; no alias moves.

        Errors: `BundleError` when the folder holds no bundle.
        """
        manifest = bundle / "manifest.json"
        if not manifest.is_file():
            raise BundleError(f"{bundle}: is not a bundle (no manifest.json); nothing was registered")
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        with self._errors():
            from mlflow.exceptions import MlflowException

            self._client.log_artifacts(run_id, str(bundle), "bundle")
            source = f"{self._client.get_run(run_id).info.artifact_uri}/bundle"
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._client.create_model_version(name, source, run_id, tags={"manifest_sha256": digest})
        return int(version.version)

    def champion(self, name: str = MODEL) -> Version | None:
        """The version that the alias `champion` names; None before the first promotion."""
        with self._errors():
            found = self._find(name, alias=CHAMPION)
            return self._measured(found) if found else None

    def champions_profiles(self, name: str = MODEL) -> EvidenceProfiles | None:
        """The champion's profiles, whose texts may still stand; None where there is none, or it cannot be read."""
        if self.champion(name) is None:
            return None
        try:
            return bundles.load_profiles(self.resolve(f"models:/{name}@{CHAMPION}"))
        except BundleError as error:
            log.warning("the champion's texts are not carried on: %s", error)
            return None

    def promote(
        self, number: int, *, name: str = MODEL, tolerance: float = 0.001, rival: float | None = None
    ) -> Promotion:
        """Move `champion` to a version that is not worse than the present one; else it becomes `challenger`.

        Not worse: its `METRIC` is at least the champion's less `tolerance`. Both must have been measured in the same
        setting, or `rival` says what the champion's recipe reaches in the new one's. Broken data make all recipes
        equally bad, so with a `rival` two things more are asked: `METRIC` is at least the lower end of the champion's
        own interval less `tolerance`, and `EVENTS` at least the champion's less `MOST_LOST`. The first version of a
        model always becomes champion.
        """
        champion = self.champion(name)
        with self._errors():
            found = self._find(name, version=number)
            if found is None:
                raise RegistryError(f"model '{name}' has no version {number} in {self._shown}")
            new = self._measured(found)
            promoted, why = judge(new, champion, tolerance, rival)
            self._client.set_registered_model_alias(name, CHAMPION if promoted else CHALLENGER, str(number))
            if promoted and CHALLENGER in found.aliases:
                self._client.delete_registered_model_alias(name, CHALLENGER)
            self._client.set_model_version_tag(name, str(number), "promotion", why)
        return Promotion(number, promoted, why)

    def resolve(self, uri: str) -> Path:
        """The folder of the bundle that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

        A remote artifact store is downloaded from once, into the cache; a local one is used in place.
        """
        match = _URI.fullmatch(uri)
        if not match:
            raise RegistryError(f"'{uri}': expected models:/NAME@ALIAS or models:/NAME/VERSION")
        name, alias, version = match["name"], match["alias"], match["version"]
        if (database := self._sqlite) and not database.exists():
            raise RegistryError(f"{uri}: there is no registry at {self._shown}; run pipelines/retrain.py first")
        with self._errors():
            import mlflow.artifacts as store

            found = self._find(name, alias=alias, version=version)
            if found is None:
                raise RegistryError(f"{uri}: no such model, alias or version in {self._shown}")
            source: str = self._client.get_model_version_download_uri(name, str(found.version))
            if source.startswith(("file:", "/")):
                return Path(store.download_artifacts(artifact_uri=source, tracking_uri=self.uri))
            target = self.cache / hashlib.sha256(f"{self.uri} {source}".encode()).hexdigest()[:16]
            if not target.exists():
                with atomic_folder(target) as temporary:
                    store.download_artifacts(artifact_uri=source, tracking_uri=self.uri, dst_path=str(temporary))
            return target / source.rsplit("/", 1)[-1]

    @cached_property
    def _client(self) -> Any:
        for key, value in _QUIET.items():
            os.environ.setdefault(key, value)
        with warnings.catch_warnings():
            # MLflow 3.17 uses a loader that SQLAlchemy 2.1 has deprecated; it warns once, on import.
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
            from mlflow.tracking import MlflowClient

            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @property
    def _sqlite(self) -> Path | None:
        """The database file, where the address names one."""
        scheme, _, path = self.uri.partition(":///")
        return Path(path.split("?")[0]) if scheme == "sqlite" and path else None

    @property
    def _shown(self) -> str:
        return _redacted(self.uri)

    def _experiment(self) -> str:
        """Its id. Made here, because MLflow's own default puts artifacts under the current folder."""
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        database = self._sqlite
        artifacts = (database.resolve().parent / "artifacts").as_uri() if database else None
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=artifacts))

    def _find(self, name: str, *, alias: str | None = None, version: int | str | None = None) -> Any:
        """The model version, or None where the model, alias or version does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            if alias is not None:
                return self._client.get_model_version_by_alias(name, alias)
            return self._client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _measured(self, found: Any) -> Version:
        run = self._client.get_run(found.run_id).data
        key = _key(METRIC)
        if key not in run.metrics:
            raise RegistryError(f"model '{found.name}' version {found.version}: its run has logged no metric {METRIC}")
        ends = [run.metrics.get(f"{_key(METRIC.replace('/', '/ci95/'))}/{end}") for end in (0, 1)]
        interval = (ends[0], ends[1]) if None not in ends else None
        events = int(run.params[EVENTS]) if EVENTS in run.params else None
        return Version(found.name, int(found.version), run.tags.get(SETTING, ""), run.metrics[key], interval, events)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what MLflow, its database and its HTTP client raise into one line, without the address's password."""
        try:
            _ = self._client
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError
        except Exception as error:
            raise RegistryError(f"registry {self._shown} cannot be opened: {_line(error)}") from error
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if "Max retries exceeded" in str(error) or "API request to" in str(error):
                raise RegistryError(
                    f"registry {self._shown} is out of reach or fails; check RECSYS_TRACKING_URI and its server"
                ) from error
            raise RegistryError(f"registry {self._shown}: {_line(error)}") from error


def open_bundle(text: str, settings: Settings) -> Bundle:
    """Load a bundle from a folder, or from the registry where `text` starts with `models:/`.

    Errors: `BundleError`, `RegistryError`.
    """
    path = Registry.of(settings).resolve(text) if text.startswith("models:/") else Path(text)
    return bundles.load(path, settings)


def setting_tag(dataset: Dataset, options: Mapping[str, Any]) -> str:
    """The value of the tag `SETTING`: equal text for equal logs, catalogs, options of the evaluation and recsys.

    What a recipe names or derives (its models, the catalog's text vectors) is not in it: it is what is compared.
    """
    content = {"log": dataset.log.frame, "catalog": dataset.catalog.frame.drop("embedding", strict=False)}
    digests = {k: hashlib.sha256(v.write_ndjson().encode()).hexdigest()[:16] for k, v in content.items()}
    return json.dumps({**options, **digests, "recsys": __version__}, sort_keys=True, default=str)


def _flat(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    pairs = values.items() if isinstance(values, Mapping) else ((str(i), value) for i, value in enumerate(values))
    for name, value in pairs:
        key = prefix + _key(str(name))
        if isinstance(value, Mapping | list | tuple):
            yield from _flat(value, key + "/")
        else:
            yield key, value


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def _chunks(rows: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _redacted(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _line(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return _redacted(text)[:300]
