"""From a request to a ranked answer: the schemas of the wire, and the place where a request meets the recommender."""

import logging
import threading
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from recsys.bundle import Bundle
from recsys.data.requests import MAX_REQUEST, clean_request
from recsys.errors import DataError, StorageError
from recsys.profiles.versions import ProfileStore
from recsys.recommender import check_k
from recsys.rerank.heard import Heard, heard, unread
from recsys.tables import Id

log = logging.getLogger(__name__)

MAX_HISTORY = 1000
"""Items that a request may bring; older ones matter little, and the limit bounds what one request can cost."""
MAX_ID = 1000
"""Characters of an id."""


def _id(value: Any) -> Id:
    """An id as JSON gives it: text, or a whole number that fits 64 bits; never a bool or a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("id_type", "must be text or a whole number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise PydanticCustomError("id_range", "does not fit 64 bits")
    if isinstance(value, str) and (len(value) > MAX_ID or not _is_unicode(value)):
        raise PydanticCustomError("id_text", "must be valid Unicode of at most 1000 characters")
    return value


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can carry and UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


WireId = Annotated[int | str, BeforeValidator(_id)]


class RankRequest(BaseModel):
    """Who asks: a user of the log by user_id, or anybody by a history of items, oldest first, never both. Without
    either it is a visitor without a past, of whom a segment or a request says something."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: WireId | None = Field(default=None, description="a user of the bundle's log")
    history: list[WireId] | None = Field(
        default=None,
        max_length=MAX_HISTORY,
        description="item ids, oldest first; [], or nothing beside segment or request, for a visitor without a past",
    )
    segment: WireId | None = Field(
        default=None,
        description="goes without user_id: the visitor's group (a country, an age band), as the log writes segments; "
        "an unknown one counts as none, and so does any where the bundle has no popularity by segment",
    )
    request: Annotated[str, Field(max_length=MAX_REQUEST), AfterValidator(clean_request)] | None = Field(
        default=None,
        description=f"what they want, in their own words, at most {MAX_REQUEST} characters; the answer says whether "
        "it was read. Control characters count as spaces, blanks alone as no request",
        examples=["something light, no horror"],
    )
    k: int = Field(
        default=10,
        ge=1,
        strict=True,
        description="how many items, at most the size of the catalog; if left out, all of a catalog smaller than 10",
    )

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if self.user_id is not None and self.history is not None:
            raise PydanticCustomError("one_of", "give one of 'user_id' and 'history', not both")
        if self.user_id is not None and self.segment is not None:
            raise PydanticCustomError(
                "segment_of_user", "'segment' goes without 'user_id': the log knows its users' own"
            )
        if self.user_id is None and self.history is None and self.segment is None and not self.request:
            raise PydanticCustomError(
                "nobody", "give 'user_id' or 'history'; for a visitor without a past 'segment' or 'request' will do"
            )
        return self


class RankedItem(BaseModel):
    """One row of a slate."""

    item_id: int | str
    title: str
    rank: int = Field(description="from 1")
    score: float = Field(description="of the stage named in served_by; comparable within one answer only")
    reason: str
    served_by: str = Field(description='whose order this is: "reranker" or "candidates"')


class Understood(BaseModel):
    """What a request was taken to mean; all empty where it names nothing that the catalog tells apart."""

    wants: list[str] = Field(description="values that items should have")
    refuses: list[str] = Field(description="values that they should not have")
    like: str | None = Field(description="the title of an item to be like")
    than: Literal["newer", "older"] | None = Field(description="how they should differ from it")
    first_year: int | None = Field(description="the first year that they may be of")
    last_year: int | None = Field(description="the last one")


class RequestRead(BaseModel):
    """What became of a request."""

    read: bool = Field(description="whether it had a part in the order of the items")
    why_not: str | None = Field(description="why it had none")
    understood: Understood | None = Field(description="null where it was not read, or the reranker cannot say")


