"""How a glance (`glance`) is learned: to expect, at every place of every history, what the teacher's network expects.

The loss is the cross-entropy between the teacher's softmax over all items and its own (Hinton, Vinyals & Dean, 2015).
A history of n events teaches n times, where a list of candidates teaches once: what little a good reader of histories
adds to good candidates is not learned from some thousands of lists (notebooks/LOG.md). No answer is asked for.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.data.vocab import Histories
from recsys.networks.attention import Block
from recsys.networks.chunks import Chunks
from recsys.networks.training import Schedule, fingerprint, train, workplace
from recsys.protocols import Floats
from recsys.rerank.glance import Glance
from recsys.rerank.reader import Reader
from recsys.rerank.sequence import FULL_SOFTMAX, SAMPLED, SequenceJudge
from recsys.settings import Settings

# Places of histories to learn from, each as often as that takes, within bounds; chunks of histories in a batch.
PLACES, LEAST, MOST = 3_000_000, 2, 12
BATCH = 32


def learn_to_glance(judge: SequenceJudge, histories: Histories, settings: Settings, seed: int) -> Glance:
    """What a judge's network makes of histories, in one block. histories : that the judge has learned from, too."""
    pupil = Pupil(judge.network, *(torch.from_numpy(values) for values in judge.table))
    passes = int(np.clip(round(PLACES / max(len(histories.items), 1)), LEAST, MOST))
    schedule = Schedule(batch=BATCH, finish=passes)

    def chunks(epoch: int) -> Chunks:
        return Chunks(histories, judge.config.length, BATCH, np.random.default_rng((seed, epoch)))

    if len(chunks(0)):
        arrays = [value.detach().numpy() for value in judge.network.state_dict().values()]
        key = fingerprint(schedule, seed, histories.indptr, histories.items, *judge.table, *arrays)
        with workplace(settings, key) as folder:
            place, device = folder / "glance", settings.device
            train(pupil, chunks, None, schedule, seed=seed, device=device, folder=place, title="student reads")
    return pupil.glance()


class Pupil(nn.Module):
    """The block in training, beside its teacher, whose first block it starts from; `forward` is the loss of a batch."""

    tokens: Tensor
    bias: Tensor

    def __init__(self, reader: Reader, tokens: Tensor, bias: Tensor) -> None:
        """tokens, bias : the teacher's table, of which nothing is learned."""
        super().__init__()
        size, dim = reader.size, reader.size.dim
        self.register_buffer("tokens", tokens.float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)
        self.start, self.places = (nn.Parameter(value.detach().clone()) for value in (reader.start, reader.places))
        block = reader.blocks[0]
        self.block = deepcopy(block) if isinstance(block, Block) else Block(dim, size.heads, 0.0)
        self.block.dropout = 0.0
        self.last, self.out = deepcopy(reader.last), deepcopy(reader.out)
        self.teacher = (reader.eval(),)  # not as a part

    def expects(self, items: Tensor) -> Tensor:
        """(batch, time, dim), to be multiplied with tokens: after each of `items` (batch, time)."""
        x = functional.embedding(items, self.tokens) * self.tokens.shape[1] ** 0.5
        x = torch.cat([self.start.expand(len(items), 1, -1), x], 1) + self.places[: items.shape[1] + 1]
        found: Tensor = self.out(self.last(self.block(x)))[:, 1:]
        return found

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean over places of the cross-entropy. batch : "items" and "targets" (batch, time), -1 where there is no
        place."""
        inside, rivals = batch["targets"] >= 0, self._rivals()
        tokens, bias = self.tokens[rivals], self.bias[rivals]
        reader = self.teacher[0].to(self.tokens.device)
        with torch.no_grad():
            states = reader.states(batch["items"], self.tokens)[:, 1:][inside]
            share = (reader.read(states, self.tokens) @ tokens.T + bias).float().softmax(dim=1)
        found = (self.expects(batch["items"])[inside] @ tokens.T + bias).float()
        return -(share * found.log_softmax(dim=1)).sum(dim=1).mean()

    def _rivals(self) -> Tensor:
        """All items, or a sample where there are very many."""
        n = len(self.tokens)
        if n <= FULL_SOFTMAX:
            return torch.arange(n, device=self.tokens.device)
        return torch.randperm(n, device=self.tokens.device)[:SAMPLED]

    def glance(self) -> Glance:
        """What serves."""
        found: dict[str, Any] = {name: value.detach().numpy() for name, value in self.state_dict().items()}
        found |= {"tokens": self.tokens.numpy(), "bias": self.bias.numpy()}
        arrays: dict[str, Floats] = {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}
        return Glance(arrays, self.block.heads)
