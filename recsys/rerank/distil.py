"""How the student is trained: its teacher orders many lists, and it learns to order them alike.

The loss is the cross-entropy between the softmax of the teacher's scores and that of the student's over each list
(ListNet, Cao et al., ICML 2007; with a teacher's scores for labels: RankDistil, Reddi et al., AISTATS 2021).
No answer is asked for: the lists are those of tune's queries, and of the same queries with shorter histories. A teacher
that had not seen the answers of tune leaves the student in the same ignorance.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.data.split import Questions
from recsys.data.vocab import Codes, Vocab
from recsys.errors import ModelError
from recsys.metrics import ndcg
from recsys.networks.items import attribute_vectors, centred, item_vectors
from recsys.networks.pairs import cooccurrence
from recsys.networks.training import Schedule, fingerprint, train, workplace
from recsys.protocols import Floats, Ints
from recsys.rerank.features import Ranked, popularity
from recsys.rerank.fused import Fused
from recsys.rerank.fusion import standardise
from recsys.rerank.requests import Facets, Wording, Writer
from recsys.rerank.student import (
    HALF_LIVES,
    WEIGHTS,
    StudentConfig,
    StudentJudge,
    coded,
    features_of,
    forward,
    past_of,
    read,
    said,
)
from recsys.rerank.train import LIKENESS, School
from recsys.tables import Candidates, Profiles, Queries, query_histories

# Directions of text that are kept, those in which items differ most.
DIRECTIONS = 64
# Parts of users' and items' vectors whose products are features of their own.
HEADS = 8
# Share of what is learned of single items that is left out at a training step.
DROPOUT = 0.3


def train_student(config: StudentConfig, school: School, teacher: Fused, questions: Questions, *, seed: int) -> Fused:
    """Train the student on the teacher's order, then learn on tune's `questions` what its opinion is worth.

    Errors: `SpecError` where the catalog has no text vectors; those of the teacher.
    """
    vocab = Vocab.of_items(school.catalog)
    histories = vocab.histories(query_histories(school.before))
    writer = _writer(school, vocab, histories)
    rng = np.random.default_rng(seed)
    cut = shortened(questions.queries, config.lists, rng)
    known = school.describe.as_of(cut)
    share = rng.random(len(cut))
    withheld = share < config.told
    cut = with_texts(cut, [""] * len(cut), withheld)
    lists = Ranked.of(cut, school.generate(cut)).head(config.depth)
    asking = np.flatnonzero(share > 1 - config.requests) if len(writer.facets) else np.zeros(0, dtype=np.int64)
    # A request that is true of some candidate: as likely of one as of another.
    any_of = lists.starts + (rng.random(len(lists)) * lists.sizes).astype(np.int64)
    wish = np.full(len(cut), -1)
    wish[lists.asked] = coded(vocab, lists)[any_of]
    cut = with_texts(cut, _requests(writer, wish, asking, seed), np.zeros(len(cut), dtype=bool))
    taught = Taught.by(teacher, lists, cut, known, school)

    counts = popularity(school.before)
    items = known_of(school, vocab, histories)
    events = np.array([counts.get(item, 0) for item in vocab.ids.to_list()], dtype=np.float32)
    encoder = school.encoder
    names = ("score", "log_rank", *taught.lists.sources)
    material = Material.of(taught, vocab, names, items, np.log1p(events), cut, known, school)
    pupil, report = _learn(config, material, items, school, seed)
    arrays = {**pupil.weights(), "items": items, "popularity": np.log1p(events)}
    judge = StudentJudge(config, vocab, names, arrays, encoder.model_id, lambda: encoder)

    part = rng.permutation(len(questions)) % 3
    answers = vocab.encode(questions.truth.frame["item_id"])
    asking = np.flatnonzero((part == 1) & (answers >= 0)) if config.requests and len(writer.facets) else asking[:0]
    described = school.describe.as_of(questions.queries)
    texts = _requests(writer, answers, asking, seed + 1)
    asked = with_texts(questions.queries, texts, (part == 2) & (config.told > 0))
    fused = config.fuse(
        judge,
        Questions(asked, questions.truth),
        school.generate(asked),
        described,
        school.catalog,
        school.before,
        seed=seed,
    )
    return replace(fused, report={**fused.report, "training": report, "teacher": dict(teacher.report)})


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


def with_texts(queries: Queries, requests: list[str], withheld: npt.NDArray[np.bool_]) -> Queries:
    """The same queries with these requests, some of them with no history to read."""
    hidden = pl.Series(withheld)
    return Queries(
        queries.frame.with_columns(
            pl.Series("request", requests, dtype=pl.String),
            *(
                pl.when(hidden).then(pl.col(name).list.head(0)).otherwise(pl.col(name)).alias(name)
                for name in ("history", "weights", "times")
            ),
        )
    )


def _writer(school: School, vocab: Vocab, histories: Any) -> Writer:
    likeness = (item_vectors(school.catalog, vocab), cooccurrence(histories, len(vocab), LIKENESS))
    facets = Facets.of(school.catalog, vocab, histories.items)
    return Writer(facets, Wording.read(), np.hstack([centred(vectors) for vectors in likeness]))


def _requests(writer: Writer, wish: Codes, asking: Ints, seed: int) -> list[str]:
    asking = asking[wish[asking] >= 0]
    texts = [""] * len(wish)
    for row, request in zip(asking, writer.write(wish[asking], seed) if len(asking) else [], strict=True):
        texts[row] = request.text
    return texts


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
    """Lists that the teacher ordered, and its scores of their rows, standardised within each list."""

    lists: Ranked
    scores: Floats

    @classmethod
    def by(cls, teacher: Fused, lists: Ranked, queries: Queries, profiles: Profiles, school: School) -> "Taught":
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
        scores = found["taught"].to_numpy()[lists.rows(kept)]
        some = lists.take(kept)
        return cls(some, standardise(scores, some.sizes).astype(np.float32))


@dataclass(frozen=True)
class Material:
    """All that the student reads of the taught lists. first : (lists,) the teacher's first, as a row of its list."""

    past: Floats
    text: Floats
    codes: Ints
    features: Floats
    scores: Floats
    lists: Ranked
    first: Ints

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
    ) -> "Material":
        """As the judge makes it of queries."""
        lists = taught.lists
        codes = coded(vocab, lists)
        text = read(said(queries, profiles), lambda: school.encoder, item_vectors(school.catalog, vocab).shape[1])
        past = past_of(vocab.histories(queries).take(lists.asked), items)
        best = np.lexsort((-taught.scores, lists.lists))[lists.starts] - lists.starts
        features = features_of(names, lists, popularity[codes])
        return cls(past, text[lists.asked], codes, features, taught.scores, lists, best)

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


