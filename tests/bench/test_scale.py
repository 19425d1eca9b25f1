"""Time and memory of the line at shares of 1 million users, 200,000 items and 20 million events.

`BENCH_SCALE=1,10,100` says which (per cent; 1 by default). Nothing is held in this process: the world is written by
`recsys data synth`, and read, split, fitted on and asked about by `scale_line.py`, each in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

CLI = "from recsys.cli import main; main()"
HERE = Path(__file__).parent
SIZES = [int(size) for size in os.environ.get("BENCH_SCALE", "1").split(",")]
MINUTES, GIGABYTES = 25, 14


def line(*arguments: Any) -> pl.DataFrame:
    """What `scale_line.py` says, on two cores; a single query is too small to share between them."""
    threads = "1" if arguments[0] == "ask" else "2"
    two = {"OMP_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, HERE / "scale_line.py", *arguments]
    done = subprocess.run(command, env={**os.environ, **two}, stdout=subprocess.PIPE, text=True, check=True)
    return pl.DataFrame([json.loads(said) for said in done.stdout.splitlines()])


@pytest.mark.timeout(0)
@pytest.mark.parametrize("percent", SIZES)
def test_the_line_at_scale(percent: int, tmp_path: Path) -> None:
    numbers = {"users": 10_000, "items": 2_000, "events": 200_000}
    options = [part for name, n in numbers.items() for part in (f"--{name}", str(n * percent))]
    synth = [sys.executable, "-c", CLI, "data", "synth", tmp_path / "world", *options]
    subprocess.run(synth, check=True)
    steps = line("fit", tmp_path / "world", tmp_path / "out")
    minutes, peak = steps["wall s"].sum() / 60, steps["peak GB"].max()
    print(f"\n{percent}%: {minutes:.1f} min ({steps['cpu s'].sum() / 60:.1f} of CPU), peak {peak:.2f} GB")
    show(steps)
    show(line("ask", tmp_path / "out"))
    assert minutes <= MINUTES
    assert peak <= GIGABYTES


@pytest.mark.timeout(0)
def test_what_a_query_costs_on_real_data(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The figures that those at scale are compared with."""
    line("fit", real_data("ml-1m"), tmp_path)
    asked = line("ask", tmp_path)
    print("\nml-1m, one query at a time, 100 candidates")
    show(asked)


def show(table: pl.DataFrame) -> None:
    with pl.Config(tbl_rows=-1, float_precision=2):
        print(table)
