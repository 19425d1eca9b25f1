"""The pairwise and the setwise judge: a language model says which of a few candidates is best, and sorting does the
rest.

method "generate" reads the label from what the model writes; "choice" holds the model to the labels (a server with
typed decisions); "logprobs" takes the likeliest label, in one forward pass.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from recsys.errors import SpecError
from recsys.lm.usage import behind
from recsys.protocols import Chooser, LanguageModel
from recsys.rerank.evidence import Evidence
from recsys.rerank.fusion import Array
from recsys.rerank.listed import Listed, ListedConfig, of_order
from recsys.rerank.parse import MOST_LETTERS, Labels, by_score, label, named
from recsys.rerank.prompt import Prompt
from recsys.rerank.prompted import Case, PromptedConfig
from recsys.rerank.sorting import Shown, Sorter, heap_of_pairs, heap_of_sets, in_rounds, sliding_pairs

Method = Literal["generate", "choice", "logprobs"]
_ANSWER = 8  # tokens for one label and what stands beside it


class PairwiseConfig(ListedConfig):
    """How the pairwise reranker is built (PRP: Qin et al., "Large language models are effective text rankers with
    pairwise ranking prompting", NAACL 2024). Every pair is asked about in both orders, and a model that changes its
    mind with them changes nothing.

    method    : "generate", "choice" or "logprobs"
    algorithm : "sliding" (passes from the tail to the head) or "heap" (heap sort)
    top       : places that are sorted out: passes, or items taken from the heap; the rest keeps its order
    """

    kind: Literal["pairwise"] = "pairwise"
    prompt: str = "pairwise-v1"
    method: Method = "generate"
    labels: Labels = "letters"
    algorithm: Literal["sliding", "heap"] = "sliding"
    top: int = Field(default=10, ge=1, le=1000)

    def judge(self, prompt: Prompt, lm: LanguageModel, evidence: Evidence) -> "PairwiseJudge":
        """See `PromptedConfig.judge`."""
        return PairwiseJudge(self, prompt, _able(lm, self.method), evidence)


class SetwiseConfig(ListedConfig):
    """How the setwise reranker is built (Zhuang et al., "A setwise approach for effective and highly efficient
    zero-shot ranking with large language models", SIGIR 2024).

    method : "generate", "choice" or "logprobs"
    width  : candidates that are compared at once
    top    : places that are sorted out, by heap sort; the rest keeps its order
    """

    kind: Literal["setwise"] = "setwise"
    prompt: str = "setwise-v1"
    method: Method = "generate"
    labels: Labels = "letters"
    width: int = Field(default=4, ge=3, le=MOST_LETTERS)
    top: int = Field(default=10, ge=1, le=1000)

    def judge(self, prompt: Prompt, lm: LanguageModel, evidence: Evidence) -> "SetwiseJudge":
        """See `PromptedConfig.judge`."""
        return SetwiseJudge(self, prompt, _able(lm, self.method), evidence)


class _Choosing(Listed):
    """The opinion of a candidate is minus the log of its place."""

    config: PairwiseConfig | SetwiseConfig

    def sorter(self, n: int) -> Sorter[int]:
        """What sorts a list of n."""
        raise NotImplementedError

    def chosen(self, asked: Sequence[tuple[Case, Shown]]) -> list[int | None]:
        """The place that is best of those shown; None gives the list up."""
        raise NotImplementedError

    def judge(self, cases: Sequence[Case]) -> list[Array | None]:
        """See `Prompted.judge`."""
        sorters = [self.sorter(len(case.items)) for case in cases]
        orders = in_rounds(sorters, lambda asked: self.chosen([(cases[i], shown) for i, shown in asked]))
        return [of_order(order) for order in orders]

    def picks(self, asked: Sequence[tuple[Case, Shown]]) -> list[int | None]:
        """The place that each text names first; -1 where it names none, None where nothing could be paid."""
        labels = self.config.labels
        prompts = [self.question(*one) for one in asked]
        texts: list[str | None] = [None] * len(prompts)
        sizes = [len(shown) for _, shown in asked]
        typed = self.config.method == "choice"
        for size in sorted(set(sizes)) if typed else [0]:
            rows = [row for row, n in enumerate(sizes) if n == size or not typed]
            options = [label(place, labels) for place in range(size)]
            answers = self.write([prompts[row] for row in rows], self.config.answer_tokens or _ANSWER, options)
            for row, answer in zip(rows, answers, strict=True):
                texts[row] = answer
        found = [None if t is None else [*named(t, n, labels), -1][0] for t, n in zip(texts, sizes, strict=True)]
        self.heard(sum(place == -1 for place in found), len(found))
        return found


class PairwiseJudge(_Choosing):
    """Asks about pairs, each in both orders."""

    kind: ClassVar[str] = "pairwise"
    config_type: ClassVar[type[PromptedConfig]] = PairwiseConfig

    config: PairwiseConfig

    @property
    def at_once(self) -> int:
        """Candidates in a prompt."""
        return 2

    def sorter(self, n: int) -> Sorter[int]:
        """See `_Choosing.sorter`."""
        if self.config.algorithm == "heap":
            return heap_of_pairs(range(n), self.config.top)
        return sliding_pairs(range(n), self.config.top)

    def chosen(self, asked: Sequence[tuple[Case, Shown]]) -> list[int | None]:
        """0 or 1; where the two orders disagree, 0: the one that stands first."""
        both = [turned for case, shown in asked for turned in ((case, shown), (case, shown[::-1]))]
        if self.config.method == "logprobs":
            read = iter(self.likelihoods(both))
            pairs = [(next(read), next(read)) for _ in asked]
            return [None if a is None or b is None else int(a[1] + b[0] > a[0] + b[1]) for a, b in pairs]
        told = iter(self.picks(both))
        votes = [(next(told), next(told)) for _ in asked]
        return [None if a is None or b is None else int((a, b) == (1, 0)) for a, b in votes]


class SetwiseJudge(_Choosing):
    """Asks which of some is best."""

    kind: ClassVar[str] = "setwise"
    config_type: ClassVar[type[PromptedConfig]] = SetwiseConfig

    config: SetwiseConfig

    @property
    def at_once(self) -> int:
        """Candidates in a prompt."""
        return self.config.width

    def sorter(self, n: int) -> Sorter[int]:
        """See `_Choosing.sorter`."""
        return heap_of_sets(range(n), self.config.width, self.config.top)

    def chosen(self, asked: Sequence[tuple[Case, Shown]]) -> list[int | None]:
        """The place of the best; the first one where the answer names none."""
        if self.config.method == "logprobs":
            return [None if found is None else by_score(found)[0] for found in self.likelihoods(asked)]
        return [None if place is None else max(place, 0) for place in self.picks(asked)]


def _able(lm: LanguageModel, method: Method) -> Any:
    """The model, if it can do that. Errors: `SpecError`."""
    if method == "choice" and not isinstance(behind(lm), Chooser):
        raise SpecError("reranker.method = 'choice' needs a server with typed decisions: set lm.kind = 'remote'")
    return lm
