"""What the student is taught from: lists of tune's queries, whole and shortened, as its teacher ordered them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from recsys.data.vocab import Vocab
from recsys.errors import ModelError
from recsys.networks.items import attribute_vectors, centred, item_vectors
from recsys.networks.pairs import cooccurrence
from recsys.protocols import Floats, Ints
from recsys.rerank.features import Ranked
from recsys.rerank.fused import Fused, regimes_of
from recsys.rerank.fusion import standardise
from recsys.rerank.plain_reader import PlainReader
from recsys.rerank.student import EarSource, coded, expected, features_of, heard, past_of, read, said
from recsys.rerank.train import School
from recsys.tables import Candidates, Profiles, Queries

# Directions of text that are kept, those in which items differ most.
DIRECTIONS = 64


def shortened(queries: Queries, n: int, rng: np.random.Generator) -> Queries:
    """`n` queries: the given ones in turn, whole the first time, then each with only the first part of its history."""
    place = np.arange(n) % len(queries)
    if n < len(queries):
        place = np.sort(rng.permutation(len(queries))[:n])
    frame = queries.frame[place]
    length = frame["history"].list.len().to_numpy()
    kept = np.where(np.arange(n) < len(queries), length, (rng.random(n) * (length + 1)).astype(np.int64))
    frame = frame.with_columns(
        query_id=pl.int_range(n, dtype=pl.Int64),
        **{name: pl.col(name).list.head(pl.lit(pl.Series(kept))) for name in ("history", "weights", "times")},
    )
    at = pl.when(pl.Series(kept < length)).then(pl.col("times").list.last()).otherwise(None)
    return Queries(frame.with_columns(at=pl.coalesce(at, "at")))


def known_of(school: School, vocab: Vocab, histories: Any) -> Floats:
    """(items, width) the directions in which texts differ most, factors of co-occurrence, and attributes."""
    text = centred(item_vectors(school.catalog, vocab))
    _, directions = np.linalg.eigh(text.T.astype(np.float64) @ text)
    met = cooccurrence(histories, len(vocab), DIRECTIONS)
    met /= np.maximum(np.linalg.norm(met, axis=1, keepdims=True), 1e-9)
    attributes = attribute_vectors(school.catalog, vocab) / 2
    return np.hstack([text @ directions[:, ::-1][:, :DIRECTIONS].astype(np.float32), met, attributes])


@dataclass(frozen=True)
class Taught:
    """Lists that the teacher ordered, and its scores of their rows, without what the requests mean, standardised within
    each list."""

    lists: Ranked
    scores: Floats

    @classmethod
    def by(
        cls,
        teacher: Fused,
        lists: Ranked,
        queries: Queries,
        profiles: Profiles,
        school: School,
        vocab: Vocab,
        ear: EarSource | None,
    ) -> "Taught":
        """Ask the teacher; lists that it failed on are left out. Errors: `ModelError` where those are all."""
        answer = teacher.rerank(queries, Candidates(lists.frame), profiles, school.catalog).frame
        told = answer.select("query_id", "item_id", taught="score", by="served_by")
        found = lists.frame.select("query_id", "item_id").join(
            told, on=["query_id", "item_id"], how="left", maintain_order="left"
        )
        by_teacher = np.maximum.reduceat((found["by"] == "reranker").to_numpy(), lists.starts)
        kept = np.flatnonzero(by_teacher & (lists.sizes > 1))
        if not len(kept):
            raise ModelError(f"the student's teacher ordered none of the {len(lists)} lists that it was asked about")
        scores = found["taught"].to_numpy() - _limits(teacher, lists, queries, school, vocab, ear)
        scores = scores[lists.rows(kept)]
        some = lists.take(kept)
        return cls(some, standardise(scores, some.sizes).astype(np.float32))


def _limits(
    teacher: Fused, lists: Ranked, queries: Queries, school: School, vocab: Vocab, ear: EarSource | None
) -> npt.NDArray[np.float64]:
    """(rows,) what the meaning of requests adds to the teacher's scores: the student hears that for itself."""
    added = np.zeros(len(lists.frame))
    asking, asked, _ = heard(ear, queries, lambda: school.encoder, school.encoder.model_id)
    fusion = teacher.fusions.get("request", teacher.fusions["plain"])
    codes, list_of = coded(vocab, lists), {int(row): i for i, row in enumerate(lists.asked)}
    for place, query in enumerate(asking):
        if ear is not None and int(query) in list_of:
            rows = lists.rows(np.array([list_of[int(query)]]))[: teacher.depth]
            added[rows] = ear().fits(asked.take(np.array([place])), codes[rows])[0] / fusion.sharpness
    return added


@dataclass(frozen=True)
class Material:
    """All that the student reads of the taught lists.

    first : (lists,) the teacher's first, as a row of its list; plain : (lists,) whether nothing is said in words
    """

    past: Floats
    text: Floats
    codes: Ints
    features: Floats
    scores: Floats
    lists: Ranked
    first: Ints
    plain: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        taught: Taught,
        vocab: Vocab,
        names: tuple[str, ...],
        items: Floats,
        popularity: Floats,
        queries: Queries,
        profiles: Profiles,
        school: School,
        ear: EarSource | None,
        reader: PlainReader | None,
    ) -> "Material":
        """As the judge makes it of queries."""
        lists = taught.lists
        codes = coded(vocab, lists)
        width, encoder_id = item_vectors(school.catalog, vocab).shape[1], school.encoder.model_id
        text = read(said(queries, profiles), lambda: school.encoder, encoder_id, width)
        _, _, like = heard(ear, queries, lambda: school.encoder, encoder_id)
        histories = vocab.histories(queries).take(lists.asked)
        past = past_of(histories, like[lists.asked], items)
        best = np.lexsort((-taught.scores, lists.lists))[lists.starts] - lists.starts
        features = features_of(names, lists, popularity[codes], expected(reader, histories, lists.lists, codes))
        plain = regimes_of(queries)[lists.asked] == "plain"
        return cls(past, text[lists.asked], codes, features, taught.scores, lists, best, plain)

    def line(self, lists: Ints) -> tuple[Floats, float]:
        """Weights of the features by which some of the lists, those without words, are scored most like their teacher
        did (least squares), and the share of its scores' variance that they explain."""
        rows = self.lists.rows(lists[self.plain[lists]])
        features, scores = self.features[rows].astype(np.float64), self.scores[rows]
        if not len(rows):
            return np.eye(1, features.shape[1], dtype=np.float32)[0], 0.0
        weights = np.linalg.lstsq(features, scores, rcond=None)[0]
        left = float(((scores - features @ weights) ** 2).sum() / max(float((scores**2).sum()), 1e-12))
        return weights.astype(np.float32), 1 - left

    def batch(self, lists: Ints) -> Mapping[str, Tensor]:
        """Some of the lists."""
        rows = self.lists.rows(lists)
        own = np.repeat(np.arange(len(lists)), self.lists.sizes[lists])
        place = self.lists.places[rows]
        found = {
            "past": self.past[lists],
            "text": self.text[lists],
            "codes": self.codes[rows],
            "features": self.features[rows],
            "scores": self.scores[rows],
            "own": own,
            "place": place,
        }
        return {name: torch.from_numpy(value) for name, value in found.items()}
