"""The sequence reranker: a small network reads the history item by item and texts through a frozen encoder (`reader`).

One state stands for a user, whatever the number of candidates: they are scored by a product with their tokens, each
alone, so their order changes nothing. A request in words is read by every user's state, and held to by what it means
(`interpret`); a profile stands in for a history that is not there. `train` trains it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys.data.vocab import Vocab
from recsys.errors import BundleError, ModelError, RecsysError, SpecError
from recsys.networks.training import Schedule
from recsys.protocols import Floats, TextEncoder
from recsys.rerank.features import candidate_codes
from recsys.rerank.fused import FusedConfig
from recsys.rerank.fusion import Array
from recsys.rerank.judge import readable
from recsys.rerank.lessons import Asked, Ear, Mentions, Sentences
from recsys.tables import Catalog, Profiles, Queries

if TYPE_CHECKING:
    from recsys.rerank.reader import Reader

EncoderSource = Callable[[], TextEncoder]
# Up to here every item competes with every other in training; beyond, with a sample of this size.
FULL_SOFTMAX, SAMPLED = 20_000, 4096
# Queries with texts that are read at once.
ROWS = 256
# From here on a meaning is told to who asked.
SURE = 0.5
# What a profile claims that rests on no event: there is nothing in it to read.
NOTHING = ["events|n=0"]
# What a request means, in a batch.
MEANING = ("wants", "refuses", "newer", "older", "like_years")
_FILE = "judge.json"


def no_encoder() -> TextEncoder:
    """For where there is none. Errors: `SpecError`."""
    raise SpecError("no text encoder is given")


def profiles_read(queries: Queries, profiles: Profiles, empty: pl.Series) -> pl.Series:
    """The profile of each query that has no history (`empty`) and whose profile rests on something; "" for others."""
    texts = profiles.frame.filter(pl.col("claims") != NOTHING).select("query_id", "text")
    frame = queries.frame.select("query_id").join(texts, on="query_id", how="left", maintain_order="left")
    return frame.select(pl.when(empty).then(pl.col("text").fill_null("")).otherwise(pl.lit(""))).to_series()


class SequenceConfig(FusedConfig, Schedule):
    """How the sequence reranker is built.

    dim, layers, heads, length : of the blocks that read the history
    readers  : blocks in which the state attends to texts
    item_dropout, history_dropout : most items' own vectors, and share of histories, that are left out in training
    requests : share of the places in histories that come with a request in training
    written, exercises : requests that are written for training, and passes over them to learn what they mean
    told     : profiles that are written for training
    use_text, use_ids : whether items are told by what the catalog says, and by vectors of their own
    heldout  : users whose last event says when to stop
    """

    needs_lm: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True

    kind: Literal["sequence"] = "sequence"
    depth: int = Field(default=100, ge=1, le=1000)
    tune_users: int = Field(default=1000, ge=1)
    dim: int = Field(default=128, ge=8, multiple_of=4)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    length: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    readers: int = Field(default=1, ge=1)
    item_dropout: float = Field(default=0.3, ge=0, lt=1)
    history_dropout: float = Field(default=0.1, ge=0, lt=1)
    requests: float = Field(default=0.2, ge=0, le=1)
    written: int = Field(default=20_000, ge=1)
    exercises: int = Field(default=5, ge=1)
    told: int = Field(default=3000, ge=0)
    heldout: int = Field(default=2000, ge=1)
    negatives: int | None = Field(default=None, ge=1)
    use_text: bool = True
    use_ids: bool = True
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
    carried: Floats
    table: tuple[Floats, Floats]

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
        users, asked_of = self.users(own, profiles)
        items = pl.concat([head["item_id"] for head in heads])
        lists = np.split(candidate_codes(self.vocab, items), np.cumsum([len(head) for head in heads])[:-1])
        for row, (codes, user) in enumerate(zip(lists, users, strict=True)):
            opinion = vectors[codes] @ user + bias[codes]
            if row in asked_of:
                opinion = np.stack([opinion, self._fits(asked_of[row], codes)], axis=1)
            yield opinion.astype(np.float64)

    def scores(self, queries: Queries, profiles: Profiles) -> Floats:
        """(queries, items) logits of the whole catalog."""
        vectors, bias = self.table
        users, asked_of = self.users(queries, profiles)
        found = users @ vectors.T + bias
        for row, asked in asked_of.items():
            found[row] += self._fits(asked, np.arange(len(self.vocab)))
        return np.asarray(found, dtype=np.float32)

    def users(self, queries: Queries, profiles: Profiles) -> tuple[Floats, dict[int, Mapping[str, Any]]]:
        """(queries, dim) what each user expects next, given the request, or the profile where there is no history; and
        what the requests mean, by the place of their query."""
        import torch

        from recsys.rerank.reader import states_after

        histories = self.vocab.histories(queries)
        vectors = torch.from_numpy(self.table[0])
        requests = queries.frame["request"].str.strip_chars()
        if not self.limits:
            requests = pl.Series("request", [""] * len(requests), dtype=pl.String)
        told = profiles_read(queries, profiles, pl.Series(np.diff(histories.indptr) == 0))
        asked_of: dict[int, Mapping[str, Any]] = {}
        with torch.inference_mode():
            states = states_after(self.network, histories, vectors)
            found = self.network.read(states, vectors).numpy()
            some = np.flatnonzero((requests != "").to_numpy() | (told != "").to_numpy())
            for rows in np.array_split(some, -(-len(some) // ROWS)) if len(some) else []:
                text = self._read([requests[int(r)] for r in rows], [told[int(r)] for r in rows])
                found[rows] = self.network.read(states[rows], vectors, text).numpy()
                for place, row in enumerate(rows):
                    if requests[int(row)]:
                        asked_of[int(row)] = {name: text[name][place : place + 1] for name in MEANING}
        return np.asarray(found, dtype=np.float32), asked_of

    def understood(self, requests: Sequence[str]) -> list[dict[str, Any]]:
        """What requests are taken to mean, to be shown to who asked: the values that each "wants" and "refuses" (a list
        of names), "like" (a title or None), "than" ("newer", "older" or None).

        Errors: `ModelError` where the text encoder is not to be had.
        """
        if not requests or not self.limits:
            return []
        text = self._read(requests, [""] * len(requests))
        titles = self.ear.mentions.titles
        found = []
        for row in range(len(requests)):
            said = {
                name: [value for value, p in zip(self.ear.names, text[name][row], strict=True) if p > SURE]
                for name in ("wants", "refuses")
            }
            code = int(text["like"][row])
            like = titles[code] if code >= 0 else None
            than = next((name for name in ("newer", "older") if like and text[name][row] > SURE), None)
            found.append({**said, "like": like, "than": than})
        return found

    def _fits(self, asked: Mapping[str, Any], codes: Any) -> Floats:
        import torch

        from recsys.rerank.interpret import log_fits

        found = log_fits(asked, torch.from_numpy(self.carried[codes]), torch.from_numpy(self.ear.years[codes]))
        return np.asarray(found[0].numpy(), dtype=np.float32)

    def _read(self, requests: Sequence[str], told: Sequence[str]) -> dict[str, Any]:
        import torch

        try:
            encoder = self.encoder()
        except RecsysError as error:
            raise ModelError(f"{self.encoder_id}: texts cannot be read: {error}") from error
        text: dict[str, Any] = {}
        if any(requests):
            asked = Asked.heard(requests, encoder, self.ear)
            text |= asked.take(np.arange(len(requests)))
            silent = torch.tensor([not request for request in requests])
            text["request"][silent] = 0
        if any(told):
            text |= Sentences.of(told, encoder).take(np.arange(len(told)))
        return text

    def save(self, folder: Path) -> None:
        """Write JSON, Parquet and safetensors. Items' tokens are written whole: their texts are not needed again."""
        from safetensors.numpy import save_file

        folder.mkdir()
        vectors, bias = self.table
        arrays = {f"reader.{name}": value.detach().numpy() for name, value in self.network.state_dict().items()}
        arrays = {name: value for name, value in arrays.items() if name not in _REPLACED}
        heard = self.ear.interpreter.state_dict().items()
        arrays |= {f"interpreter.{name}": value.detach().numpy() for name, value in heard}
        arrays |= {"tokens": vectors, "bias": bias, "names": self.ear.vectors, "carried": self.carried.astype(np.uint8)}
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / "network.safetensors")
        facts = {
            "config": self.config.model_dump(mode="json"),
            "encoder": self.encoder_id,
            "values": self.ear.names,
            "learned": self.ear.learned,
        }
        (folder / _FILE).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        pl.DataFrame(
            {
                "item_id": self.vocab.ids,
                "title": self.ear.mentions.titles,
                "year": self.ear.years,
            },
            schema_overrides={"title": pl.String},
        ).write_parquet(folder / "items.parquet")

    @classmethod
    def load(cls, folder: Path, encoder: EncoderSource) -> "SequenceJudge":
        """Read the folder. Errors: `BundleError` where it is damaged."""
        import torch
        from safetensors.numpy import load_file

        from recsys.rerank.interpret import Interpreter
        from recsys.rerank.reader import Reader

        with readable(folder, "a sequence reranker"):
            facts = json.loads((folder / _FILE).read_text("utf-8"))
            config = SequenceConfig.model_validate(facts["config"])
            items = pl.read_parquet(folder / "items.parquet")
            arrays = load_file(folder / "network.safetensors")
            table = (arrays["tokens"], arrays["bias"])
            network = Reader.blank(len(items), arrays["reader.request.weight"].shape[1], config.size(len(items)))
            interpreter = Interpreter(arrays["names"].shape[1])
            for part, name in ((network, "reader."), (interpreter, "interpreter.")):
                state = {k.removeprefix(name): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(name)}
                found = part.load_state_dict(state, strict=False)
                if found.unexpected_keys or {name + key for key in found.missing_keys} - _REPLACED:
                    raise BundleError(f"{folder}: its network is of another version: refit")
            mentions = Mentions.of(items["title"].to_list())
            years = items["year"].to_numpy().astype(np.float32)
            ear = Ear(
                bool(facts["learned"]),
                interpreter.eval(),
                tuple(map(str, facts["values"])),
                arrays["names"],
                years,
                mentions,
            )
            carried = arrays["carried"].astype(np.float32)
        vocab, encoder_id = Vocab(items["item_id"]), str(facts["encoder"])
        return cls(config, vocab, network.eval(), ear, encoder_id, encoder, carried, table)


# What the saved tokens stand for.
_REPLACED = {"reader.told.weight", "reader.own", "reader.bias"}