class RankResponse(BaseModel):
    """A slate, best first; shorter than k where there is nothing else to say."""

    items: list[RankedItem]
    served_by: str = Field(description='"reranker" where it ordered any of the items, else "candidates"')
    request: RequestRead | None = Field(description="what became of the request in words; null where there was none")
    bundle: str = Field(description="which bundle answered: its name and the start of its hash")


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int] = Field(description='where: "body", then the field')
    msg: str
    type: str


class Problems(BaseModel):
    """Why there is no slate."""

    detail: list[Problem]


@dataclass(frozen=True)
class Ranker:
    """Answers requests from one bundle, one at a time.

    The lock is there because a model's caches and buffers are not promised to be safe between threads; on a CPU a
    second forward pass at the same time would gain nothing either.
    """

    bundle: Bundle
    titles: dict[Id, str]
    store: ProfileStore | None = None
    """Where what users changed in their profiles is looked up."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, bundle: Bundle, store: ProfileStore | None = None) -> Self:
        """Ready to answer: has answered once already, so that no user pays for the first use of the models; asked in
        words where these are read.

        Errors: whatever a request could meet, for instance `WeightsError` or `ModelError`.
        """
        titles = dict(bundle.catalog.frame.select("item_id", "title").iter_rows())
        ranker = cls(bundle, titles, store)
        if len(bundle.log):
            words = "anything" if unread(bundle.recommender.reranker) is None else None
            ranker.rank(RankRequest(user_id=bundle.log.frame["user_id"][0], request=words))
        return ranker

    def examples(self) -> list[dict[str, Any]]:
        """Bodies of requests that this bundle answers: for a user of its log where it has one, for a history, and in
        words."""
        items = self.bundle.catalog.frame["item_id"].head(3).to_list()
        by_user = [
            {"user_id": user, "k": min(10, len(self.titles))} for user in self.bundle.log.frame["user_id"].head(1)
        ]
        by_items = {"history": items, "k": min(5, len(self.titles))}
        return [*by_user, by_items, {**(by_user or [by_items])[0], "request": "something light, no horror"}]

    def rank(self, request: RankRequest) -> RankResponse:
        """The slate for one request.

        Errors: `SpecError` for a `k` above the size of the catalog, `UnknownUserError`, `UnknownItemError`.
        """
        catalog = self.bundle.catalog
        k = request.k if "k" in request.model_fields_set else min(request.k, len(catalog))
        check_k(k, catalog)
        words, recommender = request.request or "", self.bundle.recommender
        if request.user_id is not None:
            queries = self.bundle.queries([request.user_id], [words])
            recommender = self._heeding(request.user_id).recommender
        else:
            segment = None if request.segment is None else str(request.segment).strip()
            queries = self.bundle.adhoc(request.history or [], segment=segment, request=words)
        with self._lock:
            slates = recommender.recommend(queries, k)
            became = heard(recommender.reranker, words, slates) if words else None
        rows = slates.frame.sort("rank").select("item_id", "rank", "score", "reason", "served_by")
        items = [RankedItem(title=self.titles[row["item_id"]], **row) for row in rows.iter_rows(named=True)]
        return RankResponse(
            items=items,
            served_by="reranker" if any(item.served_by == "reranker" for item in items) else "candidates",
            request=None if became is None else _told(became),
            bundle=self.bundle.name,
        )

    def _heeding(self, user_id: Id) -> Bundle:
        """The bundle as the user's own changes have it; as it is where they cannot be read: an answer is due."""
        if self.store is None:
            return self.bundle
        try:
            return self.bundle.heeding(self.store, [user_id])
        except (StorageError, DataError) as error:
            log.warning("what users changed in their profiles is not heeded: %s", error)
            return self.bundle


def _told(became: Heard) -> RequestRead:
    meaning = None if became.meaning is None else Understood.model_validate(asdict(became.meaning))
    return RequestRead(read=became.unread is None, why_not=became.unread, understood=meaning)
