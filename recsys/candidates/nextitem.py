"""A causal self-attentive network over item tokens, trained to say the next item at every position.

The architecture is SASRec's (Kang & McAuley, ICDM 2018) with today's habits: layers normalised on their way in, GELU,
and cross-entropy over the whole catalog or many negatives instead of one (Klenitskiy & Vasilev, RecSys 2023; Petrov &
Macdonald, gSASRec, RecSys 2023). An item's token is its text vector, projected, plus a vector of its own, and the same
tokens are the output layer; a bias per item starts at its log frequency.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.networks.attention import SPREAD, Block, principal_directions, spread_out
from recsys.protocols import Floats


class NextItem(nn.Module):
    """The network. `forward` is the loss of a batch; `states` and `tokens` are what recommending needs."""

    met: Tensor  # the items that have events
    place: Tensor  # where among them an item stands
    vectors: Tensor

    def __init__(
        self,
        frequency: npt.NDArray[np.integer],
        text: Floats | None = None,
        own: Floats | None = None,
        *,
        dim: int,
        layers: int,
        heads: int,
        length: int,
        dropout: float,
        negatives: int | None,
    ) -> None:
        """frequency : (items,) events of each item; text : (items, width) vectors or None; own : (items, dim), what the
        items' own vectors start from, or None for noise."""
        super().__init__()
        self.dropout, self.negatives, self.length = dropout, negatives, length
        self.register_buffer("met", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("place", torch.zeros(len(frequency), dtype=torch.long), persistent=False)
        start = torch.randn(len(frequency), dim) if own is None else spread_out(torch.from_numpy(own))
        # What was never met has nothing of its own: its text alone speaks for it.
        self.own = nn.Parameter(SPREAD * start * torch.from_numpy(frequency > 0)[:, None])
        self.text: nn.Linear | None = None
        if text is not None:
            centred = torch.from_numpy(text - text.mean(axis=0))
            self.register_buffer("vectors", centred, persistent=False)
            self.text = nn.Linear(text.shape[1], dim, bias=False)
            with torch.no_grad():
                self.text.weight.copy_(principal_directions(centred, dim))
        rare = -float(np.log(frequency.sum() + len(frequency)))  # as an item that was never met, but once for luck
        self.bias = nn.Parameter(torch.full((len(frequency),), rare))
        self.places = nn.Parameter(torch.randn(length, dim) * SPREAD)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.last = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.out.weight)
        self.meet(frequency)

    def meet(self, frequency: npt.NDArray[np.integer]) -> None:
        """Let the items with events in `frequency` (items,) be answers; new ones start at their log frequency."""
        met = torch.from_numpy(np.flatnonzero(frequency > 0)).to(self.met.device)
        new = met[~torch.isin(met, self.met)]
        self.met = met
        self.place[met] = torch.arange(len(met), device=met.device)
        counts = torch.from_numpy(frequency).to(met.device)
        with torch.no_grad():
            self.bias[new] = torch.log((counts[new] + 1) / (counts.sum() + len(counts))).float()

    def tokens(self) -> Tensor:
        """(items, dim)."""
        return self.own if self.text is None else self.own + self.text(self.vectors)

    def states(self, items: Tensor, tokens: Tensor, ends: Tensor | None = None) -> Tensor:
        """What each position of `items` (batch, time) expects next: (batch, time, dim), to multiply with `tokens`.

        With `ends` (batch,), only the positions at these places: (batch, dim).
        """
        x = functional.embedding(items, tokens) * tokens.shape[1] ** 0.5 + self.places[: items.shape[1]]
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, ends)
        found: Tensor = self.out(self.last(x))
        return found if ends is None else found[:, 0]

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of `targets` (batch, time; -1 where there is none) after `items` (batch, time)."""
        tokens = self.tokens()
        asked = batch["targets"] >= 0
        states = self.states(batch["items"], tokens)[asked]
        targets = self.place[batch["targets"][asked]]
        if self.negatives is None or self.negatives >= len(self.met):
            return self._loss(states, tokens, self.met, targets)
        # One sample of items for the whole batch, beside the batch's own answers; every answer competes with all of
        # them. A uniform sample leaves the softmax unbiased up to a constant for the sampled part only, hence the
        # weight: each sampled item stands for that many others (Jean et al., ACL 2015).
        answers, local = torch.unique(targets, return_inverse=True)
        drawn = torch.randint(len(self.met), (self.negatives,), device=targets.device)
        drawn = torch.unique(drawn)
        drawn = drawn[~torch.isin(drawn, answers)]
        share = (len(self.met) - len(answers)) / max(1, len(drawn))
        weight = torch.cat([torch.zeros(len(answers)), torch.full((len(drawn),), float(np.log(max(share, 1.0))))])
        return self._loss(states, tokens, self.met[torch.cat([answers, drawn])], local, weight.to(targets.device))

    def _loss(
        self, states: Tensor, tokens: Tensor, items: Tensor, targets: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        bias = self.bias[items] if weight is None else self.bias[items] + weight
        logits = torch.addmm(bias.to(states.dtype), states, tokens[items].T.to(states.dtype))
        return functional.cross_entropy(logits.float(), targets)
