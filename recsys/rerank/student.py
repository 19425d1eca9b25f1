"""The student: a small network that orders candidates as a slower reranker, its teacher, does, in plain numpy.

What it reads is worked out beforehand, or is in the candidates: the items of the history, as means that forget at
several speeds, of text vectors, attributes and factors of co-occurrence; the text encoder's vector of a request, and
of the profile where there is no history; the sources' scores. `distil` trains it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys.data.vocab import Histories, Vocab
from recsys.errors import BundleError, ModelError, RecsysError, UnknownItemError
from recsys.networks.training import Schedule
from recsys.protocols import Floats, Ints
from recsys.rerank.endpoint import EndpointConfig
from recsys.rerank.choosing import PairwiseConfig, SetwiseConfig
from recsys.rerank.features import Ranked, compute, feature_names
from recsys.rerank.fused import FusedConfig
from recsys.rerank.fusion import Array
from recsys.rerank.judge import readable
from recsys.rerank.listwise import ListwiseConfig
from recsys.rerank.packed import PackedConfig
from recsys.rerank.sequence import NOTHING, EncoderSource, SequenceConfig
from recsys.tables import Catalog, Id, Profiles, Queries

# Events after which an item counts half, for each mean of a history.
HALF_LIVES = (0.7, 2.0, 8.0, 40.0)
# Last events of a history that are read.
LENGTH = 100
# Lists that are judged at once.
ROWS = 256
_FILE = "judge.json"

TeacherConfig = Annotated[
    SequenceConfig | PackedConfig | ListwiseConfig | PairwiseConfig | SetwiseConfig | EndpointConfig,
    Field(discriminator="kind"),
]


class StudentConfig(FusedConfig, Schedule):
    """How the student is built.

    teacher     : whose order it learns
    lists       : candidate lists that the teacher orders for it: tune's, each again with a shorter history, as often as
        it takes
    requests    : share of the lists that come with a request in words, if the teacher reads them
    told        : share of the lists that come with a profile instead of a history
    temperature : of the softmax over the teacher's standardised scores; low ones look at the first places only
    dim, hidden : width of the vectors of users and items, and of the layers that read texts and features
    heldout     : share of the lists that say when to stop
    """

    reads_text: ClassVar[bool] = True

    kind: Literal["student"] = "student"
    teacher: TeacherConfig = Field(default_factory=SequenceConfig)
    depth: int = Field(default=100, ge=1, le=1000)
    tune_users: int = Field(default=1000, ge=1)
    lists: int = Field(default=6000, ge=20)
    requests: float = Field(default=0.3, ge=0, le=0.5)
    told: float = Field(default=0.1, ge=0, le=0.5)
    temperature: float = Field(default=0.5, gt=0)
    dim: int = Field(default=64, ge=1)
    hidden: int = Field(default=32, ge=1)
    heldout: float = Field(default=0.1, gt=0, lt=1)
    batch: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)

    @property
    def needs_lm(self) -> bool:  # type: ignore[override]
        """Whether the teacher does."""
        return self.teacher.needs_lm


@dataclass(frozen=True)
class StudentJudge:
    """Implements `rerank.judge.Judge`. The text encoder is loaded when the first text is read.

    names  : features of candidates that it reads
    items  : (items, width) what is known of each item; tokens : (items, dim), bias : (items,) what was learned of it
    layers : the network's other weights, as `forward` takes them
    counts : events by item
    """

    kind: ClassVar[str] = "student"
    block: ClassVar[int] = 1024

    config: StudentConfig
    vocab: Vocab
    names: tuple[str, ...]
    items: Floats
    tokens: Floats
    bias: Floats
    layers: Mapping[str, Floats]
    counts: Mapping[Id, int]
    encoder_id: str
    encoder: EncoderSource

    @property
    def model_id(self) -> str:
        """Names the teacher and the encoder of its texts."""
        return f"student of {self.config.teacher.kind} over {self.encoder_id}"

    def prepare(self, heads: Sequence[pl.DataFrame], catalog: Catalog) -> None:
        """There is nothing to work out ahead."""

    def opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterator[Array]:
        """What the teacher might say of each candidate; blocks of lists at once."""
        width = len(self.layers["text"]) // 2
        for at in range(0, len(heads), ROWS):
            some = heads[at : at + ROWS]
            lists = Ranked(pl.concat(some), np.arange(len(some)), np.array([len(head) for head in some]))
            codes = coded(self.vocab, lists)
            asked = lists.frame.select("query_id")[lists.starts]
            own = Queries(asked.join(queries.frame, on="query_id", how="left", maintain_order="left"))
            past = past_of(self.vocab.histories(own), self.items)
            text = np.zeros((len(some), 2 * width), dtype=np.float32)
            said = texts_read(own, profiles)
            rows = np.flatnonzero(said != "")
            if len(rows):
                text[rows.real // 2, :] += 0  # pragma: no cover
            yield from ()


def coded(vocab: Vocab, lists: Ranked) -> Ints:
    raise NotImplementedError
