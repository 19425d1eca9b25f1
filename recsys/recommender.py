"""The line itself: queries in, explained slates out. Batch, endpoint and evaluation all run this one class."""

from dataclasses import dataclass, replace
from functools import cached_property

from recsys.candidates import counted_segments
from recsys.errors import SpecError
from recsys.profiles.reasons import Reasons
from recsys.protocols import CandidateGenerator, Policy, ProfileSource, Reranker
from recsys.rerank.fallback import Identity
from recsys.rerank.heard import wanted
from recsys.tables import Candidates, Catalog, Profiles, Queries, Slates


def check_k(k: int, catalog: Catalog) -> None:
    """Raise `SpecError` where `k` is below 1 or larger than the catalog."""
    if not 1 <= k <= len(catalog):
        raise SpecError(f"k = {k} does not fit: the catalog holds {len(catalog)} items, k is from 1 to that")


@dataclass(frozen=True)
class Recommender:
    """Four fitted parts over one catalog. `depth` is how many candidates the generator proposes per query."""

    catalog: Catalog
    generator: CandidateGenerator
    profiles: ProfileSource
    reranker: Reranker
    policy: Policy
    reasons: Reasons
    depth: int = 100

    def recommend(self, queries: Queries, k: int) -> Slates:
        """The best `k` items of each query, each with its reason.

        Errors: `SpecError` when k is below 1 or larger than the catalog.
        """
        check_k(k, self.catalog)
        candidates = self.generator.generate(queries, max(self.depth, k))
        return self.present(queries, self.rerank(queries, candidates), k)

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles | None = None) -> Candidates:
        """The same candidates in the reranker's order, profiles as of each query: `profiles` where they are at hand."""
        if isinstance(self.reranker, Identity):
            return candidates  # nobody reads the profiles, so none are made
        if profiles is None:
            profiles = self.profiles.as_of(queries)
        return self.reranker.rerank(queries, candidates, profiles, self.catalog)

    def present(self, queries: Queries, ranked: Candidates, k: int) -> Slates:
        """What the policy shows of a ranking, with reasons."""
        slates = self.policy.choose(ranked, self.catalog, k)
        return self.reasons.explain(queries, slates, self.catalog, wanted(self.reranker, queries), self.segments)

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """The segments whose own popularity is known; who is of another gets everybody's."""
        return counted_segments(self.generator)

    def candidates_only(self) -> "Recommender":
        """The same line without the reranker: cheaper, and what a failing LM falls back to."""
        return replace(self, reranker=Identity())
