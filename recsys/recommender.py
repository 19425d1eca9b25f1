"""The line itself: queries in, explained slates out. Batch, endpoint and evaluation all run this one class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import polars as pl

from recsys.candidates import counted_segments
from recsys.errors import SpecError
from recsys.profiles.edits import Edits, wishes
from recsys.profiles.reasons import Reasons
from recsys.profiles.source import EvidenceProfiles
from recsys.profiles.steer import Strength, extend, steer
from recsys.profiles.wishes import Wish, understand
from recsys.protocols import CandidateGenerator, Policy, ProfileSource, Reranker
from recsys.rerank.fallback import Identity
from recsys.rerank.heard import unread, wanted
from recsys.tables import Candidates, Catalog, Id, Profiles, Queries, Slates


def propose(generator: CandidateGenerator, queries: Queries, n: int, reach: int) -> Candidates:
    """`n` candidates of each query, and of those that ask in words `reach` times as many: what is wanted may stand far
    down in what the history makes likely."""
    asks = queries.frame["request"].str.strip_chars() != ""
    if reach == 1 or not asks.any():
        return generator.generate(queries, n)
    if asks.all():
        return generator.generate(queries, reach * n)
    parts = [
        generator.generate(Queries(queries.frame.filter(some)), size) for some, size in ((asks, reach * n), (~asks, n))
    ]
    return Candidates(pl.concat([part.frame for part in parts]))


def check_k(k: int, catalog: Catalog) -> None:
    """Raise `SpecError` where `k` is below 1 or larger than the catalog."""
    if not 1 <= k <= len(catalog):
        raise SpecError(f"k = {k} does not fit: the catalog holds {len(catalog)} items, k is from 1 to that")


@dataclass(frozen=True)
class Recommender:
    """Four fitted parts over one catalog. `depth` is how many candidates the generator proposes per query.

    edits    : what users changed in their profiles; the ranking keeps to it, after the reranker and whatever that is
    strength : how far
    """

    catalog: Catalog
    generator: CandidateGenerator
    profiles: ProfileSource
    reranker: Reranker
    policy: Policy
    reasons: Reasons
    depth: int = 100
    edits: Edits = field(default_factory=Edits.none)
    strength: Strength = field(default_factory=Strength)

    def recommend(self, queries: Queries, k: int) -> Slates:
        """The best `k` items of each query, each with its reason.

        Errors: `SpecError` when k is below 1 or larger than the catalog.
        """
        check_k(k, self.catalog)
        return self.present(queries, self.rerank(queries, self.propose(queries, k)), k)

    def propose(self, queries: Queries, k: int = 1) -> Candidates:
        """The candidates: at least `k` of each query; more for who asks in words, where the reranker reads on."""
        queries = self.heeded(queries)
        return propose(self.generator, queries, max(self.depth, k), getattr(self.reranker, "reach", 1))

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles | None = None) -> Candidates:
        """The same candidates in the reranker's order, profiles as of each query: `profiles` where they are at hand."""
        if isinstance(self.reranker, Identity):
            return candidates  # nobody reads the profiles, so none are made
        queries = self.heeded(queries)
        if profiles is None:
            profiles = self.profiles.as_of(queries)
        return self.reranker.rerank(queries, candidates, profiles, self.catalog)

    def heeded(self, queries: Queries) -> Queries:
        """The queries without their requests where the reranker reads none: what is not read changes nothing."""
        if unread(self.reranker) is None or not (queries.frame["request"] != "").any():
            return queries
        return Queries(queries.frame.with_columns(request=pl.lit("")))

    def present(self, queries: Queries, ranked: Candidates, k: int) -> Slates:
        """What the policy shows of a ranking, held to what users asked for, with reasons."""
        asked = self.wishes(queries)
        slates = self.policy.choose(self.steered(queries, ranked, k, asked), self.catalog, k)
        named = dict(wanted(self.reranker, queries))
        for query, some in asked.items():
            more = [wish.value for wish in some if wish.direction == "more"]
            named |= {query: [*named.get(query, ()), *more]} if more else {}
        return self.reasons.explain(queries, slates, self.catalog, named, self.segments)

    def wishes(self, queries: Queries) -> dict[Id, list[Wish]]:
        """By query_id, what the edits of its user ask for at its moment; queries without any wish are left out.

        Where the request of a query asks for the contrary, it wins: it is what the user wants now.
        """
        requests = dict(queries.frame.select("query_id", "request").iter_rows()) if len(self.edits) else {}
        found: dict[Id, list[Wish]] = {}
        for query, own in self.edits.as_of(queries).items():
            now = {wish.of: wish.direction for wish in understand(requests[query], self.reasons.listener)}
            asked = [w for w in wishes(own, self.reasons.listener) if now.get(w.of, w.direction) == w.direction]
            found |= {query: asked} if asked else {}
        return found

    def steered(self, queries: Queries, ranked: Candidates, k: int, asked: Mapping[Id, Sequence[Wish]]) -> Candidates:
        """The ranking as the wishes of its queries have it; without any, the ranking itself.

        For who wishes, many times the usual candidates are looked through: what was wished for may stand far down,
        and what is left of the first ones may not fill a slate.
        """
        if not asked:
            return ranked
        who = Queries(queries.frame.filter(pl.col("query_id").is_in(list(asked))))
        deeper = self.generator.generate(who, self.strength.reach * max(self.depth, k))
        return steer(extend(ranked, deeper), asked, self.reasons.known, self.strength)

    def with_edits(self, edits: Edits) -> "Recommender":
        """The same line beside other edits, of which its profiles tell, too."""
        profiles = self.profiles.with_edits(edits) if isinstance(self.profiles, EvidenceProfiles) else self.profiles
        return replace(self, edits=edits, profiles=profiles)

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """The segments whose own popularity is known; who is of another gets everybody's."""
        return counted_segments(self.generator)

    def candidates_only(self) -> "Recommender":
        """The same line without the reranker: cheaper, and what a failing LM falls back to."""
        return replace(self, reranker=Identity())
