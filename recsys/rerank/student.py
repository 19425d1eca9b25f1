"""The student: a small network that orders candidates as a slower reranker, its teacher, does, in plain numpy.

What it reads is worked out beforehand, or is in the candidates: the items of the history, as means that forget at
several speeds, of text vectors, attributes and factors of co-occurrence; the item that a request names, and the text
encoder's vector of a request, or of the profile where there is no history; the sources' scores. `distil` trains it.
What it need not learn it has of its teacher: of one that reads histories by a small network, that network
(`plain_reader`), and the ear for what requests mean (`hearing`), where that has one.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from recsys.data.vocab import Histories, Vocab, history_lengths
from recsys.errors import BundleError
from recsys.protocols import Floats, Ints
from recsys.rerank.choosing import PairwiseConfig, SetwiseConfig
from recsys.rerank.endpoint import EndpointConfig
from recsys.rerank.features import Ranked, candidate_codes, raw
from recsys.rerank.fused import FusedConfig
from recsys.rerank.fusion import Array, standardise
from recsys.rerank.hearing import Asked, Ear, EncoderSource, listen, summoned
from recsys.rerank.judge import readable
from recsys.rerank.listwise import ListwiseConfig
from recsys.rerank.packed import PackedConfig
from recsys.rerank.plain_reader import PlainReader, one_thread
from recsys.rerank.sequence import SequenceConfig, profiles_read
from recsys.tables import Catalog, Profiles, Queries

EarSource = Callable[[], Ear]
# Events after which an item counts half, for each mean of a history.
HALF_LIVES = (0.7, 2.0, 8.0, 40.0)
# Last events of a history that are read.
LENGTH = 100
# What each of them counts, last event last: (LENGTH, half-lives).
_FADING = (0.5 ** (np.arange(LENGTH)[::-1, None] / np.array(HALF_LIVES))).astype(np.float32)
# Lists that are judged at once.
ROWS = 256
_FILE, _READER = "judge.json", "reader."

TeacherConfig = Annotated[
    SequenceConfig | PackedConfig | ListwiseConfig | PairwiseConfig | SetwiseConfig | EndpointConfig,
    Field(discriminator="kind"),
]


class StudentConfig(FusedConfig):
    """How the student is built.

    teacher     : whose order it learns
    lists       : candidate lists that the teacher orders for it: tune's, each again with a shorter history, as often as
        it takes
    requests    : share of the lists that come with a request in words
    told        : share of the lists that come with a profile instead of a history
    temperature : of the softmax over the teacher's standardised scores; low ones look at the first places only
    dim, hidden : width of the vectors of users and items, and of the layer that reads features
    rate, weight_decay, batch, epochs : of AdamW, whose rate goes down to zero; lists in a batch; passes over the lists
    heldout     : share of the lists on which the report says how well the teacher's order was learned
    """

    reads_text: ClassVar[bool] = True

    kind: Literal["student"] = "student"
    teacher: TeacherConfig = Field(default_factory=SequenceConfig)
    depth: int = Field(default=100, ge=1, le=1000)
    reach: int = Field(default=3, ge=1, le=100)
    tune_users: int = Field(default=1000, ge=1)
    lists: int = Field(default=6000, ge=20)
    requests: float = Field(default=0.3, ge=0, le=0.5)
    told: float = Field(default=0.1, ge=0, le=0.5)
    temperature: float = Field(default=0.5, gt=0)
    dim: int = Field(default=64, ge=1)
    hidden: int = Field(default=32, ge=1)
    rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    batch: int = Field(default=32, ge=1)
    epochs: int = Field(default=8, ge=1)
    heldout: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _knows_no_answers(self) -> Self:
        # An adapter learns from answers of tune, and the student is weighed by those.
        if isinstance(self.teacher, PackedConfig) and self.teacher.adapter is not None:
            raise ValueError("teacher.adapter: a student's teacher cannot have one: it has seen the answers")
        return self

    @property
    def needs_lm(self) -> bool:  # type: ignore[override]
        """Whether the teacher does."""
        return self.teacher.needs_lm


@dataclass(frozen=True)
class StudentJudge:
    """Implements `rerank.judge.Judge`. The text encoder is loaded when the first text is read.

    names  : features of candidates that it reads, as `features.compute` knows them
    arrays : "items" (items, width) what is known of each item; "tokens" (items, dim) and "bias" (items,) what was
             learned of it; "popularity" (items,); the rest are the weights that `forward` takes
    reader : reads histories as the teacher does; None where that has no network of its own
    """

    kind: ClassVar[str] = "student"
    block: ClassVar[int] = 1024

    config: StudentConfig
    vocab: Vocab
    names: tuple[str, ...]
    arrays: Mapping[str, Floats]
    encoder_id: str
    encoder: EncoderSource
    ear: EarSource | None = None
    reader: PlainReader | None = None

    @property
    def model_id(self) -> str:
        """Names the teacher and the encoder of its texts."""
        return f"student of '{self.config.teacher.kind}' over {self.encoder_id}"

    @property
    def limits(self) -> bool | None:
        """Whether it says what a request means; None where it has no ear, and reads no more than the vector of one."""
        return True if self.ear is not None else None

    def understood(self, requests: Sequence[str]) -> list[dict[str, Any]]:
        """See `Ear.told`. Errors: `ModelError` where the text encoder is not to be had."""
        if not requests or self.ear is None:
            return []
        ear = self.ear()
        return ear.told(ear.hear(requests, summoned(self.encoder, self.encoder_id)))

    def prepare(self, heads: Sequence[pl.DataFrame], catalog: Catalog) -> None:
        """There is nothing to work out ahead."""

    def opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterator[Array]:
        """What the teacher would say of each candidate; with a request that its ear can hear, beside it the log
        probability of being what it means."""
        asked = {query_id: row for row, query_id in enumerate(queries.frame["query_id"].to_list())}
        rows = np.array([asked[head["query_id"][0]] for head in heads], dtype=np.int64)
        histories = self.vocab.histories(queries)
        text = read(said(queries, profiles), self.encoder, self.encoder_id, self.arrays["text"].shape[0] // 2)
        asking, asked_for, like = heard(self.ear, queries, self.encoder, self.encoder_id)
        place = {int(row): i for i, row in enumerate(asking)}
        for at in range(0, len(heads), ROWS):
            lists = Ranked.joined(heads[at : at + ROWS])
            own = rows[at : at + ROWS]
            theirs, codes = histories.take(own), coded(self.vocab, lists)
            with one_thread():
                past = past_of(theirs, like[own], self.arrays["items"])
                seen = expected(self.reader, theirs, lists.lists, codes)
                features = features_of(self.names, lists, self.arrays["popularity"][codes], seen)
                tokens, bias = self.arrays["tokens"][codes], self.arrays["bias"][codes]
                found = forward(self.arrays, past, text[own], lists.lists, tokens, bias, features)
            split = zip(own, *(np.split(x, lists.starts[1:]) for x in (found.astype(np.float64), codes)), strict=True)
            for row, opinion, listed in split:
                if self.ear is None or row not in place:
                    yield opinion
                else:
                    fits = self.ear().fits(asked_for.take(np.array([place[row]])), listed)[0]
                    yield np.stack([opinion, fits], axis=1)

    def save(self, folder: Path) -> None:
        """Write JSON, Parquet and safetensors."""
        from safetensors.numpy import save_file

        folder.mkdir()
        arrays = dict(self.arrays)
        facts: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "encoder": self.encoder_id,
            "names": list(self.names),
        }
        if self.reader is not None:
            arrays |= {_READER + name: value for name, value in self.reader.arrays.items()}
            facts["reader"] = {"blocks": self.reader.blocks, "heads": self.reader.heads}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "network.safetensors")
        (folder / _FILE).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        pl.DataFrame({"item_id": self.vocab.ids}).write_parquet(folder / "items.parquet")
        if self.ear is not None:
            self.ear().save(folder / "ear")

    @classmethod
    def load(cls, folder: Path, encoder: EncoderSource) -> "StudentJudge":
        """Read the folder; its ear when the first request is heard. Errors: `BundleError` where it is damaged."""
        from safetensors.numpy import load_file

        with readable(folder, "a student reranker"):
            facts = json.loads((folder / _FILE).read_text("utf-8"))
            config = StudentConfig.model_validate(facts["config"])
            names, encoder_id = tuple(map(str, facts["names"])), str(facts["encoder"])
            vocab = Vocab(pl.read_parquet(folder / "items.parquet")["item_id"])
            arrays = load_file(folder / "network.safetensors")
            of_reader = {name: arrays.pop(name) for name in list(arrays) if name.startswith(_READER)}
            reader = None
            if "reader" in facts:
                shape = (int(facts["reader"][what]) for what in ("blocks", "heads"))
                reader = PlainReader({name.removeprefix(_READER): x for name, x in of_reader.items()}, *shape)
            if set(arrays) != {*WEIGHTS, "items", "tokens", "bias", "popularity"} or len(arrays["items"]) != len(vocab):
                raise BundleError(f"{folder}: its network is of another version: refit")

        def hear() -> Ear:
            with readable(folder / "ear", "what it knows of requests"):
                return Ear.load(folder / "ear")

        ear = cache(hear) if (folder / "ear").exists() else None
        return cls(config, vocab, names, arrays, encoder_id, encoder, ear, reader)


# The weights that `forward` reads.
WEIGHTS = ("past", "text", "read", "linear", "features", "matches", "shift", "out")


def forward(weights: Mapping[str, Any], past: Any, text: Any, own: Any, tokens: Any, bias: Any, features: Any) -> Any:
    """(rows,) scores of candidates, by numpy or torch alike.

    past : (lists, ...) as `past_of` gives it; text : (lists, 2 * width) vectors of request and profile, zeros for none
    own  : (rows,) the list of each candidate; tokens : (rows, dim), bias : (rows,) and features : (rows, features) its
    """
    user = past @ weights["past"] + (text @ weights["text"]).clip(0) @ weights["read"]
    heads = len(weights["matches"])
    matches = (user[own] * tokens).reshape(len(own), heads, -1).sum(-1)
    hidden = (features @ weights["features"] + matches @ weights["matches"] + weights["shift"]).clip(0)
    return matches.sum(-1) + bias + features @ weights["linear"] + hidden @ weights["out"]


def heard(ear: EarSource | None, queries: Queries, encoder: EncoderSource, encoder_id: str) -> tuple[Ints, Asked, Ints]:
    """The rows of the queries that ask for something, what that means, and (queries,) the items that are named, -1 for
    none; nothing where there is no ear. Errors: `ModelError` where the text encoder is not to be had."""
    like = np.full(len(queries), -1, dtype=np.int64)
    rows, asked = np.zeros(0, dtype=np.int64), Asked(np.zeros(0, dtype=np.int64), {})
    if ear is not None and any(request.strip() for request in queries.frame["request"]):
        rows, asked = listen(ear(), queries, encoder, encoder_id)
        like[rows] = asked.like
    return rows, asked, like


def past_of(histories: Histories, like: Ints, items: Floats) -> Floats:
    """(histories, (HALF_LIVES + 1) * width + 1): means of the items of each, the later the heavier; the item that is
    named, zeros where `like` (histories,) is -1; and a one."""
    n, width = len(histories), items.shape[1]
    past = np.zeros((n, len(HALF_LIVES) + 1, width), dtype=np.float32)
    sizes = np.minimum(np.diff(histories.indptr), LENGTH)
    for row in np.flatnonzero(sizes):
        end = histories.indptr[row + 1]
        own = _FADING[LENGTH - sizes[row] :]
        past[row, :-1] = own.T @ items[histories.items[end - sizes[row] : end]] / own.sum(axis=0)[:, None]
    past[:, -1] = items[np.maximum(like, 0)] * (like >= 0)[:, None]
    return np.hstack([past.reshape(n, -1), np.ones((n, 1), dtype=np.float32)])


def said(queries: Queries, profiles: Profiles) -> tuple[list[str], list[str]]:
    """The request of each query, and the profile where there is no history; empty texts for none."""
    requests = [request.strip() for request in queries.frame["request"]]
    empty = history_lengths(queries) == 0
    if not empty.any():
        return requests, [""] * len(requests)
    return requests, profiles_read(queries, profiles, pl.Series(empty)).to_list()


def read(texts: tuple[list[str], list[str]], encoder: EncoderSource, encoder_id: str, width: int) -> Floats:
    """(queries, 2 * width) the encoder's vectors of request and profile; zeros for empty texts.

    Errors: `ModelError` where there are texts and no encoder.
    """
    found = np.zeros((len(texts[0]), 2 * width), dtype=np.float32)
    for side, some in enumerate(texts):
        rows = [row for row, text in enumerate(some) if text]
        if rows:
            vectors = summoned(encoder, encoder_id).embed([some[row] for row in rows])
            found[rows, side * width : (side + 1) * width] = vectors
    return found


def coded(vocab: Vocab, lists: Ranked) -> Ints:
    """(rows,) item codes. Errors: `UnknownItemError`."""
    return candidate_codes(vocab, lists.frame["item_id"]).astype(np.int64)


def expected(reader: PlainReader | None, histories: Histories, own: Ints, codes: Ints) -> list[Floats]:
    """(rows,) what a reader of the histories thinks of candidates; nothing where there is none. own : (rows,) the
    history of each; codes : (rows,) the item."""
    return [] if reader is None else [reader.scores(reader.expects(histories), own, codes)]


def features_of(names: Sequence[str], lists: Ranked, popularity: Floats, seen: Sequence[Floats]) -> Floats:
    """(rows, names + 1 or 2) features, standardised within each list: by name, popularity, and what was `seen`."""
    found = np.column_stack([raw(names, lists, {}), popularity, *seen])
    return standardise(found, lists.sizes).astype(np.float32)
