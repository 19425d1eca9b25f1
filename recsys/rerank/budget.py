"""A limit on what a judge may spend, in tokens and in money. What it cannot pay for, it does not ask."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from recsys.lm.usage import Usage, usage_of
from recsys.protocols import LanguageModel

_MILLION = 1e6


@dataclass
class Budget:
    """What one loaded judge may spend as long as it lives, its fit included, and what it has spent.

    max_tokens : sent and received together; None: no limit
    max_cost   : in the currency of the prices; None: no limit
    price_in, price_out : of a million tokens sent and received

    refused : requests that were not sent because nothing was left

    A server's own count of tokens holds where it gives one; other models' tokens are estimated from the texts.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    usage: Usage | None = None
    refused: int = 0
    _before: tuple[int, int] = (0, 0)
    _estimated: Usage = field(default_factory=Usage)

    @classmethod
    def of(
        cls, lm: LanguageModel, max_tokens: int | None, max_cost: float | None, prices: tuple[float, float]
    ) -> "Budget":
        """A budget for asking this model, from now on."""
        usage = usage_of(lm)
        before = (usage.sent, usage.received) if usage else (0, 0)
        return cls(max_tokens, max_cost, *prices, usage=usage, _before=before)

    @property
    def spent(self) -> tuple[int, int]:
        """Tokens sent and received so far."""
        if self.usage is None:
            return self._estimated.sent, self._estimated.received
        return self.usage.sent - self._before[0], self.usage.received - self._before[1]

    @property
    def used_up(self) -> bool:
        """Whether nothing is left."""
        return not self._covers(*self.spent)

    def affordable(self, calls: Sequence[tuple[int, int]]) -> int:
        """How many of these calls, (tokens sent, received) as estimated, can be paid for, from the first on."""
        sent, received = self.spent
        for place, (more_sent, more_received) in enumerate(calls):
            sent, received = sent + more_sent, received + more_received
            if not self._covers(sent, received, at_most=True):
                return place
        return len(calls)

    def note(self, sent: int, received: int) -> None:
        """Count what was asked, by estimate; a server's own count replaces it."""
        self._estimated.add(sent, received)

    def __str__(self) -> str:
        tokens = [] if self.max_tokens is None else [f"{self.max_tokens} tokens"]
        return " and ".join([*tokens, *([] if self.max_cost is None else [f"{self.max_cost:g} of cost"])])

    def _covers(self, sent: int, received: int, *, at_most: bool = False) -> bool:
        cost = (sent * self.price_in + received * self.price_out) / _MILLION
        limits = ((sent + received, self.max_tokens), (cost, self.max_cost))
        return all(limit is None or value < limit or (at_most and value == limit) for value, limit in limits)
