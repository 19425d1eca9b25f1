"""Two towers: items from their features, users from the items they met, near each other where they belong together.

Neither knows an id, so that an item without events stands where its words and attributes put it. Trained with the
items of the batch as each other's negatives, corrected for how often each is one (Yi et al., "Sampling-bias-corrected
neural modeling for large corpus item recommendations", RecSys 2019).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.candidates.base import Floats

SPREAD = 0.02


class Towers(nn.Module):
    """`forward` is the loss of a batch; `items` and `users` are what recommending needs.

    Both start as the features' principal directions, so that before the first step users stand at the mean of what
    they met; a hidden layer on top of each learns what to add to that.
    """

    features: Tensor
    log_q: Tensor  # the logarithm of an item's share of all targets

    def __init__(
        self,
        features: Floats,
        *,
        dim: int,
        hidden: int,
        dropout: float,
        noise: float,
        temperature: float,
        correction: float,
    ) -> None:
        """features : (items, width) about unit length.

        noise : share of the features that is dropped while training, so that no item is learned by heart.
        """
        super().__init__()
        self.noise, self.correction = noise, correction
        given = torch.from_numpy(features)
        self.register_buffer("features", given, persistent=False)
        self.register_buffer("log_q", torch.zeros(len(given)), persistent=False)
        width = given.shape[1]
        self.scale = width**0.5  # so that the hidden layer sees numbers of about 1
        self.project = nn.Linear(width, dim, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(principal_directions(given, dim))
        self.item_hidden, self.item_out = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        self.user_hidden, self.user_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        for last in (self.item_out, self.user_out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.dropout = nn.Dropout(dropout)
        # Where a user without history stands; beside a history it counts little.
        self.newcomer = nn.Parameter(torch.randn(dim) * SPREAD / dim**0.5)
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(temperature))))

    def expect(self, frequency: npt.NDArray[np.integer]) -> None:
        """Say how often each item, (items,), is a target in what follows."""
        share = np.maximum(frequency, 1) / max(int(frequency.sum()), 1)
        self.log_q.copy_(torch.from_numpy(np.log(share)))

    def items(self, codes: Tensor | None = None) -> Tensor:
        """(items, dim) unit vectors of some items, of all where None."""
        x = self.features if codes is None else self.features[codes]
        x = functional.dropout(x, self.noise, self.training)
        hidden = self.dropout(functional.relu(self.item_hidden(x * self.scale)))
        return functional.normalize(self.project(x) + self.item_out(hidden), dim=1)

    def users(self, met: Tensor) -> Tensor:
        """(users, dim) unit vectors; met : (users, dim) weighted sums of the items met, zero for a newcomer."""
        x = functional.normalize(met + self.newcomer, dim=1)
        hidden = self.dropout(functional.relu(self.user_hidden(x)))
        return functional.normalize(x + self.user_out(hidden), dim=1)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of `targets` (batch,) after `items` (batch, length) with `weights` (batch, length)."""
        targets, items = batch["targets"], batch["items"]
        codes, place = torch.unique(torch.cat([targets, items.flatten()]), return_inverse=True)
        vectors = self.items(codes)
        met = vectors[place[len(targets) :].view(items.shape)]
        users = self.users((met * batch["weights"][:, :, None]).sum(dim=1))
        logits = users @ vectors[place[: len(targets)]].T / self.log_temperature.exp()
        logits = logits.float() - self.correction * self.log_q[targets]
        # The same item as another row's target is no negative.
        again = (targets[None] == targets[:, None]).fill_diagonal_(False)
        return functional.cross_entropy(logits.masked_fill(again, -torch.inf), torch.arange(len(targets)).to(targets))


def principal_directions(vectors: Tensor, dim: int) -> Tensor:
    """(dim, width) orthonormal directions of largest variance; zero rows where there are fewer than `dim`."""
    centred = (vectors - vectors.mean(dim=0)).double()
    _, found = torch.linalg.eigh(centred.T @ centred)
    kept = found.T.flip(0)[:dim]
    # The sign of an eigenvector is the library's whim: its largest entry is made positive.
    largest = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    directions = torch.zeros(dim, vectors.shape[1])
    directions[: len(kept)] = (kept * largest.sign()).float()
    return directions
