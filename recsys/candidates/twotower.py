"""Two towers: items by their words and attributes alone, users by what they met; so items without events are found.

The networks stand in `towers`, their training in `training`. When to stop is told by items that were held out with all
their events: what is learned about items in general goes on helping those, what is learned by heart does not.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Codes, Floats, block_rows, decayed, product
from recsys.candidates.index import VectorIndex
from recsys.candidates.nearest import Nearest
from recsys.candidates.trainable import HeadStart, TrainedConfig
from recsys.data.vocab import Histories, Vocab
from recsys.errors import SpecError
from recsys.networks.items import attribute_vectors, centred, item_vectors
from recsys.networks.training import Batch, Trained, fingerprint, train, workplace
from recsys.settings import Settings, load_settings
from recsys.tables import Catalog, InteractionLog, query_histories

if TYPE_CHECKING:
    from recsys.candidates.towers import Towers

Quality = Callable[[], float]

# Events of held-out items that are asked about.
ASKED = 2000


class TwoTowerConfig(TrainedConfig):
    """dim, hidden: size of the towers' output and of their hidden layers; decay, length: how a query's history fades;
    dropout: of hidden units, noise: of item features, while training; temperature: that the softmax starts with;
    correction: power of the correction for popular negatives, 0 scores items regardless of how popular their like are;
    events: drawn per epoch; heldout: share of the items that say when to stop."""

    kind: Literal["twotower"] = "twotower"
    dim: int = Field(default=128, ge=4)
    hidden: int = Field(default=256, ge=1)
    decay: float = Field(default=0.7, ge=0)
    length: int = Field(default=50, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    noise: float = Field(default=0.3, ge=0, lt=1)
    temperature: float = Field(default=0.1, gt=0)
    correction: float = Field(default=1.0, ge=0, le=1)
    events: int = Field(default=20_000, ge=1)
    heldout: float = Field(default=0.05, gt=0, lt=1)
    rate: float = Field(default=3e-4, gt=0)
    warmup: int = Field(default=20, ge=0)
    batch: int = Field(default=512, ge=2)
    patience: int = Field(default=4, ge=1)
    finish: int = Field(default=4, ge=0)
    exclude_seen: bool = True

    @property
    def reads_text(self) -> bool:
        return True

    def train(
        self,
        log: InteractionLog,
        catalog: Catalog,
        *,
        seed: int,
        settings: Settings | None = None,
        start: HeadStart | None = None,
    ) -> "TwoTower":
        """Errors: `SpecError` where the catalog has no text vectors, or for a GPU that is not there."""
        settings = settings or load_settings()
        vocab = Vocab.of_items(catalog)
        histories = vocab.histories(query_histories(log))
        before = start.generator if start is not None else None
        quality: Quality | None = None
        if isinstance(before, TwoTower) and before.explored is not None and before.vocab.ids.equals(vocab.ids):
            explored, report, learned = before.explored, before.trained, histories
        else:
            learned, asked = hold_out_items(histories, self, seed)
            explored, report = self.network(item_features(catalog, vocab), seed), {}
            quality = partial(heldout_quality, explored, asked, self)

        def run(network: "Towers", learned: Histories, quality: Quality | None, folder: Path) -> Trained | None:
            if not len(learned.items):
                return None  # nothing but the features is known
            network.expect(np.bincount(learned.items, minlength=len(vocab)))
            return train(
                network,
                lambda epoch: Events(learned, self, np.random.default_rng((seed, epoch))),
                quality,
                self,
                seed=seed,
                device=settings.device,
                folder=folder,
                title="two towers" if quality else "two towers, last epochs",
            )

        key = fingerprint(self, seed, histories.indptr, histories.items, explored.features.numpy())
        with workplace(settings, key) as folder:
            if quality is not None:
                trained = run(explored, learned, quality, folder / "explore")
                report = trained_report(trained) if trained else {}
            network = deepcopy(explored)
            if self.finish:
                run(network, histories, None, folder / "finish")
        return TwoTower.of(vocab, self, network.eval(), report, explored.eval())

    def network(self, features: Floats, seed: int) -> "Towers":
        """Untrained towers of this size."""
        import torch

        from recsys.candidates.towers import Towers

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Towers(
                features,
                dim=self.dim,
                hidden=self.hidden,
                dropout=self.dropout,
                noise=self.noise,
                temperature=self.temperature,
                correction=self.correction,
            )


def item_features(catalog: Catalog, vocab: Vocab) -> Floats:
    """(items, width) the text and, where the catalog has any, the attributes, which count alike; about unit length."""
    text, attributes = centred(item_vectors(catalog, vocab)), attribute_vectors(catalog, vocab)
    if not attributes.shape[1]:
        return text
    return np.asarray(np.hstack([text, centred(attributes)]) / np.sqrt(2), dtype=np.float32)


@dataclass(frozen=True)
class Asked:
    """Questions about events: `answers` (n,), and the `histories` before each."""

    histories: Histories
    answers: Codes


def hold_out_items(histories: Histories, config: TwoTowerConfig, seed: int) -> tuple[Histories, Asked]:
    """The histories without some items, drawn by seed among those with events; and each user's last event of these."""
    rng = np.random.default_rng(seed)
    met = np.unique(histories.items)
    held = rng.choice(met, round(config.heldout * len(met)), replace=False)
    out = np.flatnonzero(np.isin(histories.items, held))
    learned = histories.without(out)
    rows = histories.rows()
    last = out[np.diff(rows[out], append=-1) != 0]
    some = np.sort(rng.choice(last, min(ASKED, len(last)), replace=False))
    # How many of the events before each are left.
    ends = some - np.searchsorted(out, some)
    begins = learned.indptr[rows[some]]
    sizes = np.minimum(ends - begins, config.length)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    place = np.arange(indptr[-1]) + np.repeat(ends - indptr[1:], sizes)
    before = Histories(indptr, learned.items[place], learned.weights[place], learned.times[place])
    return learned, Asked(before, histories.items[some].astype(np.intp))


