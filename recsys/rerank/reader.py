"""A network that reads a history of items and texts in words, and says what comes next.

History: causal self-attention over item tokens, as SASRec (Kang & McAuley, ICDM 2018), from an empty start on. The
state after the history attends to what else is told of the user: the sentences of a profile, each one vector of a
frozen text encoder, and the token of an item that a request names ("like that one"). Titles that a profile names stand
in for the history that is not there; what else it says is learned last, and alone (`reading`). So one state of a user
serves any text, and one text any user; items are scored by the product of the state and their token, all for the price
of one.
What else a request says is no input here: `interpret` has its meaning, which holds for any user and any item, where a
network that reads the words themselves learns the training requests by heart (notebooks/LOG.md).

An item's token is what the catalog says of it (text vector and attributes, projected) plus a vector of its own. In
training the own vectors of some items are left out, and the histories of some positions: what is learned without them
holds for items and users without a past (DropoutNet, Volkovs et al., NIPS 2017).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.data.vocab import Histories
from recsys.lm.weights import Weights
from recsys.networks.attention import SPREAD, Attend, Block, principal_directions, spread_out
from recsys.protocols import Floats
from recsys.rerank.backbone import BackboneConfig, first_layers

# Histories read at once.
ROWS = 256
# Standard deviation of a language model's word vectors (SmolLM2: 0.136).
WORDS = 0.1
# How much the titles that a profile names count beside what anybody expects: they are the most telling of a history,
# not its last. It cannot be learned from users whose histories the network knows by heart (notebooks/LOG.md).
NAMED = 0.3


@dataclass(frozen=True)
class Size:
    """dim, layers, heads: of the history's blocks; length: items read; readers: blocks in which the state attends to
    texts; item_dropout, history_dropout: see above; negatives: items that compete, None for all; use_text,
    use_ids: whether tokens carry what the catalog says, and vectors of their own."""

    dim: int
    layers: int
    heads: int
    length: int
    readers: int
    dropout: float
    item_dropout: float
    history_dropout: float
    negatives: int | None
    use_text: bool
    use_ids: bool


@dataclass(frozen=True)
class Items:
    """What is known of the items of a vocabulary.

    text       : (items, width) vectors; attributes : (items, attributes); own : (items, dim) what their own vectors
                 start from
    """

    text: Floats
    attributes: Floats
    own: Floats


class Backbone(nn.Module):
    """Layers of a language model (`backbone.first_layers`) as one block, added to what came in.

    Tokens enter as widely spread as the language model's own words. What is not learned is no part of the state.
    base : the language model, as of `Weights.short_id`
    """

    def __init__(self, dim: int, layers: nn.Module, base: str, dropout: float) -> None:
        super().__init__()
        hidden = int(layers.config.hidden_size)  # type: ignore[union-attr, arg-type]  # transformers' config
        self.base, self.dropout = base, dropout
        self.before, self.enter = nn.LayerNorm(dim), nn.Linear(dim, hidden)
        self.layers = layers
        self.after, self.leave = nn.LayerNorm(hidden), nn.Linear(hidden, dim)
        nn.init.normal_(self.enter.weight, std=WORDS / dim**0.5)
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]  # torch leaves these untyped
        self.register_load_state_dict_post_hook(_miss_no_frozen)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, config: BackboneConfig, weights: Weights, size: Size) -> "Backbone":
        """The backbone before training. Errors: those of `first_layers`."""
        layers = first_layers(config, weights, size.length + 1)
        return cls(size.dim, layers, weights.short_id, size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x : (batch, time, dim), padded on the right: causal layers never look at the padding."""
        z = self.layers(inputs_embeds=self.enter(self.before(x)), use_cache=False).last_hidden_state
        return x + functional.dropout(self.leave(self.after(z)), self.dropout, self.training)


class Read(nn.Module):
    """What one kind of text adds to a state, which attends to its pieces; nothing before it has learned anything."""

    def __init__(self, width: int, dim: int, blocks: int) -> None:
        """width : of the pieces; dim : of the states."""
        super().__init__()
        self.piece = nn.Linear(width, dim)
        self.blocks = nn.ModuleList(Attend(dim, 4, 0.1) for _ in range(blocks))
        self.last, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, states: Tensor, pieces: Tensor, mask: Tensor) -> Tensor:
        """(n, dim) for `states` (n, dim), `pieces` (n, m, width) and `mask` (n, m); zeros where there is no piece."""
        some = mask.any(dim=1)
        held, seen = self.piece(pieces), mask | ~some[:, None]
        x = states[:, None]
        for block in self.blocks:
            x = block(x, held, seen)
        found: Tensor = self.out(self.last(x[:, 0])) * some[:, None]
        return found


