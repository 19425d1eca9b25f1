"""The four fitted parts and the language-model seam. A part that exists is fitted; it never asks "am I trained?"."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from recsys.tables import Candidates, Catalog, InteractionLog, Profiles, Queries, Slates

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """How likely an answer is after a prompt: summed natural-log probability of its tokens, and their number."""

    logprob: float
    tokens: int

    @property
    def mean(self) -> float:
        """Log probability per token; 0 for an empty answer."""
        return self.logprob / self.tokens if self.tokens else 0.0


@runtime_checkable
class LanguageModel(Protocol):
    """The one seam to every language model: local, remote, recorded or scripted.

    Errors: `ModelError` when the model fails or cannot do what is asked (an endpoint without log probabilities).
    """

    @property
    def model_id(self) -> str:
        """Names weights and version; part of every cache key."""
        ...

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        """Greedy continuation of each prompt (a user turn where the model is a chat model); same order, same length."""
        ...

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each prompt, the score of each of its answers, each judged alone after the prompt (raw text, no chat)."""
        ...


@runtime_checkable
class Chooser(Protocol):
    """What a language model may offer besides: typed decisions, answers held to one of some given texts."""

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> list[str]:
        """For each prompt (a user turn) the option that the model takes. Errors: as `LanguageModel`."""
        ...


@runtime_checkable
class Rater(Protocol):
    """What a server may offer besides: log probabilities of some words as what comes next, in one request."""

    def rate(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each prompt (raw text), the log probability of each option, a word of one token; unlikely ones may share
        a low one; NaN where nothing is known. Errors: as `LanguageModel`."""
        ...


@runtime_checkable
class RelevanceModel(Protocol):
    """What a server may offer besides: scores of documents for a query, by a model made for that."""

    def relevance(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each query, the score of each of its documents; higher is better. Errors: as `LanguageModel`."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Text to unit vectors."""

    @property
    def model_id(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """(len(texts), dim) float32, rows of unit length."""
        ...

    def states(self, texts: Sequence[str], max_tokens: int) -> tuple[Floats, Ints]:
        """What the encoder makes of each token in its place: (tokens, dim) float32, text after text, and (len(texts) +
        1,) where each text begins and ends. Texts lose what lies beyond `max_tokens`."""
        ...


class CandidateGenerator(Protocol):
    """Proposes items. Batch equals singles; the order of queries changes nothing."""

    def generate(self, queries: Queries, n: int) -> Candidates:
        """At most `n` items per query, best first; fewer where there is nothing else to say."""
        ...

    def save(self, path: Path) -> None:
        """Write into the new folder `path`, without pickle."""
        ...

    @classmethod
    def load(cls, path: Path) -> Self: ...


class GeneratorConfig(Protocol):
    """A frozen pydantic model with a `kind`; `fit` returns a fitted generator."""

    def fit(self, log: InteractionLog, catalog: Catalog, *, seed: int) -> CandidateGenerator: ...


class ProfileSource(Protocol):
    """Describes users as of a query's moment, from nothing younger than it."""

    def as_of(self, queries: Queries) -> Profiles:
        """One profile per query, in the order of the queries."""
        ...

    def save(self, path: Path) -> None: ...


class Reranker(Protocol):
    """Orders the same items anew: for each query the answer is a permutation of the candidates."""

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog) -> Candidates: ...

    def save(self, path: Path) -> None: ...


class Policy(Protocol):
    """Turns ranked candidates into what is shown."""

    def choose(self, ranked: Candidates, catalog: Catalog, k: int) -> Slates:
        """At most `k` items per query, with propensities; reasons are still empty."""
        ...
