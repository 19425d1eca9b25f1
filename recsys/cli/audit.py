"""`recsys profile audit`: what a bundle's profiles are worth, as figures and as a page."""

from pathlib import Path
from typing import Annotated

import typer


def audit(
    bundle: Annotated[str, typer.Option(help="a bundle's folder, or models:/NAME@ALIAS")],
    out: Annotated[Path, typer.Option(help="folder for audit.json and audit.html")],
    users: Annotated[int, typer.Option(min=2, help="users to weigh, drawn by the seed")] = 1000,
    edits: Annotated[int, typer.Option(min=1, help="single edits to try")] = 200,
    lies: Annotated[int, typer.Option(min=1, help="false sentences to plant")] = 200,
    lm_users: Annotated[
        int, typer.Option(min=0, help="let the language model write for this many users, and weigh these")
    ] = 0,
    lm: Annotated[
        str | None, typer.Option(help="local model or hub id for --lm-users; by default the recipe's own")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="how it writes: choose, phrase or write")] = None,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    replace: Annotated[
        bool, typer.Option("--replace", help="write into a folder that holds something already")
    ] = False,
) -> None:
    """Measure whether profiles are true, useful, fresh and steerable, and show twenty beside their evidence.

    Nothing of the bundle changes, and users' edits are left out. The page shows twenty users: it is as private as the
    log.
    """
    from rich.console import Console
    from rich.table import Table

    from recsys.audit import audit as run
    from recsys.audit import write_audit
    from recsys.bundle import stored_spec
    from recsys.data.files import refuse_taken
    from recsys.errors import SpecError
    from recsys.lm import LMConfig, load_lm
    from recsys.registry import open_bundle
    from recsys.settings import load_settings

    if prompt not in (None, "choose", "phrase", "write"):
        raise SpecError(f"--prompt: must be choose, phrase or write, not '{prompt}'")
    if (lm or prompt) and not lm_users:
        raise SpecError("--lm and --prompt go with --lm-users: for how many users the model is to write")
    refuse_taken(out, replace=replace)
    settings = load_settings()
    opened = open_bundle(bundle, settings)
    model = None
    if lm_users:
        own = stored_spec(opened.path, opened.manifest).lm
        config = LMConfig(kind="local", model=lm) if lm else own
        if config.kind == "none":
            raise SpecError("--lm-users: this bundle's recipe has no language model (lm.kind = none); name one by --lm")
        model = load_lm(config.model_copy(update={"record": True}), settings)
    found = run(
        opened,
        settings,
        users=users,
        edits=edits,
        lies=lies,
        lm=model,
        lm_users=lm_users,
        prompt=prompt,  # type: ignore[arg-type]  # checked above
        seed=seed,
    )
    files = write_audit(out, found)
    figures = found.as_dict()
    console = Console(highlight=False)
    table = Table("figure", "value", title=f"{found.users:,} users of {found.bundle}", title_justify="left")
    for name in ("claim_precision", "raw_lm_failure_rate", "planted_caught", "steer_rate", "skipped_regenerations"):
        value = figures[name]
        table.add_row(name, "-" if value is None else f"{value:.3f}")
    for name, (mean, (low, high)) in found.usefulness.recall.items():
        table.add_row(f"usefulness: {name}", f"{mean:.3f} [{low:.3f}, {high:.3f}]")
    console.print(table)
    for file in files:
        console.print(f"written: {file}", markup=False, soft_wrap=True)