def _frozen(module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if not value.requires_grad}


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _frozen(module):
        state.pop(prefix + name)


def _miss_no_frozen(module: nn.Module, found: Any) -> None:
    frozen = tuple(f".{name}" for name in _frozen(module))
    found.missing_keys[:] = [key for key in found.missing_keys if not f".{key}".endswith(frozen)]


class Reader(nn.Module):
    """The network. `forward` is the loss of a batch; `table`, `states` and `read` are what ranking needs."""

    features: Tensor
    known: Tensor
    met: Tensor
    place: Tensor

    def __init__(
        self, items: Items, frequency: npt.NDArray[np.integer], size: Size, backbone: Backbone | None = None
    ) -> None:
        """backbone : reads the history in place of blocks of the network's own."""
        super().__init__()
        self.size, dim = size, size.dim
        n, width = len(frequency), items.text.shape[1]
        text = torch.from_numpy(items.text - items.text.mean(axis=0))
        self.register_buffer("features", torch.cat([text, torch.from_numpy(items.attributes)], 1), persistent=False)
        self.register_buffer("known", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("met", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("place", torch.zeros(n, dtype=torch.long), persistent=False)
        self.told = nn.Linear(self.features.shape[1], dim, bias=False)
        with torch.no_grad():
            self.told.weight[:, :width] = principal_directions(text, dim)
            self.told.weight[:, width:].normal_(std=SPREAD)
        self.own = nn.Parameter(SPREAD * spread_out(torch.from_numpy(items.own)))
        self.bias, self.told_bias = nn.Parameter(torch.zeros(n)), nn.Linear(dim, 1)
        self.start, self.places = (nn.Parameter(torch.randn(k, dim) * SPREAD) for k in (1, size.length + 1))
        own = [backbone] if backbone else [Block(dim, size.heads, size.dropout) for _ in range(size.layers)]
        self.blocks = nn.ModuleList(own)
        self.last, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.out.weight)
        self.like, self.profile = Read(dim, dim, size.readers), Read(width, dim, size.readers)
        self.meet(frequency)

    @property
    def base(self) -> str:
        """The language model that reads the history, as of `Weights.short_id`; empty where there is none."""
        return next((block.base for block in self.blocks if isinstance(block, Backbone)), "")

    @classmethod
    def blank(cls, items: int, width: int, size: Size, backbone: Backbone | None = None) -> "Reader":
        """A network that gets its weights from a file, and its items as tokens."""
        zeros = np.zeros((items, width), np.float32)
        blank = Items(zeros, zeros[:, :0], np.zeros((items, size.dim), np.float32))
        return cls(blank, np.zeros(items, dtype=np.int64), size, backbone)

    def meet(self, frequency: npt.NDArray[np.integer]) -> None:
        """Let the items with events in `frequency` (items,) be answers; new ones start at their log frequency."""
        counts = torch.from_numpy(frequency).to(self.bias.device)
        new = (counts > 0) & ~self.known
        with torch.no_grad():
            self.bias[new] = torch.log((counts[new] + 1) / (counts.sum() + len(counts))).float()
        self.known |= counts > 0
        self.met = torch.nonzero(counts > 0)[:, 0]
        self.place[self.met] = torch.arange(len(self.met), device=self.met.device)

    def table(self, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(items, dim) tokens and (items,) biases; `without` (items,) are taken as items without a past."""
        own = self.known if without is None else self.known & ~without
        told = self.told(self.features if self.size.use_text else torch.zeros_like(self.features))
        rare = self.bias[self.known].mean() if self.known.any() else self.bias.new_zeros(())
        bias = torch.where(own, self.bias, rare) + self.told_bias(told)[:, 0]
        return told + self.own * own[:, None] * self.size.use_ids, bias

    def states(self, items: Tensor, tokens: Tensor) -> Tensor:
        """(batch, time + 1, dim): before the first of `items` (batch, time), and after each of them."""
        x = functional.embedding(items, tokens) * self.size.dim**0.5
        x = torch.cat([self.start.expand(len(items), 1, -1), x], 1) + self.places[: items.shape[1] + 1]
        x = functional.dropout(x, self.size.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        found: Tensor = x
        return found

    def read(self, states: Tensor, tokens: Tensor, text: Mapping[str, Tensor] | None = None) -> Tensor:
        """(n, dim), to multiply with `tokens`: what `states` (n, dim) expect next, given texts.

        text : "sentences" (n, m, width) with "sentences_mask" (n, m); "like" (n,) codes of the item that is named, -1
               for none. All may be missing; whoever has none is read as if without.
        """
        found: Tensor = self.out(self.last(states))
        return found + self.heed(states, tokens, text) if text else found

    def heed(self, states: Tensor, tokens: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """(n, dim): what `text` adds to what the states expect by themselves; see `read`."""
        added = torch.zeros_like(states)
        if "like" in text:
            like = functional.embedding(text["like"].clamp(min=0), tokens) * self.size.dim**0.5
            added = added + self.like(states, like[:, None], (text["like"] >= 0)[:, None])
        if "sentences" in text:
            added = added + self.profile(states, text["sentences"], text["sentences_mask"])
        return added

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss: cross-entropy of the answers.

        items, targets : (batch, time) codes; targets -1 where there is none
        asked          : (n, 2) row and place of the positions at which an item is named, "like" (n,)
        """
        without = torch.rand(len(self.known), device=self.known.device) < self.size.item_dropout * torch.rand(
            (), device=self.known.device
        )
        tokens, bias = self.table(without)
        states = self.states(batch["items"], tokens)
        empty, after = states[:1, 0], states[:, 1:]
        lost = torch.rand(after.shape[:2], device=after.device) < self.size.history_dropout
        after = torch.where(lost[:, :, None], empty, after)
        plain = batch["targets"] >= 0
        items, weight = self._rivals(batch)
        bias = bias[items] + weight
        n = int(plain.sum())
        loss = tokens.new_zeros(())
        if "asked" in batch:
            row, at = batch["asked"].T
            plain = plain.clone()
            plain[row, at] = False
            found = self.read(after[row, at], tokens, {"like": batch["like"]})
            logits = self._logits(found, tokens[items], bias)
            loss = loss + self._answered(logits, batch["targets"][row, at], items).sum() / n
        logits = self._logits(self.read(after[plain], tokens), tokens[items], bias)
        loss = loss + self._answered(logits, batch["targets"][plain], items).sum() / n
        return loss

    def _rivals(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The items that compete, and what to add to their logits: all that were met, or the batch's own answers and a
        uniform sample of the others, of which each stands for many (Jean et al., ACL 2015)."""
        negatives = self.size.negatives
        if negatives is None or negatives >= len(self.met):
            return self.met, self.bias.new_zeros(len(self.met))
        answers = torch.unique(batch["targets"][batch["targets"] >= 0])
        drawn = torch.unique(self.met[torch.randint(len(self.met), (negatives,), device=self.met.device)])
        drawn = drawn[~torch.isin(drawn, answers)]
        share = (len(self.met) - len(answers)) / max(1, len(drawn))
        items, order = torch.sort(torch.cat([answers, drawn]))
        weight = self.bias.new_full((len(items),), float(np.log(max(share, 1.0))))
        return items, torch.where(order < len(answers), 0.0, weight)

    def _logits(self, found: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias.to(found.dtype), found, tokens.T.to(found.dtype)).float()

    def _answered(self, logits: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        place = self.place[targets] if items is self.met else torch.searchsorted(items, targets)
        return functional.cross_entropy(logits, place, reduction="none")


def known_by_name(network: Reader, named: Histories, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Of users who are known by a profile alone: (n, dim) states after the items that it names, and what they expect
    by themselves. named : these items, as of `told.named_in`."""
    states = states_after(network, named, tokens)
    nobody = network.states(torch.zeros((1, 0), dtype=torch.long, device=tokens.device), tokens)[:, 0]
    return states, NAMED * network.read(states, tokens) + (1 - NAMED) * network.read(nobody, tokens)


def states_after(network: Reader, histories: Histories, tokens: Tensor) -> Tensor:
    """(histories, dim): the state after each history; that before all events for an empty one."""
    length = network.size.length
    sizes = np.minimum(np.diff(histories.indptr), length)
    found = torch.empty((len(sizes), tokens.shape[1]), device=tokens.device)
    order = np.argsort(sizes, kind="stable")
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        place = (histories.indptr[rows + 1] - sizes[rows])[:, None] + np.arange(sizes[rows].max(initial=0))
        inside = place < histories.indptr[rows + 1][:, None]
        items = histories.items[np.where(inside, place, 0)] if inside.size and len(histories.items) else inside
        codes = np.where(inside, items, 0).astype(np.int64)
        states = network.states(torch.from_numpy(codes).to(tokens.device), tokens)
        found[torch.from_numpy(rows)] = states[torch.arange(len(rows)), torch.from_numpy(sizes[rows])].float()
    return found
