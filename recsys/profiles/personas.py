"""Personas: a dozen kinds of people, found in what stands out in their tastes, each described in words.

A user is the vector of log lifts of the tastes and decades in their evidence, of unit length; users are clustered by
direction (spherical k-means: Dhillon & Modha, Machine Learning 2001), so that many events make no other persona than
few. Whose tastes do not stand out has none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from recsys.data.words import facet_name, join
from recsys.errors import BundleError
from recsys.profiles.evidence import ENOUGH, Evidence, Trait
from recsys.protocols import Floats, Ints

# Users that personas are found among; and tastes that a description names, those at least this strong beside the first.
AMONG, NAMED, BESIDE = 4000, 4, 0.3
_FILE = "personas.json"
Facet = tuple[str, str, str]


@dataclass(frozen=True)
class Personas:
    """facets  : (attribute, value, kind) of each column
    centres : (personas, facets) of unit length, in order of size
    shares  : (personas,) of the users who have one
    """

    facets: tuple[Facet, ...]
    centres: Floats
    shares: tuple[float, ...]

    @classmethod
    def fit(cls, evidence: Sequence[Evidence], n: int, seed: int) -> "Personas":
        """Find `n` personas, or as many as there are different tastes."""
        from scipy.cluster.vq import kmeans2

        evidence = [e for e in evidence if e.events >= ENOUGH]
        facets = tuple(sorted({_facet(trait) for e in evidence for trait in _standing_out(e)}))
        users = _vectors(evidence, facets)
        users = users[users.any(axis=1)]
        n = min(n, len(np.unique(users, axis=0)))
        if not n:
            return cls((), np.zeros((0, 0), dtype=np.float32), ())
        # k-means of unit vectors; its means are scaled to unit length, which leaves the nearest one the nearest.
        rng = np.random.default_rng(seed)
        centres, _ = kmeans2(users.astype(np.float64), n, iter=30, minit="++", rng=rng, missing="warn")
        centres = centres[centres.any(axis=1)]
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        sizes = np.bincount((users @ centres.T).argmax(axis=1), minlength=len(centres))
        order = [row for row in np.argsort(-sizes, kind="stable") if sizes[row]]
        shares = tuple(float(share) for share in sizes[order] / sizes.sum())
        return cls(facets, centres[order].astype(np.float32), shares)

    def __len__(self) -> int:
        return len(self.shares)

    def of(self, evidence: Sequence[Evidence]) -> Ints:
        """(evidence,) the persona of each user, -1 where no taste of theirs stands out or is known."""
        if not len(self):
            return np.full(len(evidence), -1, dtype=np.int64)
        users = _vectors(evidence, self.facets)
        return np.where(users.any(axis=1), (users @ self.centres.T).argmax(axis=1), -1)

    @cached_property
    def fond_of(self) -> tuple[tuple[Facet, ...], ...]:
        """What people of each persona are above all fond of, the strongest first."""
        return tuple(
            tuple(
                self.facets[f] for f in np.argsort(-centre, kind="stable")[:NAMED] if centre[f] >= BESIDE * centre.max()
            )
            for centre in self.centres
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The same in words."""
        return tuple(join([facet_name(*facet) for facet in facets]) for facets in self.fond_of)

    @cached_property
    def descriptions(self) -> tuple[str, ...]:
        """What prompts, which are in English, are told of who has each persona."""
        return tuple(
            f"You are one of the {max(share, 0.01):.0%} of people who are above all fond of {names}."
            for names, share in zip(self.names, self.shares, strict=True)
        )

    def describe(self, evidence: Sequence[Evidence]) -> pl.Series:
        """The description of each user's persona; empty for who has none."""
        said = ["" if row < 0 else self.descriptions[row] for row in self.of(evidence)]
        return pl.Series("persona", said, dtype=pl.String)

    def save(self, folder: Path) -> None:
        """Write personas.json into the existing folder."""
        facts = {"facets": self.facets, "centres": np.round(self.centres, 6).tolist(), "shares": self.shares}
        (folder / _FILE).write_text(json.dumps(facts, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Personas":
        """Read what `save` wrote. Errors: `BundleError` when it is altered."""
        try:
            facts = json.loads((folder / _FILE).read_text("utf-8"))
            facets = tuple((str(a), str(v), str(k)) for a, v, k in facts["facets"])
            centres = np.array(facts["centres"], dtype=np.float32).reshape(len(facts["shares"]), len(facets))
            return cls(facets, centres, tuple(map(float, facts["shares"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{folder / _FILE}: not saved personas: {error}") from error


def _standing_out(evidence: Evidence) -> tuple[Trait, ...]:
    """The tastes; of who has chosen too little to show any, what the few choices have more of than others'."""
    tastes = (*evidence.tastes, *evidence.eras)
    return tastes or tuple(trait for trait in evidence.common if trait.lift > 1 and evidence.events < ENOUGH)


def _facet(trait: Trait) -> Facet:
    return trait.attribute, trait.value, trait.kind


def _vectors(evidence: Sequence[Evidence], facets: Sequence[Facet]) -> Floats:
    """(evidence, facets) log lifts of what stands out, of unit length; zeros where nothing does."""
    column = {facet: i for i, facet in enumerate(facets)}
    found = np.zeros((len(evidence), len(facets)), dtype=np.float32)
    for row, e in enumerate(evidence):
        for trait in _standing_out(e):
            if (place := column.get(_facet(trait))) is not None:
                found[row, place] = np.log(trait.lift)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12), dtype=np.float32)
