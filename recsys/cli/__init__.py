"""The command line. Each command reads its options, calls one function of the library and prints what it found.

Nothing heavy is imported until a command runs, so that `recsys --help` answers at once.
"""

import logging
import sys
from typing import Annotated

import typer

from recsys.cli import ab, audit, data, forget, line, profile, serve, weights
from recsys.errors import RecsysError

app = typer.Typer(
    name="recsys",
    help="An LLM-powered recommender: candidates, profiles in words, a language-model reranker, explained slates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(ab.app, name="ab")
app.add_typer(data.app, name="data")
profile.app.command()(audit.audit)
app.add_typer(profile.app, name="profile")
app.add_typer(weights.app, name="weights")
app.command()(line.fit)
app.command()(line.evaluate)
app.command()(line.recommend)
app.command()(serve.batch)
app.command()(serve.serve)
app.command()(forget.forget)


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say only warnings and results")] = False,
) -> None:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("recsys").setLevel(logging.WARNING if quiet else logging.INFO)


def main() -> None:
    """Run the command line. An error of the error tree is one line on stderr and exit status 1, never a traceback."""
    try:
        app()
    except RecsysError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
