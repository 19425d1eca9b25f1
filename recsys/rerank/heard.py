"""What becomes of a request in words: whether the reranker reads it at all, and what it takes it to mean."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.data.words import quoted
from recsys.errors import ModelError
from recsys.protocols import Reranker
from recsys.rerank.fallback import Fallback, Identity
from recsys.rerank.fused import Fused
from recsys.rerank.prompted import Prompted
from recsys.rerank.years import Years
from recsys.tables import Id, Queries, Slates

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meaning:
    """What a request is taken to mean. wants, refuses: values by name; like: a title; than: "newer" or "older" than it;
    first_year, last_year: from when to when, both included, None where that is open. As text it is one line for people.
    """

    wants: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    like: str | None = None
    than: str | None = None
    first_year: int | None = None
    last_year: int | None = None

    def __str__(self) -> str:
        title = quoted(self.like) if self.like else ""
        parts = [
            f"wants {', '.join(self.wants)}" if self.wants else "",
            f"refuses {', '.join(self.refuses)}" if self.refuses else "",
            f"like {title}" if title else "",
            f"{self.than} than {title}" if title and self.than else "",
            str(Years(self.first_year, self.last_year)),
        ]
        nothing = "names nothing that this catalog tells apart; items whose text is like it, if any, come first"
        return "; ".join(part for part in parts if part) or nothing


@dataclass(frozen=True)
class Heard:
    """What became of a request.

    unread  : why nothing took it into account; None where it was read
    meaning : None where it was not read, or the reranker cannot say
    """

    unread: str | None = None
    meaning: Meaning | None = None


def unread(reranker: Reranker) -> str | None:
    """Why a request changes nothing with this reranker; None where it is read."""
    primary = _primary(reranker)
    if isinstance(primary, Identity):
        return "this bundle has no reranker, and nothing else reads requests"
    if not isinstance(primary, Fused):
        return None
    judge = primary.judge
    if isinstance(judge, Prompted) and "request" not in judge.config.conditions:
        return "its reranker was fitted without requests (reranker.conditions in the recipe)"
    if getattr(judge, "limits", None) is False:
        return (
            "its reranker learned no requests: reranker.written is 0, the catalog has no attributes to name, or too "
            "little was understood (the log of its fit says which)"
        )
    if not (primary.limits or primary.fusions.get("request", primary.fusions["plain"]).uses("lm")):
        return "the weights that were fitted make nothing of the opinion that reads requests"
    return None


def heard(reranker: Reranker, request: str, slates: Slates) -> Heard:
    """What became of a request that was answered by `slates`."""
    why = unread(reranker)
    if why is None and len(slates) and not (slates.frame["served_by"] == "reranker").any():
        why = "the reranker failed, and the candidates' order is shown"
    if why is not None:
        return Heard(why)
    found = meanings(reranker, [request])
    return Heard(meaning=found[0] if found else None)


def meanings(reranker: Reranker, requests: Sequence[str]) -> list[Meaning] | None:
    """What requests are taken to mean; None where the reranker cannot say, or its model fails."""
    primary = _primary(reranker)
    say = getattr(primary.judge, "understood", None) if isinstance(primary, Fused) else None
    if say is None:
        return None
    try:
        found = say(requests)
    except ModelError as error:
        log.warning("what requests were taken to mean cannot be said: %s", error)
        return None
    return [
        Meaning(
            tuple(one["wants"]),
            tuple(one["refuses"]),
            one["like"] or None,
            one["than"] or None,
            one["first_year"],
            one["last_year"],
        )
        for one in found
    ]


def wanted(reranker: Reranker, queries: Queries) -> Mapping[Id, Sequence[str]]:
    """The values, by name, that the request of a query wants; queries that want none are left out."""
    asking = queries.frame.select("query_id", "request").filter(queries.frame["request"].str.strip_chars() != "")
    found = meanings(reranker, asking["request"].to_list()) if len(asking) and unread(reranker) is None else None
    return {} if found is None else {q: m.wants for q, m in zip(asking["query_id"], found, strict=True) if m.wants}


def _primary(reranker: Reranker) -> Reranker:
    return reranker.primary if isinstance(reranker, Fallback) else reranker
