"""Item-based nearest neighbours: an item speaks for those that the same users met.

Deshpande & Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 22(1), 2004. As in RecBole, each item
keeps its own nearest neighbours, and a query scores it by those of them that stand in the history.
"""

from typing import ClassVar, Literal

from pydantic import Field

from recsys.candidates.base import Variants
from recsys.candidates.cooccurrence import ItemToItem, ItemToItemConfig, nearest, user_items
from recsys.data.vocab import Vocab
from recsys.tables import Catalog, InteractionLog


class ItemKnnConfig(ItemToItemConfig):
    """neighbours: how many each item keeps; shrink: by how much cosines of pairs that few users met are held down."""

    kind: Literal["itemknn"] = "itemknn"
    neighbours: int = Field(default=200, ge=1)
    shrink: float = Field(default=5.0, ge=0)

    def variants(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> Variants:
        """Settings worth trying, from one fit."""
        return self.fit(log, catalog, seed=seed).faded()

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> "ItemKnn":
        vocab = Vocab.of_items(catalog)
        return ItemKnn(vocab, self, nearest(user_items(vocab, log), self.neighbours, shrink=self.shrink).T.tocsr())


class ItemKnn(ItemToItem):
    """scores = sum of an item's cosines to the history's items among its neighbours, weighted by recency."""

    kind: ClassVar[str] = "itemknn"
    config_type = ItemKnnConfig
