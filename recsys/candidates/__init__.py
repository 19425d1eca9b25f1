"""Candidate generators: from a history to the items worth ordering."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from recsys.candidates.als import Als, AlsConfig
from recsys.candidates.base import Source
from recsys.candidates.bpr import Bpr, BprConfig
from recsys.candidates.content import Content, ContentConfig
from recsys.candidates.ease import Ease, EaseConfig
from recsys.candidates.fusion import Fusion, FusionConfig
from recsys.candidates.itemknn import ItemKnn, ItemKnnConfig
from recsys.candidates.popular import Popular, PopularConfig
from recsys.candidates.sequential import Sequential, SequentialConfig
from recsys.candidates.sources import SOURCES, SourceConfig
from recsys.candidates.transitions import Transitions, TransitionsConfig
from recsys.candidates.twotower import TwoTower, TwoTowerConfig
from recsys.protocols import CandidateGenerator

__all__ = [
    "GENERATORS",
    "Als",
    "AlsConfig",
    "AnyGenerator",
    "AnyGeneratorConfig",
    "Bpr",
    "BprConfig",
    "Content",
    "ContentConfig",
    "Ease",
    "EaseConfig",
    "Fusion",
    "FusionConfig",
    "ItemKnn",
    "ItemKnnConfig",
    "Popular",
    "PopularConfig",
    "Sequential",
    "SequentialConfig",
    "Transitions",
    "TransitionsConfig",
    "TwoTower",
    "TwoTowerConfig",
    "counted_segments",
    "load_generator",
]

AnyGeneratorConfig = Annotated[SourceConfig | FusionConfig, Field(discriminator="kind")]
AnyGenerator = Source | Fusion
GENERATORS: Mapping[str, type[AnyGenerator]] = {**SOURCES, Fusion.kind: Fusion}


def load_generator(kind: str, path: Path) -> AnyGenerator:
    """Read a saved generator of a known kind."""
    return GENERATORS[kind].load(path)


def counted_segments(generator: CandidateGenerator) -> tuple[str, ...]:
    """The segments whose own counts have a part in what a generator proposes, in order."""
    sources: list[Any] = [generator]
    if isinstance(generator, Fusion):
        weighted = zip(generator.sources.values(), generator.weights, strict=True)
        sources = [source for source, weight in weighted if weight]
    return tuple(sorted({s for source in sources if isinstance(source, Popular) for s in source.segments.ids}))
