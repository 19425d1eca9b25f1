"""What is said of who has chosen too little to be described: what people like them like, else what everybody does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from recsys.profiles.evidence import ENOUGH, Evidence
from recsys.profiles.personas import Facet, Personas
from recsys.profiles.population import Population
from recsys.profiles.template import Phrases, Sentence

USER, PERSONA, GLOBAL = "user", "persona", "global"
"""How far a profile is one's own: by support, the first of these that there is."""
_NAMED = 3


@dataclass(frozen=True)
class Levels:
    """The two levels above the user's own, over one population."""

    population: Population
    personas: Personas | None
    phrases: Phrases

    def of(self, evidence: Sequence[Evidence]) -> tuple[list[str], list[Sentence | None]]:
        """The level of each profile, and what is said of the company; None where the user's own choices will do."""
        thin = [row for row, e in enumerate(evidence) if e.events < ENOUGH]
        levels: list[str] = [USER] * len(evidence)
        said: list[Sentence | None] = [None] * len(evidence)
        near = np.full(len(thin), -1) if self.personas is None else self.personas.of([evidence[row] for row in thin])
        for row, persona in zip(thin, near.tolist(), strict=True):
            levels[row] = GLOBAL if persona < 0 else PERSONA
            said[row] = self.everybody if persona < 0 else self._like_them[persona]
        return levels, said

    @cached_property
    def everybody(self) -> Sentence | None:
        """What most of the liked choices are; None for a catalog without attributes."""
        values = self.population.values.filter(pl.col("kind") == "value")
        most = values.sort("liked_share", "attribute", "value", descending=[True, False, False]).head(_NAMED)
        rows = most.select("attribute", "value", "kind", "liked_share").rows()
        if not rows:
            return None
        claims = [f"everybody|{attribute}|{value}|share={share:.2f}" for attribute, value, _, share in rows]
        return self.phrases.say("everybody", claims, names=self._names([row[:3] for row in rows]))

    @cached_property
    def _like_them(self) -> list[Sentence]:
        found = self.personas
        told = () if found is None else zip(found.fond_of, found.shares, strict=True)
        return [
            self.phrases.say("persona", [f"persona|{row}|share={share:.2f}"], names=self._names(facets))
            for row, (facets, share) in enumerate(told)
        ]

    def _names(self, facets: Sequence[Facet]) -> str:
        return self.phrases.join([self.phrases.facet(*facet) for facet in facets])
