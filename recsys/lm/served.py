"""What some servers offer besides text and likelihoods: typed decisions, the likeliest next tokens, and scores of
documents for a query by a model made for that."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from recsys.errors import ModelError, NotOfferedError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Q = TypeVar("_Q")
_LIKELIEST = 20  # next tokens that servers tell at most
_SPACES = str.maketrans("▁Ġ", "  ")  # how tokenizers write a space


class Served:
    """A part of `RemoteLM`. Implements `protocols.Chooser`, `Rater` and `RelevanceModel`."""

    client: Any
    model: str

    @property
    def model_id(self) -> str:
        raise NotImplementedError

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> list[str]:
        """One of the options as the answer to each prompt, by vLLM's structured outputs (`choice`). Other servers may
        refuse that, or ignore it and answer anything.

        Errors: as `RemoteLM.generate`.
        """
        given = {"extra_body": {"structured_outputs": {"choice": list(options)}}}
        return self._all(lambda prompt: self._chat(prompt, given).strip(), prompts)

    def rate(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt, the log probability of each option, a word of one token, as what comes next, in one request:
        after the prompt as raw text, or, where the server has only chats, as the answer to it.

        A server tells its 20 likeliest tokens; an option beyond them gets the least of these less 1. Where no option is
        among them, all are NaN.

        Errors: as `RemoteLM.generate`, and where the server gives no log probabilities of what it writes.
        """
        asked = list(zip(prompts, options, strict=True))
        seen = self._by_first_way(
            (self._next_in_text, self._next_in_chat),
            list(prompts),
            "gives no log probabilities of what it writes: use method = 'generate'",
        )
        return [_rated(tokens, row) for tokens, (_, row) in zip(seen, asked, strict=True)]

    def relevance(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """Each document's relevance to its query, by the server's endpoint `rerank` (vLLM, Jina, Cohere and others), or
        else `score` (vLLM), one request per query; the server's model must be one for that.

        Errors: as `RemoteLM.generate`, and where the server has neither endpoint.
        """
        pairs = [(query, list(row)) for query, row in zip(queries, documents, strict=True)]
        found = iter(
            self._by_first_way(
                (self._by_rerank, self._by_score),
                [pair for pair in pairs if pair[1]],
                "has neither the endpoint rerank nor score, or its model is not made for them: serve a reranker (with "
                "vLLM, say), or choose another reranker.kind",
            )
        )
        return [next(found) if row else [] for _, row in pairs]

    def _by_first_way(self, ways: Sequence[Callable[[_Q], _T]], asked: Sequence[_Q], otherwise: str) -> list[_T]:
        """All answers in the first of some ways that the server offers; the first question finds that out."""
        if not asked:
            return []
        for way in ways:
            try:
                first = way(asked[0])
            except NotOfferedError as reason:
                log.info("%s", reason)
                continue
            return [first, *self._all(way, asked[1:])]
        raise ModelError(f"{self.model_id}: {otherwise}")

    def _next_in_text(self, prompt: str) -> dict[str, float]:
        with self._errors():
            answer = self.client.completions.create(
                model=self.model, prompt=prompt, max_tokens=1, temperature=0, logprobs=_LIKELIEST
            )
            self._count(answer.usage, prompt, "!")
            told = answer.choices[0].logprobs
            if not told or not told.top_logprobs:
                raise NotOfferedError(f"{self.model_id}: gives no log probabilities of a completion")
            return {str(token): float(value) for token, value in told.top_logprobs[0].items()}

    def _next_in_chat(self, prompt: str) -> dict[str, float]:
        with self._errors():
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=_LIKELIEST,
            )
            self._count(answer.usage, prompt, "!")
            told = answer.choices[0].logprobs
            if not told or not told.content:
                raise NotOfferedError(f"{self.model_id}: gives no log probabilities in a chat")
            return {str(row.token): float(row.logprob) for row in told.content[0].top_logprobs}

    def _by_rerank(self, pair: tuple[str, list[str]]) -> list[float]:
        query, documents = pair
        return self._relevance("/rerank", {"query": query, "documents": documents}, pair)

    def _by_score(self, pair: tuple[str, list[str]]) -> list[float]:
        query, documents = pair
        return self._relevance("/score", {"text_1": query, "text_2": documents}, pair)

    def _relevance(self, path: str, body: dict[str, Any], pair: tuple[str, list[str]]) -> list[float]:
        """Rows of {index, relevance_score | score}, in any order, in `results`, in `data`, or bare."""
        with self._errors():
            answer: Any = self.client.post(path, cast_to=object, body={"model": self.model, **body})
            rows = answer if isinstance(answer, list) else answer.get("results", answer.get("data"))
            found = {int(row["index"]): float(row.get("relevance_score", row.get("score"))) for row in rows}
            if sorted(found) != list(range(len(pair[1]))):
                raise ValueError(f"{path[1:]} scores {len(found)} of {len(pair[1])} documents")
            used = answer.get("usage") if isinstance(answer, dict) else None
            self._count(used, pair[0] * len(pair[1]) + "".join(pair[1]), "")
            return [found[place] for place in range(len(found))]

    def _chat(self, prompt: str, given: dict[str, Any]) -> str:
        raise NotImplementedError

    def _all(self, ask: Callable[[_Q], _T], questions: Sequence[_Q]) -> list[_T]:
        raise NotImplementedError

    def _count(self, used: Any, sent: str, received: str) -> None:
        raise NotImplementedError

    def _errors(self) -> AbstractContextManager[None]:
        raise NotImplementedError


def _rated(tokens: dict[str, float], options: Sequence[str]) -> list[float]:
    """The options' log probabilities among the likeliest tokens, however these write spaces."""
    words: dict[str, float] = {}
    for token, value in tokens.items():
        word = token.translate(_SPACES).strip()
        words[word] = max(value, words.get(word, -math.inf))
    if not set(options) & words.keys():
        return [math.nan] * len(options)
    least = min(words.values()) - 1
    return [words.get(option, least) for option in options]
