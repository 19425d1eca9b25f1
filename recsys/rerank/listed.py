"""What the judges have in common that show several candidates at once, under labels."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from recsys.lm.usage import behind, estimate
from recsys.protocols import Rater
from recsys.rerank.fusion import Array
from recsys.rerank.parse import Labels, label
from recsys.rerank.prompt import LISTED, About
from recsys.rerank.prompted import Case, Prompted, PromptedConfig
from recsys.rerank.sorting import Shown
from recsys.tables import Catalog, Profiles, Queries

log = logging.getLogger(__name__)


class ListedConfig(PromptedConfig):
    """answer_tokens : what the model may write at most; not set: what the labels need. A model that thinks before it
    answers needs more."""

    sections: ClassVar[tuple[str, ...]] = LISTED

    labels: Labels
    answer_tokens: int | None = Field(default=None, ge=1)


@dataclass
class Tally:
    """Answers so far, and those of them that named no candidate."""

    answers: int = 0
    mute: int = 0


@dataclass(frozen=True)
class Listed(Prompted):
    """Questions about candidates under labels."""

    config: ListedConfig
    tally: Tally = field(default_factory=Tally, compare=False)

    @property
    def at_once(self) -> int:
        """Candidates in a prompt."""
        raise NotImplementedError

    def question(self, case: Case, shown: Shown, *, lead: bool = False) -> str:
        """The prompt that shows these candidates of a case."""
        return self._prompt(case.about, [case.items[place] for place in shown], lead=lead)

    def likelihoods(self, asked: Sequence[tuple[Case, Shown]]) -> list[dict[int, float] | None]:
        """How likely each label is as the answer's next token, by place; None where nothing finite is said, or the
        budget does not reach."""
        prompts = [self.question(case, shown, lead=True) for case, shown in asked]
        labels = [[label(place, self.config.labels) for place in range(len(shown))] for _, shown in asked]
        lm: Any = self.lm
        read: Sequence[Sequence[float] | None]
        if isinstance(behind(lm), Rater) and all(len(one) == 1 for row in labels for one in row):
            calls = [(estimate(prompt), 1) for prompt in prompts]
            read = self.paid(prompts, calls, lambda some: lm.rate(some, labels[: len(some)]))
        else:
            scores = self.score(prompts, [[f" {one}" for one in row] for row in labels])
            read = [None if row is None else [score.logprob for score in row] for row in scores]
        return [dict(enumerate(row)) if row and all(map(math.isfinite, row)) else None for row in read]

    def heard(self, mute: int, asked: int) -> None:
        """Count answers, and those that named no candidate."""
        self.tally.answers += asked
        self.tally.mute += mute

    def opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterator[Array]:
        """See `Prompted.opinions`; says how many answers named no candidate."""
        answers, mute = self.tally.answers, self.tally.mute
        yield from super().opinions(heads, queries, profiles, catalog)
        if self.tally.mute > mute:
            log.warning(
                "%s: %d of %d answers name no candidate and change no order",
                self.lm.model_id,
                self.tally.mute - mute,
                self.tally.answers - answers,
            )

    def fits(self, case: Case, about: About, room: int) -> bool:
        """See `Prompted.fits`: the longest candidates in one prompt, and the answer."""
        text = self._prompt(about, self.longest_of(case.items, self.at_once), lead=True)
        return self.within(text, room - (self.config.answer_tokens or 5 * self.at_once))

    def _prompt(self, about: About, items: Sequence[str], *, lead: bool) -> str:
        lines = [
            self.prompt.render_candidate(label(place, self.config.labels), text, self.longest)
            for place, text in enumerate(items)
        ]
        return f"{self.prompt.render(about)}\n{self.prompt.render_task(lines, lead=lead)}"


def of_order(order: list[int] | None) -> Array | None:
    """Minus the log of each candidate's place."""
    return None if order is None else np.asarray(-np.log(np.argsort(order) + 1.0))
