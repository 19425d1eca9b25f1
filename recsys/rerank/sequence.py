"""The sequence reranker: a small network reads the history item by item and texts through a frozen encoder (`reader`).

One state stands for a user, whatever the number of candidates: they are scored by a product with their tokens, each
alone, so their order changes nothing. To a request in words candidates are held by what it means (`interpret`), and an
item that it names is read by the state; a profile stands in for a history that is not there. `train` trains it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys.data.vocab import Histories, Vocab
from recsys.errors import BundleError
from recsys.networks.training import Heads, Schedule
from recsys.protocols import Floats, Ints
from recsys.rerank.backbone import BackboneConfig, WeightsSource, no_weights, same_base
from recsys.rerank.features import candidate_codes
from recsys.rerank.fused import FusedConfig
from recsys.rerank.fusion import Array
from recsys.rerank.hearing import Asked, Ear, EncoderSource, listen, summoned
from recsys.rerank.judge import readable
from recsys.rerank.plain_reader import PlainReader
from recsys.rerank.remembered import Remembering
from recsys.rerank.told import Sentences, named_in
from recsys.tables import Catalog, Profiles, Queries

if TYPE_CHECKING:
    from recsys.rerank.reader import Reader

# Up to here every item competes with every other in training; beyond, with a sample of this size.
FULL_SOFTMAX, SAMPLED = 20_000, 4096
# Queries with texts that are read at once.
ROWS = 256
# The first claim of a profile that rests on no event: what it says is true of everybody.
NOTHING = "events|n=0"
_FILE = "judge.json"


def profiles_read(queries: Queries, profiles: Profiles, empty: pl.Series) -> pl.Series:
    """The profile of each query that has no history (`empty`) and whose profile rests on something; "" for others."""
    texts = profiles.frame.filter(pl.col("claims").list.first() != NOTHING).select("query_id", "text")
    frame = queries.frame.select("query_id").join(texts, on="query_id", how="left", maintain_order="left")
    return frame.select(pl.when(empty).then(pl.col("text").fill_null("")).otherwise(pl.lit(""))).to_series()


class SequenceConfig(FusedConfig, Schedule):
    """How the sequence reranker is built.

    dim, layers, heads, length : of the blocks that read the history
    readers  : blocks in which the state attends to texts
    item_dropout, history_dropout : most items' own vectors, and share of histories, that are left out in training
    meanings : what requests mean is learned from what is "shipped" with the package for the default encoder on; else,
        or where "learned" is asked for, from nothing, which takes four times the passes
    written, exercises : requests that are written to learn from, none to not read any, and passes over them
    understood : share of what requests in new words say that must be understood, else none is read
    likened  : share of the places in histories at which an item like the answer is named in training
    told     : profiles that are written for training
    use_text, use_ids : whether items are told by what the catalog says, and by vectors of their own
    heldout  : users whose last event says when to stop
    backbone : a language model that reads the history in place of `layers` blocks
    """

    needs_lm: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True

    kind: Literal["sequence"] = "sequence"
    depth: int = Field(default=100, ge=1, le=1000)
    reach: int = Field(default=3, ge=1, le=100)
    tune_users: int = Field(default=1000, ge=1)
    dim: int = Field(default=128, ge=8, multiple_of=4)
    layers: int = Field(default=2, ge=1)
    heads: Heads = 2
    length: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    readers: int = Field(default=1, ge=1)
    item_dropout: float = Field(default=0.3, ge=0, lt=1)
    history_dropout: float = Field(default=0.1, ge=0, lt=1)
    meanings: Literal["shipped", "learned"] = "shipped"
    written: int = Field(default=20_000, ge=0)
    exercises: int = Field(default=2, ge=1)
    understood: float = Field(default=0.3, ge=0, le=1)
    likened: float = Field(default=0.05, ge=0, le=1)
    told: int = Field(default=3000, ge=0)
    heldout: int = Field(default=2000, ge=1)
    negatives: int | None = Field(default=None, ge=1)
    use_text: bool = True
    use_ids: bool = True
    backbone: BackboneConfig | None = None
    epochs: int = Field(default=20, ge=1)
    patience: int = Field(default=3, ge=1)

    def size(self, items: int) -> Any:
        """The network's size for a catalog."""
        from recsys.rerank.reader import Size

        return Size(
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            length=self.length,
            readers=self.readers,
            dropout=self.dropout,
            item_dropout=self.item_dropout,
            history_dropout=self.history_dropout,
            negatives=self.negatives or (None if items <= FULL_SOFTMAX else SAMPLED),
            use_text=self.use_text,
            use_ids=self.use_ids,
        )


