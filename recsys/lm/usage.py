"""What a model has been asked for, in tokens; and what it can take."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from recsys.protocols import LanguageModel

_BYTES_PER_TOKEN = 4  # about what tokenizers make of English


@dataclass
class Usage:
    """Tokens sent and received so far by this object; safe to count from several threads."""

    sent: int = 0
    received: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, sent: int, received: int) -> None:
        """Count one more answer."""
        with self._lock:
            self.sent += sent
            self.received += received


def estimate(text: str) -> int:
    """About how many tokens a text has."""
    return len(text.encode()) // _BYTES_PER_TOKEN + 1


def behind(lm: LanguageModel) -> Any:
    """The model itself, where a store of its answers stands before it."""
    return getattr(lm, "lm", lm)


def usage_of(lm: LanguageModel) -> Usage | None:
    """What a remote model has used; None of others."""
    found = getattr(behind(lm), "usage", None)
    return found if isinstance(found, Usage) else None


def context_of(lm: LanguageModel) -> int | None:
    """The longest sequence of tokens that a model takes; None where it does not say."""
    found = getattr(behind(lm), "context", None)
    return found if isinstance(found, int) else None


def count(lm: LanguageModel, text: str) -> int:
    """Tokens of a text: counted by a local model, else estimated."""
    counted = getattr(behind(lm), "count", None)
    return int(counted(text)) if counted else estimate(text)
