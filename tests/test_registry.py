import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import registry as module
from recsys.data.ingest import Dataset
from recsys.errors import BundleError, RegistryError
from recsys.experiment import Experiment, analyze
from recsys.promotion import METRIC
from recsys.registry import SETTING, Registry, open_bundle, setting_tag
from recsys.settings import Settings
from recsys.tables import Catalog, InteractionLog


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one registry that tests share: making its database takes seconds. A test has its own model name."""
    path = tmp_path_factory.getbasetemp() / "shared registry"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def registry(home: Path) -> Registry:
    return Registry(f"sqlite:///{home / 'mlflow.db'}", home / "cache")


def folder(path: Path, text: str = "weights") -> Path:
    """Something that the registry takes for a bundle: it looks no further than the manifest."""
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"hash": text}))
    (path / "part").mkdir()
    (path / "part" / "data.bin").write_text(text)
    return path


def logged(registry: Registry, value: float, *, setting: str = "same", events: int | None = None) -> str:
    area, name = METRIC.split("/")
    metrics = {area: {name: value, "ci95": {name: [value - 0.01, value + 0.01]}}}
    params = {} if events is None else {"data": {"events": events}}
    return registry.log_run(params=params, metrics=metrics, artifacts={}, tags={SETTING: setting})


def version(registry: Registry, tmp_path: Path, name: str, value: float, **options: Any) -> int:
    count = len(list(tmp_path.iterdir()))
    return registry.register(
        folder(tmp_path / f"bundle{count}", str(value)), logged(registry, value, **options), name=name
    )


def content(path: Path) -> dict[str, str]:
    return {str(f.relative_to(path)): f.read_text() for f in sorted(path.rglob("*")) if f.is_file()}


def test_a_registered_bundle_comes_back_file_for_file(registry: Registry, tmp_path: Path) -> None:
    bundle = folder(tmp_path / "bundle")
    number = registry.register(bundle, logged(registry, 0.1), name="whole")
    assert number == 1
    assert content(registry.resolve("models:/whole/1")) == content(bundle)


def test_a_run_keeps_params_metrics_and_artifacts_under_mlflows_names(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>fine</p>")
    run_id = registry.log_run(
        params={"spec": {"generator": {"kind": "als", "sources": [{"factors": 8}]}}, "seed": 0},
        metrics={
            "stages": {"popular": {"ndcg@10": 0.1, "ci95": {"ndcg@10": [0.05, 0.15]}}},
            "p": float("nan"),
            "x": None,
        },
        artifacts={"report": tmp_path / "report.html", "folder": folder(tmp_path / "bundle")},
        tags={SETTING: "here"},
    )
    run = registry._client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"spec/generator/kind": "als", "spec/generator/sources/0/factors": "8", "seed": "0"}
    assert run.data.metrics == {
        "stages/popular/ndcg_at_10": 0.1,
        "stages/popular/ci95/ndcg_at_10/0": 0.05,
        "stages/popular/ci95/ndcg_at_10/1": 0.15,
    }
    assert run.data.tags[SETTING] == "here"
    assert {file.path for file in registry._client.list_artifacts(run_id)} == {"report.html", "folder"}


def test_hundreds_of_params_are_logged(registry: Registry) -> None:
    run_id = registry.log_run(params={f"p{n}": n for n in range(250)}, metrics={}, artifacts={}, tags={})
    assert len(registry._client.get_run(run_id).data.params) == 250


def test_a_run_that_cannot_be_logged_to_its_end_is_marked_failed(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"missing\.html"):
        registry.log_run(params={}, metrics={}, artifacts={"report": tmp_path / "missing.html"}, tags={"mine": "yes"})
    experiment = registry._client.get_experiment_by_name("recsys").experiment_id
    (run,) = registry._client.search_runs([experiment], "tags.mine = 'yes'")
    assert run.info.status == "FAILED"


def test_the_first_version_becomes_champion(registry: Registry, tmp_path: Path) -> None:
    assert registry.champion("first") is None
    promotion = registry.promote(version(registry, tmp_path, "first", 0.01), name="first")
    assert (promotion.promoted, promotion.why) == (True, f"first version of 'first': {METRIC} 0.0100 [0.0000, 0.0200]")
    champion = registry.champion("first")
    assert champion is not None
    assert (champion.number, champion.metric, champion.interval) == (1, 0.01, (0.0, 0.02))


@pytest.mark.parametrize(
    ("value", "promoted"), [(0.12, True), (0.1, True), (0.0995, True), (0.0985, False), (0.05, False)]
)
def test_the_champion_moves_only_to_one_that_is_not_worse(
    registry: Registry, tmp_path: Path, value: float, promoted: bool
) -> None:
    name = f"judged-{value}"
    registry.promote(version(registry, tmp_path, name, 0.1), name=name)
    promotion = registry.promote(version(registry, tmp_path, name, value), name=name, tolerance=0.001)
    assert promotion.promoted is promoted
    assert ("is not worse than" in promotion.why) is promoted
    assert "version 1's 0.1000" in promotion.why
    expected = "0.1" if not promoted else str(value)
    assert content(registry.resolve(f"models:/{name}@champion"))["part/data.bin"] == expected
    if not promoted:
        assert content(registry.resolve(f"models:/{name}@challenger"))["part/data.bin"] == str(value)


def test_metrics_of_other_data_do_not_compare_until_the_rivals_recipe_is_measured_there(
    registry: Registry, tmp_path: Path
) -> None:
    registry.promote(version(registry, tmp_path, "moved", 0.2), name="moved")
    number = version(registry, tmp_path, "moved", 0.195, setting="next day")
    refused = registry.promote(number, name="moved")
    assert (refused.promoted, "cannot be compared" in refused.why) == (False, True)
    assert not registry.promote(number, name="moved", rival=0.198).promoted
    accepted = registry.promote(number, name="moved", rival=0.193)
    assert accepted.promoted
    assert "the 0.1930 of version 1's recipe on the same data" in accepted.why
    with pytest.raises(RegistryError, match="no such model, alias"):
        registry.resolve("models:/moved@challenger")  # the champion is not its own challenger


@pytest.mark.parametrize(
    ("value", "events", "doubt"),
    [
        (0.117, 1000, None),
        (0.107, 900, None),  # the lower end of the champion's interval, the least that a log may have
        (0.1065, None, None),
        (0.105, 1000, "falls below the 0.1170 [0.1070, 0.1270] that version 1 had on its own data"),
        (0.020, 1000, "falls below the 0.1170"),
        (0.117, 899, "its log has 899 events, over 10% fewer than the 1000 of version 1"),
    ],
)
@pytest.mark.parametrize("better", [0.0, 0.01])
def test_data_that_look_broken_promote_no_recipe_neither_the_champions_own_nor_a_better_one(
    registry: Registry, tmp_path: Path, value: float, events: int | None, doubt: str | None, better: float
) -> None:
    name = f"broken-{value}-{events}-{better}"
    registry.promote(version(registry, tmp_path, name, 0.117, events=1000), name=name)
    number = version(registry, tmp_path, name, value, setting="next export", events=events)
    promotion = registry.promote(number, name=name, rival=value - better)
    assert promotion.promoted is (doubt is None)
    assert doubt is None or (doubt in promotion.why and promotion.why.endswith("check the data"))
    assert registry.champion(name).number == (2 if doubt is None else 1)


def test_the_setting_tells_apart_logs_catalogs_options_and_versions_of_recsys(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"split": "leave-last", "seed": 0}
    items = tiny.catalog.frame
    retitled = items.with_columns(title=pl.lit("New ") + pl.col("title"))
    shorter = replace(tiny, log=InteractionLog(tiny.log.frame.head(100)))
    same = replace(tiny, name="another", catalog=Catalog(_with_vectors(items)))
    tag = setting_tag(tiny, options)
    assert setting_tag(same, dict(reversed(options.items()))) == tag
    others = {
        setting_tag(tiny, {**options, "seed": 1}),
        setting_tag(replace(tiny, catalog=Catalog(retitled)), options),
        setting_tag(shorter, options),
    }
    monkeypatch.setattr(module, "__version__", "0.0.0")
    assert len({tag, setting_tag(tiny, options), *others}) == 5


def _with_vectors(items: pl.DataFrame) -> pl.DataFrame:
    vectors = pl.Series("embedding", [[1.0, 0.0]] * len(items), dtype=pl.Array(pl.Float32, 2))
    return items.with_columns(vectors)


def test_promoting_the_champion_again_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    number = version(registry, tmp_path, "again", 0.2)
    registry.promote(number, name="again")
    assert "is the champion already" in registry.promote(number, name="again").why


def test_a_version_without_the_deciding_metric_is_not_promoted(registry: Registry, tmp_path: Path) -> None:
    run_id = registry.log_run(params={}, metrics={}, artifacts={}, tags={})
    number = registry.register(folder(tmp_path / "bundle"), run_id, name="unmeasured")
    with pytest.raises(RegistryError, match=f"'unmeasured' version 1: its run has logged no metric {METRIC}"):
        registry.promote(number, name="unmeasured")
    with pytest.raises(RegistryError, match="'unmeasured' has no version 7"):
        registry.promote(7, name="unmeasured")


def test_what_is_no_bundle_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        registry.register(tmp_path, "no run", name="nothing")
    with pytest.raises(RegistryError, match="no such model"):
        registry.resolve("models:/nothing/1")


def test_a_version_whose_files_are_gone_is_one_line(registry: Registry, tmp_path: Path) -> None:
    registry.register(folder(tmp_path / "bundle"), logged(registry, 0.1), name="gone")
    shutil.rmtree(registry.resolve("models:/gone/1"))
    with pytest.raises(RegistryError, match="No such") as caught:
        registry.resolve("models:/gone/1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["models:/first@nobody", "models:/unheard-of@champion", "models:/first/99"])
def test_a_missing_model_alias_or_version_is_one_line(registry: Registry, tmp_path: Path, uri: str) -> None:
    if registry.champion("first") is None:
        registry.promote(version(registry, tmp_path, "first", 0.01), name="first")
    with pytest.raises(RegistryError, match=f"{uri}: no such model, alias or version in sqlite:") as caught:
        registry.resolve(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["models:/", "models:/x", "models:/x@", "models:/x/latest", "models:/x/1/y", "models:x@y"]
)
def test_what_is_no_model_address_is_told_the_form(registry: Registry, uri: str) -> None:
    with pytest.raises(RegistryError, match="expected models:/NAME@ALIAS or models:/NAME/VERSION"):
        registry.resolve(uri)


def test_asking_a_registry_that_does_not_exist_makes_none(tmp_path: Path) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    settings = Settings(tracking_uri=f"sqlite:///{database}", cache_dir=tmp_path)
    with pytest.raises(RegistryError, match="there is no registry at sqlite:"):
        open_bundle("models:/recommender@champion", settings)
    assert not database.parent.exists()


def test_a_server_out_of_reach_is_one_line_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        registry = Registry(f"http://me:secret@127.0.0.1:{port}", tmp_path)
        with pytest.raises(RegistryError, match=rf"http://\*\*\*@127.0.0.1:{port} is out of reach") as caught:
            registry.resolve("models:/recommender@champion")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["foo://x", "file:///nowhere/mlruns"])
def test_an_address_that_mlflow_does_not_take_is_one_line(tmp_path: Path, uri: str) -> None:
    with pytest.raises(RegistryError, match=f"registry {uri} cannot be opened"):
        Registry(uri, tmp_path).resolve("models:/recommender@champion")


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("precious notes, not a database" * 100)
    with pytest.raises(RegistryError, match=r"cannot be opened: .*not a database"):
        Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).champion()
    assert (tmp_path / "mlflow.db").read_text().startswith("precious notes")


def test_artifacts_lie_beside_the_database_and_not_in_the_current_folder(registry: Registry, home: Path) -> None:
    run_id = logged(registry, 0.1)
    assert (home / "artifacts").as_uri() in registry._client.get_run(run_id).info.artifact_uri


def test_mlflow_reports_no_usage(registry: Registry) -> None:
    registry.champion()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_path_is_opened_as_a_folder_and_not_as_an_address(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        open_bundle(str(tmp_path / "nowhere"), Settings(cache_dir=tmp_path))


def test_a_readout_is_logged_as_a_run_of_its_own(tmp_path: Path, registry: Registry) -> None:
    metrics = [{"name": "clicks@user", "kind": "mean", "column": "clicks"}]
    plan = Experiment.model_validate({"name": "e", "control": "A", "shares": {"A": 0.5, "B": 0.5}, "metrics": metrics})
    units = range(200)
    rows = pl.DataFrame({"user_id": units, "variant": plan.assign(units), "clicks": [u % 7 for u in units]})
    readout = analyze(plan, rows.lazy())
    with pytest.raises(RegistryError, match="holds no readout"):
        registry.log_readout(tmp_path)
    readout.write(tmp_path / "out")
    run_id = registry.log_readout(tmp_path / "out")
    logged = registry._client.get_run(run_id)
    effect = readout.comparisons[0].effect
    assert logged.data.metrics["ab/clicks_at_user/B/effect"] == pytest.approx(effect.effect)
    assert logged.data.metrics["ab/clicks_at_user/B/ci/1"] == pytest.approx(effect.ci[1])
    assert logged.data.params["decision"] == readout.decision
    assert "readout/readout.html" in [file.path for file in registry._client.list_artifacts(run_id, "readout")]