@dataclass(frozen=True)
class SequenceJudge:
    """Implements `rerank.judge.Judge`. The text encoder is loaded when the first text is read."""

    kind: ClassVar[str] = "sequence"
    block: ClassVar[int] = 1024  # nothing here fails for a few queries only, but for a text encoder that is not there

    config: SequenceConfig
    vocab: Vocab
    network: "Reader"
    ear: Ear
    encoder_id: str
    encoder: EncoderSource
    table: tuple[Floats, Floats]
    _states: Remembering = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain = PlainReader.of(self.network, *self.table)
        goes_on = None if plain is None else plain.goes_on
        object.__setattr__(self, "_states", Remembering(self._read, self.network.size.length, goes_on))

    @property
    def limits(self) -> bool:
        """Whether requests were learned; else they are not read."""
        return self.ear.learned

    @property
    def model_id(self) -> str:
        """Names the encoder of its texts."""
        return f"sequence reader over {self.encoder_id}"

    def prepare(self, heads: Sequence[pl.DataFrame], catalog: Catalog) -> None:
        """There is nothing to work out ahead."""

    def opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterator[Array]:
        """The logit of each candidate; with a request, beside it the log probability of being what it means."""
        vectors, bias = self.table
        asked = pl.Series("query_id", [head["query_id"][0] for head in heads], dtype=queries.frame["query_id"].dtype)
        own = Queries(pl.DataFrame({"query_id": asked}).join(queries.frame, on="query_id", maintain_order="left"))
        users, rows, requests = self.users(own, profiles)
        place = {int(row): i for i, row in enumerate(rows)}
        items = pl.concat([head["item_id"] for head in heads])
        lists = np.split(candidate_codes(self.vocab, items), np.cumsum([len(head) for head in heads])[:-1])
        for row, (codes, user) in enumerate(zip(lists, users, strict=True)):
            opinion = vectors[codes] @ user + bias[codes]
            if row in place:
                fits = self.ear.fits(requests.take(np.array([place[row]])), codes)[0]
                opinion = np.stack([opinion, fits], axis=1)
            yield opinion.astype(np.float64)

    def scores(self, queries: Queries, profiles: Profiles) -> Floats:
        """(queries, items) logits of the whole catalog."""
        vectors, bias = self.table
        users, rows, requests = self.users(queries, profiles)
        found = users @ vectors.T + bias
        if len(rows):
            found[rows] += self.ear.fits(requests)
        return np.asarray(found, dtype=np.float32)

    def _read(self, histories: Histories) -> Floats:
        """(histories, dim) the network's states after them."""
        import torch

        from recsys.rerank.reader import states_after

        with torch.inference_mode():
            found = states_after(self.network, histories, torch.from_numpy(self.table[0]))
        return np.asarray(found.numpy(), dtype=np.float32)

    def users(self, queries: Queries, profiles: Profiles) -> tuple[Floats, Ints, Asked]:
        """(queries, dim) what each user expects next, given an item that the request names, and the profile where there
        is no history; the rows of the queries that ask for something, and what."""
        import torch

        from recsys.rerank.reader import known_by_name

        histories = self.vocab.histories(queries)
        vectors = torch.from_numpy(self.table[0])
        asking, requests = listen(self.ear, queries, self.encoder, self.encoder_id)
        likes = np.full(len(queries), -1, dtype=np.int64)
        likes[asking] = requests.like
        told = profiles_read(queries, profiles, pl.Series(np.diff(histories.indptr) == 0))
        with torch.inference_mode():
            states = torch.tensor(self._states(histories))  # a copy: profiles are written into it
            found = self.network.read(states, vectors)
            described = torch.from_numpy(np.flatnonzero((told != "").to_numpy()))
            if len(described):
                named = named_in(told.gather(described.numpy()).to_list(), self.ear.mentions)
                states[described], found[described] = known_by_name(self.network, named, vectors)
            some = np.flatnonzero((likes >= 0) | (told != "").to_numpy())
            for rows in np.array_split(some, -(-len(some) // ROWS)) if len(some) else []:
                text = {"like": torch.from_numpy(likes[rows])}
                if any(profiles_told := told.gather(rows).to_list()):
                    text |= Sentences.of(profiles_told, summoned(self.encoder, self.encoder_id)).take(
                        np.arange(len(rows))
                    )
                found[rows] += self.network.heed(states[rows], vectors, text)
        return np.asarray(found.numpy(), dtype=np.float32), asking, requests

    def understood(self, requests: Sequence[str]) -> list[dict[str, Any]]:
        """See `Ear.told`. Errors: `ModelError` where the text encoder is not to be had."""
        if not requests or not self.limits:
            return []
        return self.ear.told(self.ear.hear(requests, summoned(self.encoder, self.encoder_id)))

    def save(self, folder: Path) -> None:
        """Write JSON, Parquet and safetensors. Items' tokens are written whole: their texts are not needed again."""
        from safetensors.numpy import save_file

        folder.mkdir()
        vectors, bias = self.table
        arrays = {f"reader.{name}": value.detach().numpy() for name, value in self.network.state_dict().items()}
        arrays = {name: value for name, value in arrays.items() if name not in _REPLACED}
        arrays |= {"tokens": vectors, "bias": bias}
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / "network.safetensors")
        facts = {
            "config": self.config.model_dump(mode="json"),
            "encoder": self.encoder_id,
            "base": self.network.base,
        }
        (folder / _FILE).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        pl.DataFrame({"item_id": self.vocab.ids}).write_parquet(folder / "items.parquet")
        self.ear.save(folder / "ear")

    @classmethod
    def load(cls, folder: Path, encoder: EncoderSource, weights: WeightsSource = no_weights) -> "SequenceJudge":
        """Read the folder; `weights` are asked for those of its backbone, if it has one.

        Errors: `BundleError` where it is damaged, or the backbone is over other weights; those of `weights`.
        """
        import torch
        from safetensors.numpy import load_file

        from recsys.rerank.reader import Backbone, Reader

        with readable(folder, "a sequence reranker"):
            facts = json.loads((folder / _FILE).read_text("utf-8"))
            config = SequenceConfig.model_validate(facts["config"])
            items = pl.read_parquet(folder / "items.parquet")
            arrays = load_file(folder / "network.safetensors")
            table = (arrays["tokens"], arrays["bias"])
            width, size = arrays["reader.profile.piece.weight"].shape[1], config.size(len(items))
            backbone = None
            if config.backbone is not None:
                base = weights(config.backbone.model)
                same_base(folder, str(facts["base"]), base)
                backbone = Backbone.of(config.backbone, base, size)
            network = Reader.blank(len(items), width, size, backbone)
            state = {name.removeprefix("reader."): torch.from_numpy(value) for name, value in arrays.items()}
            found = network.load_state_dict({k: v for k, v in state.items() if k not in _TABLE}, strict=False)
            if found.unexpected_keys or {f"reader.{key}" for key in found.missing_keys} - _REPLACED:
                raise BundleError(f"{folder}: its network is of another version: refit")
            ear = Ear.load(folder / "ear")
        vocab, encoder_id = Vocab(items["item_id"]), str(facts["encoder"])
        return cls(config, vocab, network.eval(), ear, encoder_id, encoder, table)


_TABLE = {"tokens", "bias"}
# What the saved tokens stand for.
_REPLACED = {"reader.told.weight", "reader.own", "reader.bias"}
