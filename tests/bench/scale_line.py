"""One run of the line over a dataset folder, in a process of its own; `test_scale.py` starts it and reads what it says.

    python tests/bench/scale_line.py fit FOLDER OUT    reads, splits and fits, and keeps the sources and some queries
    python tests/bench/scale_line.py ask OUT           asks the kept sources one query at a time, on one thread

One JSON object a line. The peak of memory is reset before each step (Linux: /proc/self/clear_refs), so that a step is
charged with what it holds and with what the line held before it, never with an earlier step's peak.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.candidates import (
    AlsConfig,
    ContentConfig,
    Fusion,
    FusionConfig,
    PopularConfig,
    TransitionsConfig,
    load_generator,
)
from recsys.data.ingest import read_dataset
from recsys.data.split import split_log
from recsys.tables import Catalog, Queries

CONFIGS = (PopularConfig(), PopularConfig(half_life=3.0), TransitionsConfig(), AlsConfig(), ContentConfig())
ASKED = 300
DIM = 384


def step(name: str, call: Callable[[], Any]) -> Any:
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    print(json.dumps({"step": name, "wall s": wall, "cpu s": cpu, "peak GB": peak}), flush=True)
    return result


def with_hashed_words(catalog: Catalog) -> Catalog:
    """Unit vectors of signed, hashed words, in place of a text encoder: 15 ms of CPU a text, 50 minutes for 200,000."""
    row = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    words = catalog.frame.select(row, word=pl.col("text").str.to_lowercase().str.extract_all(r"\w+")).explode("word")
    hashed = words["word"].hash(seed=0).to_numpy()
    vectors = np.zeros((len(catalog), DIM), dtype=np.float32)
    place = (words["row"].to_numpy(), (hashed % DIM).astype(np.intp))
    np.add.at(vectors, place, np.where(hashed >> np.uint64(63), np.float32(1), np.float32(-1)))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return Catalog(catalog.frame.with_columns(embedding=pl.Series(vectors, dtype=pl.Array(pl.Float32, DIM))))


def fit(folder: Path, out: Path) -> None:
    dataset = step("ingest", lambda: read_dataset(folder))
    split = step("split", lambda: split_log(dataset.log, "leave-last"))
    known = step("what is known before test", lambda: split.known)
    queries = step("questions", lambda: split.questions("test").sample(ASKED, 0)).queries
    catalog = step("text vectors", lambda: with_hashed_words(dataset.catalog))
    names = []
    for config in CONFIGS:
        name = "trending" if getattr(config, "half_life", None) else config.kind
        source = step(f"fit {name}", lambda config=config: config.fit(known, catalog, seed=0))
        step(f"save {name}", lambda source=source, name=name: source.save(out / name))
        names.append(name)
        del source
    queries.frame.write_parquet(out / "queries.parquet")


def load(folder: Path) -> Any:
    return load_generator(json.loads((folder / "options.json").read_text())["kind"], folder)


def ask(out: Path) -> None:
    queries = list(Queries(pl.read_parquet(out / "queries.parquet")).batches(1))
    folders = sorted(folder for folder in out.iterdir() if folder.is_dir())
    sources: Any = {folder.name: load(folder) for folder in folders}
    # What a query costs does not depend on the weights.
    fusion = Fusion(FusionConfig(), sources, np.full(len(sources), 0.5), {}, np.zeros(0, dtype=np.intp))
    for name, generator in {**sources, "fusion": fusion}.items():
        for query in queries[:20]:
            generator.generate(query, 100)
        taken = np.array([_fastest(lambda: generator.generate(query, 100)) for query in queries])  # noqa: B023
        wall, cpu = np.quantile(taken * 1e3, [0.5, 0.99], axis=0).T
        found = {"wall p50 ms": wall[0], "wall p99 ms": wall[1], "cpu p50 ms": cpu[0], "cpu p99 ms": cpu[1]}
        print(json.dumps({"generator": name, **found}), flush=True)


def _fastest(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of CPU, the least of three calls each: other programs can only add to them."""
    taken = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*taken, strict=True)
    return min(walls), min(cpus)


if __name__ == "__main__":
    {"fit": fit, "ask": ask}[sys.argv[1]](*map(Path, sys.argv[2:]))
