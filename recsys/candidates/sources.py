"""The sources there are: the one place where a new one is named."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from recsys.candidates.als import Als, AlsConfig
from recsys.candidates.base import Source
from recsys.candidates.bpr import Bpr, BprConfig
from recsys.candidates.content import Content, ContentConfig
from recsys.candidates.ease import Ease, EaseConfig
from recsys.candidates.itemknn import ItemKnn, ItemKnnConfig
from recsys.candidates.popular import Popular, PopularConfig
from recsys.candidates.sequential import Sequential, SequentialConfig
from recsys.candidates.transitions import Transitions, TransitionsConfig
from recsys.candidates.twotower import TwoTower, TwoTowerConfig

SourceConfig = Annotated[
    PopularConfig
    | AlsConfig
    | BprConfig
    | EaseConfig
    | ItemKnnConfig
    | TransitionsConfig
    | ContentConfig
    | SequentialConfig
    | TwoTowerConfig,
    Field(discriminator="kind"),
]
SOURCES: Mapping[str, type[Source]] = {
    s.kind: s for s in (Popular, Als, Bpr, Ease, ItemKnn, Transitions, Content, Sequential, TwoTower)
}