class Exercises:
    """The lists of one epoch, in a new order."""

    def __init__(self, material: Material, lists: Ints, batch: int, rng: np.random.Generator) -> None:
        self._material, self._lists, self._batch = material, rng.permutation(lists), batch

    def __len__(self) -> int:
        return -(-len(self._lists) // self._batch)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for at in range(0, len(self._lists), self._batch):
            yield self._material.batch(self._lists[at : at + self._batch])


class Pupil(nn.Module):
    """The student's network in training; `forward` is its loss."""

    items: Tensor

    def __init__(self, items: Floats, width: int, features: int, config: StudentConfig) -> None:
        super().__init__()
        n, known = items.shape
        dim, hidden = HEADS * -(-config.dim // HEADS), config.hidden
        self.temperature = config.temperature
        self.register_buffer("items", torch.from_numpy(items), persistent=False)
        self.project = nn.Parameter(torch.randn(known, dim) / known**0.5)
        self.own, self.bias = nn.Parameter(torch.zeros(n, dim)), nn.Parameter(torch.zeros(n))
        start = {
            # It begins with the likeness of what was met and what is offered.
            "past": torch.cat([self.project.detach() / len(HALF_LIVES)] * len(HALF_LIVES) + [torch.zeros(1, dim)]),
            "text": torch.randn(2 * width, 4 * hidden) / width**0.5,
            "read": torch.zeros(4 * hidden, dim),
            "linear": torch.eye(features, 1)[:, 0],
            "features": torch.randn(features, hidden) / features**0.5,
            "matches": torch.randn(HEADS, hidden) / HEADS**0.5,
            "shift": torch.zeros(hidden),
            "out": torch.zeros(hidden),
        }
        self.layers = nn.ParameterDict({name: nn.Parameter(start[name]) for name in WEIGHTS})

    def scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(rows,) of the candidates of a batch."""
        codes = batch["codes"]
        own = functional.dropout(self.own[codes], DROPOUT, self.training)
        tokens = self.items[codes] @ self.project + own
        found: Tensor = forward(
            dict(self.layers.items()),
            batch["past"],
            batch["text"],
            batch["own"],
            tokens,
            self.bias[codes],
            batch["features"],
        )
        return found

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The cross-entropy between the teacher's softmax and the student's, list by list."""
        target, found = (self.table(x, batch) for x in (batch["scores"] / self.temperature, self.scores(batch)))
        share = target.softmax(dim=1)
        return -(share * found.log_softmax(dim=1).masked_fill(share == 0, 0)).sum(dim=1).mean()

    def table(self, values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(lists, rows of the longest) of values by row; minus infinity where a list is shorter."""
        own, place = batch["own"], batch["place"]
        table = values.new_full((int(own.max()) + 1, int(place.max()) + 1), -torch.inf)
        return table.index_put((own, place), values)

    def weights(self) -> dict[str, Floats]:
        """What the judge needs."""
        with torch.inference_mode():
            found = dict(self.layers.items())
            found |= {"tokens": self.items @ self.project + self.own, "bias": self.bias}
            return {name: np.array(value.detach().numpy()) for name, value in found.items()}


def _learn(
    config: StudentConfig, material: Material, items: Floats, school: School, seed: int
) -> tuple[Pupil, dict[str, Any]]:
    """Train, and say how well the teacher's first is found in lists that were held out."""
    order = np.random.default_rng(seed).permutation(len(material.lists))
    held, learned = np.split(order, [max(1, round(config.heldout * len(order)))])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pupil = Pupil(items, material.text.shape[1] // 2, material.features.shape[1], config)

    def exercises(epoch: int) -> Exercises:
        return Exercises(material, learned, config.batch, np.random.default_rng((seed, epoch)))

    schedule = Schedule(rate=config.rate, weight_decay=config.weight_decay, finish=config.epochs)
    key = fingerprint(config, seed, material.codes, material.scores, material.past, items)
    with workplace(school.settings, key) as folder:
        # On the CPU: it is small.
        train(pupil, exercises, None, schedule, seed=seed, device="cpu", folder=folder, title="student")
    test = material.batch(held)
    with torch.inference_mode():
        scores = pupil.table(pupil.scores(test).float(), test)
        best = scores[torch.arange(len(held)), torch.from_numpy(material.first[held])][:, None]
    found = ndcg(pl.Series((1.0 + (scores > best).sum(dim=1)).tolist()), 10)
    return pupil, {"lists": len(material.lists), "teachers_first_ndcg@10": float(found.mean())}
