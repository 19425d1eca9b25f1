"""Made-up users who react to slates, so that every estimator can be checked against the truth.

A user clicks what they look at and like. What they look at follows one of two models that the literature fits to logs.
"position": each place is looked at with a probability of its own, whatever was clicked above (Richardson, Dominowska
and Ragno, WWW 2007). "cascade": from the top down, going on with a probability that is lower after a click (Chapelle
and Zhang, WWW 2009). Who was shown much they liked trusts the list and looks further; who has seen an item often is
tired of it. Both are off at first: most estimators assume that sessions do not depend on each other.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from recsys.experiment.moments import Floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class People:
    """Users and items with known tastes.

    likes    : (users, items) chance that a user who looks at an item clicks it
    model    : how they look at lists, see above
    patience : chance to look at the next place (relative to this one; "cascade": where nothing was clicked)
    content  : "cascade": what is left of `patience` after a click
    trust    : how much `patience` grows, up to 1, with the share of what was shown before that was clicked
    fatigue  : share of the liking that is lost each time the same item was shown before
    """

    likes: Floats
    model: Literal["position", "cascade"] = "position"
    patience: float = 0.85
    content: float = 0.5
    trust: float = 0.0
    fatigue: float = 0.0

    @classmethod
    def made(
        cls, users: int = 500, items: int = 100, *, kinds: int = 8, clicks: float = 0.15, seed: int = 0, **more: float
    ) -> "People":
        """Tastes are mixtures of kinds; `clicks` is the mean chance to like. more : as of the class."""
        rng = np.random.default_rng(seed)
        taste, about = rng.normal(size=(users, kinds)), rng.normal(size=(items, kinds))
        level = taste @ about.T / kinds**0.5 + 0.5 * rng.normal(size=items)
        shift = float(np.log(clicks / (1 - clicks)))
        return cls(1 / (1 + np.exp(-(1.2 * level + shift))), **more)  # type: ignore[arg-type]  # by name

    def click(self, users: Ints, slates: Ints, rng: np.random.Generator) -> Floats:
        """(sessions, k) 0 or 1: one session each of some users, with slates (sessions, k), in this order."""
        liked = np.take_along_axis(self.likes[users], slates, axis=1)
        if self.fatigue or self.trust:
            return self._with_memory(users, slates, liked, rng)
        return self._clicks(liked, np.full(len(users), self.patience), rng)

    def expected(self, users: Ints, slates: Ints) -> Floats:
        """(sessions, k) chance of a click at each place, without memory."""
        liked = np.take_along_axis(self.likes[users], slates, axis=1)
        if self.model == "position":
            return np.asarray(liked * self.patience ** np.arange(slates.shape[1]))
        stays = self.patience * (1 - liked * (1 - self.content))
        looks = np.cumprod(np.concatenate([np.ones((len(users), 1)), stays[:, :-1]], axis=1), axis=1)
        return np.asarray(liked * looks)

    def _clicks(self, liked: Floats, patience: Floats, rng: np.random.Generator) -> Floats:
        likes = rng.random(liked.shape) < liked
        draw = rng.random(liked.shape)
        if self.model == "position":
            looked = draw < patience[:, None] ** np.arange(liked.shape[1])
            return np.asarray(likes & looked, dtype=np.float64)
        stays = draw < patience[:, None] * np.where(likes, self.content, 1.0)
        looks = np.cumprod(np.concatenate([np.ones((len(liked), 1), bool), stays[:, :-1]], axis=1), axis=1)
        return np.asarray(likes & looks.astype(bool), dtype=np.float64)

    def _with_memory(self, users: Ints, slates: Ints, liked: Floats, rng: np.random.Generator) -> Floats:
        shown = np.zeros(self.likes.shape)
        seen, clicked = np.zeros(len(self.likes)), np.zeros(len(self.likes))
        found = np.zeros(slates.shape)
        for row, (user, slate) in enumerate(zip(users, slates, strict=True)):
            fresh = liked[row] * (1 - self.fatigue) ** shown[user, slate]
            share = clicked[user] / max(seen[user], 1)
            patience = min(1.0, self.patience * (1 + self.trust * share))
            found[row] = self._clicks(fresh[None], np.array([patience]), rng)[0]
            shown[user, slate] += 1
            seen[user] += len(slate)
            clicked[user] += found[row].sum()
        return found


@dataclass(frozen=True)
class Softmax:
    """A policy that draws slates without replacement, by the softmax of its scores (Plackett-Luce).

    scores : (users, items); temperature : 0 < t; low ones draw the best first nearly always
    """

    scores: Floats
    temperature: float = 1.0

    def draw(self, users: Ints, k: int, rng: np.random.Generator) -> Ints:
        """(sessions, k) items."""
        noise = rng.gumbel(size=(len(users), self.scores.shape[1]))
        return np.argsort(-(self.scores[users] / self.temperature + noise), axis=1)[:, :k].astype(np.int64)

    def chances(self, users: Ints, slates: Ints) -> Floats:
        """(sessions, k) of each item at its place, given those above it."""
        weights = np.exp(self._centred(users))
        chosen = np.take_along_axis(weights, slates, axis=1)
        left = weights.sum(axis=1, keepdims=True) - np.cumsum(chosen, axis=1) + chosen
        return np.asarray(np.minimum(chosen / np.maximum(left, 1e-300), 1.0))

    def firsts(self, users: Ints) -> Floats:
        """(sessions, items) chance of each item to come first."""
        weights = np.exp(self._centred(users))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def _centred(self, users: Ints) -> Floats:
        scaled = self.scores[users] / self.temperature
        return np.asarray(scaled - scaled.max(axis=1, keepdims=True))
