"""Learn what requests mean once for all catalogs, and write what `recsys.rerank.shipped` reads: network, hash, figures.

Requests are written for catalogs that do not exist (`recsys.rerank.worlds`), in nine tenths of the packaged phrasings;
the figures are for the tenth that is kept, and for `--phrases`, other people's. Half an hour of one core.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import save

from recsys.data.files import atomic_file
from recsys.errors import RecsysError
from recsys.lm import EncoderConfig, load_encoder
from recsys.rerank.interpret import Interpreter, Words
from recsys.rerank.meanings import heard_right, train_interpreter
from recsys.rerank.requests import PLAIN, Wording
from recsys.rerank.shipped import FACTS, rounded, shipped
from recsys.rerank.worlds import world
from recsys.settings import load_settings

HERE = Path(__file__).parents[1]


def train_meanings(
    out: Annotated[Path, typer.Option(help="folder to write into")] = HERE / "recsys" / "rerank" / "trained",
    encoder: Annotated[str, typer.Option(help="text encoder: a default, a hub id or a folder")] = "all-minilm-l6-v2",
    requests: Annotated[int, typer.Option(min=100, help="requests to write")] = 60_000,
    passes: Annotated[int, typer.Option(min=1, help="passes over them")] = 8,
    tested: Annotated[int, typer.Option(min=10, help="requests of each kind of test")] = 4000,
    phrases: Annotated[list[Path] | None, typer.Option(help="more phrasings to be tested in")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
) -> None:
    """Train, test and write."""
    settings = load_settings()
    reader = load_encoder(EncoderConfig(model=encoder), settings)
    taught, kept = Wording.read().split()
    writer = world(requests, taught, PLAIN, seed)
    said = writer.write(np.arange(requests, dtype=np.int32), seed)
    names = reader.embed(list(writer.facets.names))
    words = Words.of_requests(said, reader)
    trained = train_interpreter(said, words, names, passes, settings, seed)
    facts: dict[str, Any] = {"requests": requests, "passes": passes, "seed": seed}
    _write(out, trained, reader.model_id, facts)
    network = shipped(reader.model_id, out)  # as it serves, with rounded weights
    assert network is not None

    figures: dict[str, Any] = {}
    for name, wording in {"kept": kept, **{path.stem: Wording.read(path) for path in phrases or []}}.items():
        other = world(tested, wording, 0.0, seed + 1)
        asked = other.write(np.arange(tested, dtype=np.int32), seed + 1)
        values = reader.embed(list(other.facets.names))
        figures[name] = heard_right(network, asked, Words.of_requests(asked, reader), values)
        print(name, json.dumps(figures[name]))
    _write(out, trained, reader.model_id, {**facts, "figures": figures})


def _write(out: Path, network: Interpreter, encoder_id: str, facts: dict[str, Any]) -> None:
    data = save(rounded({name: value.numpy() for name, value in network.state_dict().items()}))
    name = f"{encoder_id.rpartition('@')[0].rpartition('/')[2]}.safetensors"
    there = out / FACTS
    others = [f for f in json.loads(there.read_text("utf-8")) if f["file"] != name] if there.exists() else []
    known = {"encoder": encoder_id, "file": name, "sha256": hashlib.sha256(data).hexdigest(), **facts}
    with atomic_file(out / name) as path:
        path.write_bytes(data)
    with atomic_file(there) as path:
        path.write_text(json.dumps([*others, known], indent=1) + "\n", "utf-8")
    print(f"{out / name}: {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    try:
        typer.run(train_meanings)
    except RecsysError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
