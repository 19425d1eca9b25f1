"""The listwise judge: a language model puts the candidates in order, a window at a time from the tail to the head
(RankGPT: Sun et al., "Is ChatGPT good at search?", EMNLP 2023).

method "generate" reads the order from what the model writes. "logprobs" needs one forward pass a window: the order is
that of the labels' likelihoods (FIRST: Reddy et al., EMNLP 2024; LlamaRec: Yue et al., 2023).

Where a candidate stands in the prompt sways a model. So the list may be shown in several orders, the candidates' own
and random ones, and the places averaged (Hou et al., "Large language models are zero-shot rankers", ECIR 2024).
"""

import logging
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from recsys.protocols import LanguageModel
from recsys.rerank.evidence import Evidence
from recsys.rerank.fusion import Array
from recsys.rerank.listed import Listed, ListedConfig
from recsys.rerank.parse import MOST_LETTERS, Labels, by_score, named, parse
from recsys.rerank.prompt import Prompt
from recsys.rerank.prompted import Case, PromptedConfig
from recsys.rerank.sorting import Shown, in_rounds, sliding_windows

log = logging.getLogger(__name__)

_PER_LABEL = 5  # tokens that a label and what stands beside it take at most


class ListwiseConfig(ListedConfig):
    """How the listwise reranker is built.

    method  : "generate" or "logprobs"
    labels  : what candidates are called: "letters", of which there are 26, or "numbers"
    window  : candidates that are shown at once
    stride  : by how many a window is nearer to the head than the one before
    shuffles: orders in which a list is shown; the first is the candidates' own
    average : of a candidate's places in them: "reciprocal" (the mean of 1/place) or "borda" (the mean place)
    """

    kind: Literal["listwise"] = "listwise"
    prompt: str = "listwise-v1"
    method: Literal["generate", "logprobs"] = "generate"
    labels: Labels = "letters"
    window: int = Field(default=20, ge=2, le=100)
    stride: int = Field(default=10, ge=1, le=100)
    shuffles: int = Field(default=1, ge=1, le=100)
    average: Literal["reciprocal", "borda"] = "reciprocal"

    @model_validator(mode="after")
    def _windows(self) -> Self:
        if self.labels == "letters" and self.window > MOST_LETTERS:
            raise ValueError(f"there are {MOST_LETTERS} letters: a window of {self.window} needs labels = 'numbers'")
        if self.stride > self.window:
            raise ValueError(f"a stride of {self.stride} leaves out candidates between windows of {self.window}")
        return self

    def judge(self, prompt: Prompt, lm: LanguageModel, evidence: Evidence) -> "ListwiseJudge":
        """See `PromptedConfig.judge`."""
        return ListwiseJudge(self, prompt, lm, evidence)


class ListwiseJudge(Listed):
    """Its opinion of a candidate is minus the log of its mean place."""

    kind: ClassVar[str] = "listwise"
    config_type: ClassVar[type[PromptedConfig]] = ListwiseConfig

    config: ListwiseConfig

    @property
    def at_once(self) -> int:
        """Candidates in a prompt."""
        return self.config.window

    def judge(self, cases: Sequence[Case]) -> list[Array | None]:
        """See `Prompted.judge`."""
        of = [case for case in cases for _ in range(self.config.shuffles)]
        starts = [start for case in cases for start in self._starts(case)]
        sorters = [sliding_windows(start, self.config.window, self.config.stride) for start in starts]
        orders = iter(in_rounds(sorters, lambda asked: self._orders([(of[i], shown) for i, shown in asked])))
        return [self._opinion([next(orders) for _ in range(self.config.shuffles)]) for _ in cases]

    def _starts(self, case: Case) -> list[list[int]]:
        rng = np.random.default_rng(case.seed)
        shuffled = [rng.permutation(len(case.items)).tolist() for _ in range(self.config.shuffles - 1)]
        return [list(range(len(case.items))), *shuffled]

    def _orders(self, asked: Sequence[tuple[Case, Shown]]) -> list[list[int] | None]:
        """A permutation of the places shown for each prompt."""
        if self.config.method == "logprobs":
            return [None if found is None else by_score(found) for found in self.likelihoods(asked)]
        most = self.config.answer_tokens or _PER_LABEL * self.config.window + 8
        texts = self.write([self.question(*one) for one in asked], most)
        sizes = [len(shown) for _, shown in asked]
        labels = self.config.labels
        mute = sum(text is not None and not named(text, n, labels) for text, n in zip(texts, sizes, strict=True))
        self.heard(mute, len(texts))
        return [None if text is None else parse(text, n, labels) for text, n in zip(texts, sizes, strict=True)]

    def _opinion(self, orders: Sequence[list[int] | None]) -> Array | None:
        """Of several orders of one list; None where the budget did not reach for all."""
        done = [order for order in orders if order is not None]
        if len(done) < len(orders):
            return None
        places = np.argsort(np.array(done), axis=1) + 1.0
        if self.config.average == "borda":
            return np.asarray(-np.log(places.mean(axis=0)))
        return np.asarray(np.log((1 / places).mean(axis=0)))
