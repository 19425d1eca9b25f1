"""Asking a language model for many texts, some of which may fail: in batches, one by one where a batch fails.

A prompt is asked once. A model that fails on one prompt fails on that one alone; one that answers nothing at all is an
error, and one that stops answering is not asked for the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from recsys.errors import ModelError
from recsys.lm.usage import count, usage_of
from recsys.protocols import LanguageModel, Score

_T = TypeVar("_T")
_Q = TypeVar("_Q")
GIVE_UP = 8  # failures in a row after which a model counts as gone


@dataclass
class Asking:
    """One run's questions to one model.

    answers : what the model said by prompt, None where it failed
    failed, worked : numbers of questions; in_a_row: failures since the last answer
    prompt_tokens, completion_tokens : counted by a local model's tokenizer or estimated as a quarter of the bytes
        (`lm.usage`); a remote model's own counts stand in `tokens`
    """

    lm: LanguageModel
    answers: dict[str, str | None] = field(default_factory=dict)
    failed: int = 0
    worked: int = 0
    in_a_row: int = 0
    first_error: ModelError | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _before: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        used = usage_of(self.lm)
        self._before = (used.sent, used.received) if used else (0, 0)

    @property
    def gone(self) -> bool:
        """Whether the model has stopped answering."""
        return self.in_a_row >= GIVE_UP

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of prompts and of completions so far: a remote model's own counts, else as counted here."""
        used = usage_of(self.lm)
        if used is None:
            return self.prompt_tokens, self.completion_tokens
        return used.sent - self._before[0], used.received - self._before[1]

    def raise_if_nothing_worked(self) -> None:
        """Errors: the first `ModelError` where every question failed."""
        if self.first_error is not None and not self.worked:
            raise self.first_error

    def generate(self, prompts: Sequence[str], max_tokens: int) -> None:
        """Fill `answers` for prompts that are not in it."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.answers]
        texts = self._all(new, lambda some: self.lm.generate(some, max_tokens=max_tokens))
        for prompt, text in zip(new, texts, strict=True):
            self.answers[prompt] = text
            if text is not None:
                self.prompt_tokens += count(self.lm, prompt)
                self.completion_tokens += count(self.lm, text) if text else 0

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score] | None]:
        """Scores of each prompt's answers; None where the model failed. Each answer is read after its prompt."""
        rows = list(zip(prompts, answers, strict=True))
        found = self._all(rows, lambda some: self.lm.score([p for p, _ in some], [a for _, a in some]))
        for (prompt, row), scores in zip(rows, found, strict=True):
            if scores is not None:
                self.prompt_tokens += len(row) * count(self.lm, prompt) + sum(score.tokens for score in scores)
        return found

    def _all(self, questions: Sequence[_Q], ask: Callable[[Sequence[_Q]], list[_T]]) -> list[_T | None]:
        if not questions or self.gone:
            return [None] * len(questions)
        try:
            found: list[_T | None] = list(ask(questions))
        except ModelError as error:
            self.first_error = self.first_error or error
            if len(questions) > 1:
                return [self._all([question], ask)[0] for question in questions]
            self.failed += 1
            self.in_a_row += 1
            return [None]
        self.worked += len(questions)
        self.in_a_row = 0
        return found
