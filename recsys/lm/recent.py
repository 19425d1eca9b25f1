"""A text encoder that remembers what it was asked last: several parts of one answer read the same request."""

from collections.abc import Sequence
from functools import lru_cache

from recsys.protocols import Floats, Ints, TextEncoder

# Questions that are remembered: those of one answer. A batch asks for some hundred texts at once, 10 MB of states.
KEPT = 4


class RecentEncoder:
    """Implements `protocols.TextEncoder`: another encoder's answers, to the bit, since whole questions are remembered
    and not single texts. Nobody may write into them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.model_id = encoder.model_id
        self._embed, self._states = lru_cache(KEPT)(encoder.embed), lru_cache(KEPT)(encoder.states)

    def embed(self, texts: Sequence[str]) -> Floats:
        """As the encoder's."""
        return self._embed(tuple(texts))

    def states(self, texts: Sequence[str], max_tokens: int) -> tuple[Floats, Ints]:
        """As the encoder's."""
        return self._states(tuple(texts), max_tokens)
