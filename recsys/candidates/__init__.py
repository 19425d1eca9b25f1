"""Candidate generators: from a history to the items worth ordering."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from recsys.candidates.als import Als, AlsConfig
from recsys.candidates.content import Content, ContentConfig
from recsys.candidates.fusion import Fusion, FusionConfig
from recsys.candidates.popular import Popular, PopularConfig
from recsys.candidates.transitions import Transitions, TransitionsConfig

__all__ = [
    "GENERATORS",
    "Als",
    "AlsConfig",
    "AnyGenerator",
    "AnyGeneratorConfig",
    "Content",
    "ContentConfig",
    "Fusion",
    "FusionConfig",
    "Popular",
    "PopularConfig",
    "Transitions",
    "TransitionsConfig",
    "load_generator",
]

AnyGeneratorConfig = Annotated[
    PopularConfig | AlsConfig | TransitionsConfig | ContentConfig | FusionConfig, Field(discriminator="kind")
]
AnyGenerator = Popular | Als | Transitions | Content | Fusion
GENERATORS: dict[str, type[AnyGenerator]] = {
    "popular": Popular,
    "als": Als,
    "transitions": Transitions,
    "content": Content,
    "fusion": Fusion,
}


def load_generator(kind: str, path: Path) -> AnyGenerator:
    """Read a saved generator of a known kind."""
    return GENERATORS[kind].load(path)