def trained_report(trained: Trained) -> dict[str, Any]:
    """What the training came to, under the name of its own measure."""
    return {"epochs": len(trained.qualities), "best_epoch": trained.best, "heldout_ndcg": list(trained.qualities)}


class Events:
    """One epoch's batches: events drawn from the log, each with the last items before it.

    Each is {"items", "weights", "targets"}, (batch, length), (batch, length) and (batch,); where there is no item, the
    weight is 0.
    """

    def __init__(self, histories: Histories, config: TwoTowerConfig, rng: np.random.Generator) -> None:
        self._histories, self._config = histories, config
        self._events = rng.permutation(len(histories.items))[: config.events]
        self._starts = range(0, len(self._events), config.batch)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        import torch

        items, lags = self._histories.items.astype(np.int64), np.arange(self._config.length)
        first = self._histories.indptr[self._histories.rows()]
        weights = ((1.0 + lags) ** -self._config.decay).astype(np.float32)
        for start in self._starts:
            event = self._events[start : start + self._config.batch]
            place = event[:, None] - 1 - lags
            there = place >= first[event][:, None]
            yield {
                "items": torch.from_numpy(items[np.where(there, place, 0)]),
                "weights": torch.from_numpy(weights * there),
                "targets": torch.from_numpy(items[event]),
            }


def heldout_quality(network: "Towers", asked: Asked, config: TwoTowerConfig) -> float:
    """Mean of 1 / log2(1 + rank) of the answers among the items not yet met: NDCG without a cut."""
    import torch

    if not len(asked.answers):
        return 0.0
    with torch.inference_mode():
        vectors = network.items()
    gains, size = [], block_rows(len(vectors))
    for start in range(0, len(asked.answers), size):
        some, answers = asked.histories.slice(start, start + size), asked.answers[start : start + size]
        met = decayed(some, len(vectors), decay=config.decay, length=config.length) @ vectors.cpu().numpy()
        with torch.inference_mode():
            scores = (network.users(torch.from_numpy(met).to(vectors.device)) @ vectors.T).float().cpu().numpy()
        own = scores[np.arange(len(answers)), answers]
        scores[some.rows(), some.items] = -np.inf
        gains.append(1 / np.log2(2 + (scores > own[:, None]).sum(axis=1)))
    return float(np.concatenate(gains).mean())


class TwoTower(Nearest):
    """scores = cosine of the item tower's output and the user tower's. The item tower itself is not kept: its outputs
    for the catalog are."""

    kind: ClassVar[str] = "twotower"

    def __init__(
        self,
        vocab: Vocab,
        config: TwoTowerConfig,
        weights: Mapping[str, npt.NDArray[Any]],
        report: Mapping[str, Any],
        *,
        index: VectorIndex | None = None,
        explored: "Towers | None" = None,
    ) -> None:
        """weights : "vectors" (items, dim), and the user tower's parameters by name."""
        super().__init__(vocab, config.exclude_seen, weights["vectors"], index)
        self.config, self.weights, self.trained, self.explored = config, weights, dict(report), explored

    @classmethod
    def of(
        cls, vocab: Vocab, config: TwoTowerConfig, network: "Towers", report: Mapping[str, Any], explored: "Towers"
    ) -> Self:
        """What the trained towers come to. Errors: `SpecError` where they are not finite."""
        import torch

        with torch.inference_mode():
            vectors = network.items().numpy()
        if not np.isfinite(vectors).all():
            raise SpecError("twotower: the training diverged, its numbers are not finite: lower generator.rate")
        learned = {n: p.detach().numpy() for n, p in network.named_parameters() if n.startswith(("user", "newcomer"))}
        return cls(vocab, config, {"vectors": vectors, **learned}, report, explored=explored)

    @property
    def report(self) -> Mapping[str, Any]:
        """How the training went, and what the index finds of the exact neighbours."""
        return {**self.trained, "index": dict(self.index.report)}

    def _users(self, histories: Histories) -> Floats:
        """Unit vectors, `Towers.users` in NumPy."""
        w = self.weights
        met = decayed(histories, len(self.vocab), decay=self.config.decay, length=self.config.length) @ self.vectors
        x = unit(met + w["newcomer"])
        hidden = np.maximum(product(x, w["user_hidden.weight"]) + w["user_hidden.bias"], 0)
        return unit(x + product(hidden, w["user_out.weight"]) + w["user_out.bias"])

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        return self.weights

    def options(self) -> Mapping[str, Any]:
        return {"config": self.config.model_dump(), "report": self.trained}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Any, options: Any, index: VectorIndex | None = None) -> Self:
        return cls(vocab, TwoTowerConfig(**options["config"]), arrays, options["report"], index=index)


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
