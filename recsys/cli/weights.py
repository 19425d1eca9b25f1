"""`recsys weights`: fetch the model weights."""

from typing import Annotated

import typer

app = typer.Typer(help="Model weights: fetch once, then work offline.", no_args_is_help=True)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="names, folders or hub ids; the default models if none")
    ] = None,
) -> None:
    """Fetch weights into the cache, check their hash, and say where they lie."""
    from rich import print as show

    from recsys.lm.weights import fetch as fetch_weights
    from recsys.settings import load_settings

    for found in fetch_weights(names, load_settings()):
        show(f"{found.model_id}: {found.path} ({found.licence}, from {found.source})")
