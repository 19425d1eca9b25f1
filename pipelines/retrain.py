"""Retrain: ingest -> fit -> profiles -> rerank -> evaluate -> publish, on a dataset folder.

The recipe is fitted and measured with test held out, then fitted again on the whole log; that second line is what is
published: logged to MLflow, registered, and made `champion` if the recipe is not worse than the champion's.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from recsys import bundle
from recsys.data.datasets import dataset_path
from recsys.data.ingest import read_dataset
from recsys.data.split import SplitKind
from recsys.erasure import without_erased
from recsys.errors import RecsysError
from recsys.evaluate import Evaluation, evaluate, write_results
from recsys.profiles.versions import open_store
from recsys.registry import MODEL, SETTING, Registry, setting_tag
from recsys.report import stage_table, write_report
from recsys.report.assemble import report_data
from recsys.settings import load_settings
from recsys.spec import fit, load_spec

log = logging.getLogger("recsys.pipelines")


def retrain(
    data: Annotated[str, typer.Argument(help="a dataset folder, or the name of a fetched one")],
    spec: Annotated[Path, typer.Option(help="the recipe, a TOML file")],
    out: Annotated[Path, typer.Option(help="folder for the evaluation and the bundle; replaced")] = Path("out/retrain"),
    split: Annotated[SplitKind, typer.Option(help="how test is held out")] = "leave-last",
    k_core: Annotated[int | None, typer.Option(min=1, help="evaluate on users and items with this many events")] = None,
    sample_users: Annotated[int | None, typer.Option(min=1, help="evaluate this many users")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    model: Annotated[str, typer.Option(help="name in the registry")] = MODEL,
    tolerance: Annotated[float, typer.Option(min=0, help="NDCG@10 that a new champion may lack")] = 0.001,
) -> None:
    """Fit, evaluate and publish a recipe on a dataset."""
    settings, recipe = load_settings(), load_spec(spec)
    registry = Registry.of(settings)
    champion = registry.champion(model)  # asked first: a registry out of reach shows before hours of work
    dataset = without_erased(read_dataset(dataset_path(data, settings)), open_store(settings.state_uri))
    options: dict[str, Any] = {"split": split, "core": k_core, "sample_users": sample_users, "seed": seed}
    log.info("evaluate: fit with test held out")
    found = evaluate(dataset, recipe, settings, **options)
    write_results(found, out / "evaluation")
    write_report(out / "evaluation" / "report.html", report_data(found, dataset))

    setting = setting_tag(dataset, options)
    rival = None
    if champion is not None and champion.setting != setting:
        old = registry.resolve(f"models:/{model}@champion")
        before = bundle.stored_spec(old, bundle.read_manifest(old))
        rival = _served(found if before == recipe else evaluate(dataset, before, settings, **options))["ndcg@10"]

    log.info("publish: fit on the whole log")
    texts = registry.champions_profiles(model) if recipe.profiles.lm_users else None
    fitted = fit(dataset, recipe, settings, seed=seed, before=texts)
    path = bundle.write(
        out / "bundle", fitted.recommender, dataset, spec=fitted.spec, metrics=found.metrics["stages"], replace=True
    )
    run_id = registry.log_run(
        params={"spec": recipe.model_dump(mode="json"), **options, "data": found.metrics["data"]},
        metrics={"served": _served(found), **{key: found.metrics[key] for key in ("stages", "lift", "seconds")}},
        artifacts={"evaluation": out / "evaluation"},
        tags={SETTING: setting, "data": dataset.name, "spec": recipe.name},
    )
    number = registry.register(path, run_id, name=model)
    promotion = registry.promote(number, name=model, tolerance=tolerance, rival=rival)

    Console().print(stage_table(found.metrics))
    print(f"run {run_id} in {out}: evaluation/report.html, bundle/")
    print(f"version {number} of '{model}' is the {'champion' if promotion.promoted else 'challenger'}: {promotion.why}")
    if champion is not None and not promotion.promoted:
        print(f"the champion is still version {champion.number}")
    print(f"serve it: recsys serve --bundle models:/{model}@champion")


def _served(found: Evaluation) -> dict[str, Any]:
    """The metrics of the stage that is served, and so the ones that decide."""
    return dict(found.metrics["stages"]["reranked"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    try:
        typer.run(retrain)
    except RecsysError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
