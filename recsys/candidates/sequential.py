"""The sequential source: a self-attentive network reads the last items in their order and says what comes next.

The network stands in `nextitem`, its training in `networks.training`. Histories are cut into chunks at offsets drawn
anew each epoch, with a target at every position: one pass over the log teaches as many answers as it has events.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.candidates.base import Floats, Ints, Source, Spread, block_rows, product, product_at
from recsys.candidates.trainable import HeadStart, TrainedConfig
from recsys.data.vocab import Codes, Histories, Vocab
from recsys.errors import SpecError
from recsys.networks.chunks import Chunks, answer_gains, hold_out, in_parts
from recsys.networks.items import item_vectors
from recsys.networks.pairs import cooccurrence
from recsys.networks.training import Heads, Trained, fingerprint, train, workplace
from recsys.settings import Settings, load_settings
from recsys.tables import Catalog, InteractionLog, query_histories

if TYPE_CHECKING:
    from recsys.candidates.nextitem import NextItem

Quality = Callable[[], float]
DIVERGED = "sequential: the training diverged, its numbers are not finite any more: lower generator.rate"

# The softmax is over the whole catalog up to here, and over a sample of items beyond.
FULL_SOFTMAX = 20_000
SAMPLED = 4096
# Histories read at once when recommending: 60 MB of activations at the default size.
ROWS = 256


class SequentialConfig(TrainedConfig):
    """dim, layers, heads: size of the network; length: how many last items it reads; dropout: while training;
    use_text: tokens carry the items' text (needs the catalog's column `embedding`); warm_start: tokens start from the
    factors of what follows what; negatives: items sampled for the softmax, None for all of them up to 20,000 items and
    4,096 beyond; heldout: users whose last event says when to stop."""

    kind: Literal["sequential"] = "sequential"
    dim: int = Field(default=128, ge=4)
    layers: int = Field(default=2, ge=1)
    heads: Heads = 2
    length: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    use_text: bool = True
    warm_start: bool = True
    negatives: int | None = Field(default=None, ge=1)
    heldout: int = Field(default=2000, ge=1)
    exclude_seen: bool = True

    @property
    def reads_text(self) -> bool:
        return self.use_text

    def train(
        self,
        log: InteractionLog,
        catalog: Catalog,
        *,
        seed: int,
        settings: Settings | None = None,
        start: HeadStart | None = None,
    ) -> "Sequential":
        """Errors: `SpecError` where the text that is asked for is not there."""
        settings = settings or load_settings()
        vocab = Vocab.of_items(catalog)
        histories = vocab.histories(query_histories(log))
        before = start.generator if start is not None else None
        if isinstance(before, Sequential) and before.explored and before.report and before.vocab.ids.equals(vocab.ids):
            explored, report, quality, learned = before.explored, before.report, None, histories
        else:
            before = None
            learned, held, answers = hold_out(histories, self.heldout, seed)
            explored, report = self._fresh(learned, catalog, vocab, seed), {}
            quality = partial(heldout_quality, explored, held, answers)

        def run(network: "NextItem", learned: Histories, quality: Quality | None, folder: Path) -> Trained | None:
            if not len(Chunks(learned, self.length, self.batch, np.random.default_rng(seed))):
                return None  # nobody has two events: the text and the popularity of the start are all there is to know
            network.meet(np.bincount(learned.items, minlength=len(vocab)))
            return train(
                network,
                lambda epoch: Chunks(learned, self.length, self.batch, np.random.default_rng((seed, epoch))),
                quality,
                self,
                seed=seed,
                device=settings.device,
                folder=folder,
                title="sequential" if quality else "sequential, last epochs",
                split=in_parts,
            )

        key = fingerprint(self, seed, histories.indptr, histories.items, *arrays_of(explored).values())
        with workplace(settings, key) as folder:
            if quality is not None:
                trained = run(explored, learned, quality, folder / "explore")
                report = trained.report() if trained else {}
            network = deepcopy(explored)
            if self.finish:
                run(network, histories, None, folder / "finish")
        if not all(np.isfinite(array).all() for array in arrays_of(network).values()):
            raise SpecError(DIVERGED)
        return Sequential(vocab, self, network.eval(), report, explored.eval())

    def _fresh(self, learned: Histories, catalog: Catalog, vocab: Vocab, seed: int) -> "NextItem":
        text = item_vectors(catalog, vocab) if self.use_text else None
        own = cooccurrence(learned, len(vocab), self.dim) if self.warm_start else None
        return self.network(np.bincount(learned.items, minlength=len(vocab)), text, own, seed=seed)

    def network(
        self,
        frequency: npt.NDArray[np.integer],
        text: Floats | None = None,
        own: Floats | None = None,
        *,
        seed: int = 0,
    ) -> "NextItem":
        """An untrained network of this size, as `NextItem` describes it."""
        import torch

        from recsys.candidates.nextitem import NextItem

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return NextItem(
                frequency,
                text,
                own,
                dim=self.dim,
                layers=self.layers,
                heads=self.heads,
                length=self.length,
                dropout=self.dropout,
                negatives=self.negatives or (None if len(frequency) <= FULL_SOFTMAX else SAMPLED),
            )


def last_states(network: "NextItem", tokens: Any, histories: Histories) -> Floats:
    """(histories, dim): what the network expects after each history; zero after an empty one."""
    import torch

    found = np.zeros((len(histories), tokens.shape[1]), dtype=np.float32)
    lengths = np.minimum(np.diff(histories.indptr), network.length)
    filled = np.flatnonzero(lengths)
    for start in range(0, len(filled), ROWS):
        rows = filled[start : start + ROWS]
        size = lengths[rows]
        place = (histories.indptr[rows + 1] - size)[:, None] + np.arange(size.max())
        items = histories.items[np.minimum(place, histories.indptr[rows + 1][:, None] - 1)].astype(np.int64)
        ends = torch.from_numpy(size - 1).to(tokens.device)
        with torch.inference_mode():
            states = network.states(torch.from_numpy(items).to(tokens.device), tokens, ends)
        found[rows] = states.float().cpu().numpy()
    return found


def heldout_quality(network: "NextItem", histories: Histories, answers: Codes) -> float:
    """Mean NDCG@10 of the answers among the items not yet met."""
    import torch

    with torch.inference_mode():
        tokens = network.tokens()
    if not len(answers):
        return 0.0
    items, bias = tokens.detach().cpu().numpy(), network.bias.detach().cpu().numpy()
    states = last_states(network, tokens, histories)
    gains, size = [], block_rows(len(items))
    for start in range(0, len(answers), size):
        some, asked = histories.slice(start, start + size), answers[start : start + size]
        scores = states[start : start + size] @ items.T + bias
        if not np.isfinite(scores).all():
            raise SpecError(DIVERGED)
        gains.append(answer_gains(scores, some, asked))
    return float(np.concatenate(gains).mean())


def arrays_of(network: "NextItem") -> dict[str, npt.NDArray[Any]]:
    """Parameters by name."""
    return {name: parameter.detach().cpu().numpy() for name, parameter in network.named_parameters()}


class Sequential(Source):
    """scores = state after the history times the item's token, plus the item's bias; the bias alone for no history."""

    kind: ClassVar[str] = "sequential"

    def __init__(
        self,
        vocab: Vocab,
        config: SequentialConfig,
        network: "NextItem",
        report: Mapping[str, Any],
        explored: "NextItem | None" = None,
    ) -> None:
        """`explored` is the network before the last epochs, from which a longer log is learned; it is not saved."""
        import torch

        super().__init__(vocab, config.exclude_seen)
        self.config, self.network, self.report, self.explored = config, network, dict(report), explored
        with torch.inference_mode():
            self._tokens = network.tokens()
        # The bias as a further coordinate, where every user has a one.
        bias = network.bias.detach().numpy()[:, None]
        self._vectors = np.ascontiguousarray(np.hstack([self._tokens.detach().numpy(), bias]))
        self._spread = Spread.of(self._vectors)

    def users(self, histories: Histories) -> Floats:
        """(queries, dim + 1): the state after each history, and a one; the network runs once per batch."""

        def read(asked: Histories) -> Floats:
            states = last_states(self.network, self._tokens, asked)
            return np.hstack([states, np.ones((len(states), 1), dtype=np.float32)])

        found: Floats = histories.derive(self, read)
        return found

    def scores(self, histories: Histories, at: Ints) -> Floats:
        return product(self.users(histories), self._vectors)

    def scores_at(self, histories: Histories, at: Ints, codes: npt.NDArray[np.intp]) -> Floats:
        return product_at(self.users(histories), self._vectors, codes)

    def moments(self, histories: Histories, at: Ints) -> tuple[Floats, Floats]:
        return self._spread.moments(self.users(histories))

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """The network's parameters, with the items' whole tokens: their texts are not needed any more."""
        learned = {name: array for name, array in arrays_of(self.network).items() if name != "text.weight"}
        return {**learned, "own": np.ascontiguousarray(self._vectors[:, :-1])}

    def options(self) -> Mapping[str, Any]:
        return {"config": self.config.model_dump(), "report": self.report}

    @classmethod
    def restore(cls, vocab: Vocab, arrays: Mapping[str, npt.NDArray[Any]], options: Mapping[str, Any]) -> "Sequential":
        import torch

        config = SequentialConfig(**options["config"])
        network = config.network(np.ones(len(vocab), dtype=np.int64))
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return cls(vocab, config, network.eval(), options["report"])
