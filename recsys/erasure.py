"""Forgetting users: what is theirs leaves the bundle, the profile store and the recorded LM answers.

What stays in a bundle until the next training, and holds no id: sums over many users (popularity, also by day;
transitions; steps often taken; shares of attributes; personas) and weights that were learned from all of them (item
factors, networks, adapters, the fusion). A user who alone met an item on a day can still be seen in a sum, so retrain;
`erased` keeps the forgotten out of it. Copies elsewhere (raw data, registered bundles, batch output, backups, a server
that has the old bundle in memory) are their keepers' to remove.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import polars as pl

from recsys.bundle import read_manifest, rewriting, settle
from recsys.data.counted import counted
from recsys.data.ingest import Dataset
from recsys.lm.replay import ReplayLM
from recsys.lm.replay import forget as forget_answers
from recsys.profiles.edits import Edits
from recsys.profiles.evidence import Evidence
from recsys.profiles.source import EvidenceProfiles
from recsys.profiles.store import Store
from recsys.profiles.template import Phrases, sentences
from recsys.profiles.versions import ProfileStore
from recsys.rerank.prompt import SEPARATOR, TITLE_CHARS, plain
from recsys.rerank.soft import SoftTokens
from recsys.tables import Catalog, Id, InteractionLog, Queries, query_histories

_LOG, _TEXTS, _ADAPTER = "log.parquet", "profiles/texts.parquet", "reranker/judge/adapter"
_EDITS = 100  # of a user who made more, what the profile was after each of the last ones
_PREFIXES = 500  # of a longer history, the last ones are written of as they stood at each event
_TELLING = 40  # characters from which on a sentence of a text is one person's rather than anybody's
_CUT = 60  # characters of a text that a prompt holds at least, however it was cut
_WORDS = 4  # characters from which on words of a user's own are sought: "no" is in every prompt
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_NOT_THEIRS = ("events|", "persona|", "everybody|")  # claims that say nothing of what somebody likes
_TITLES = ("anchor|", "latest|")


@dataclass(frozen=True)
class Erased:
    """How much was removed: events and LM texts of the bundle, rows (versions and edits) of the store, LM answers."""

    events: int = 0
    texts: int = 0
    rows: int = 0
    answers: int = 0


def forget(
    user_ids: Sequence[Id],
    *,
    bundle: Path | None = None,
    store: ProfileStore | None = None,
    replay: Path | ReplayLM | None = None,
    at: int | None = None,
) -> Erased:
    """Remove users from whichever of the three is given; unknown ids are none of theirs, and no error.

    user_ids : of the bundle's kind, or its text ("17" for 17)
    bundle   : events, and texts that an LM wrote of their evidence; the bundle is replaced as a whole, and has another
        hash. One writer at a time
    store    : versions and edits; it keeps that they were erased (see `erased`), `at` (Unix seconds, by default now)
    replay   : recorded answers whose prompt or answer holds a text of theirs, a sentence of their profile (also as it
        was after each of their edits), words of their own, or two titles in the order of their history. Others who are
        told the same sentence lose that answer, too, and it is asked for again. Which those are is read from the bundle
        and the store, so give them together

    Interrupted, it has removed some of it and broken nothing; run again, it removes the rest.

    Errors: `BundleError`, `StorageError`; nothing was removed where the bundle is not sound.
    """
    users = list(dict.fromkeys(user_ids))
    found = None
    if bundle is not None:
        settle(bundle)
        read_manifest(bundle)
        found = _InBundle.of(bundle, users)
        users = list(dict.fromkeys([*users, *found.log["user_id"].unique().to_list()]))
    # The order matters: the words that answers are found by stand in what is removed after them.
    answers = 0
    if replay is not None:
        words = set() if found is None else found.words()
        if store is not None:
            words |= set(_stored_words(store, users, found.wordings if found else (Phrases.read(),)))
        if store is not None and found is not None:
            words |= set(found.as_edited(store))
        folder = replay.folder if isinstance(replay, ReplayLM) else replay
        answers = forget_answers(folder, sorted(words))
    if bundle is not None and found is not None and (found.log.height or found.rows.height):
        _rewrite(bundle, found)
    rows = 0
    if store is not None and users:
        store.bury(users, int(time.time()) if at is None else at)
        rows = store.forget(users)
    return Erased(found.log.height if found else 0, found.rows.height if found else 0, rows, answers)


def erased(log: InteractionLog, store: ProfileStore) -> InteractionLog:
    """The log without the users whose erasure the store has recorded: for every import and every training."""
    users = log.frame.select(pl.col("user_id").unique())
    gone = users.filter(store.buried(users["user_id"]))
    return log.with_frame(log.frame.join(gone, on="user_id", how="anti", maintain_order="left"))


def without_erased(dataset: Dataset, store: ProfileStore) -> Dataset:
    """The dataset without them; the log says how many there were."""
    kept = erased(dataset.log, store)
    if len(kept) == len(dataset.log):
        return dataset
    gone = dataset.log.frame["user_id"].n_unique() - kept.frame["user_id"].n_unique()
    logging.getLogger(__name__).warning("%s left out: their erasure is recorded (recsys forget)", counted(gone, "user"))
    return replace(dataset, log=kept)


@dataclass(frozen=True)
class _InBundle:
    """What a bundle has of some users: log (their events), rows (of the store of texts), and who else is in there."""

    path: Path
    log: pl.DataFrame
    rows: pl.DataFrame

    @classmethod
    def of(cls, path: Path, users: Sequence[Id]) -> "_InBundle":
        names = pl.Series([str(user) for user in users], dtype=pl.String)
        theirs = pl.col("user_id").cast(pl.String).is_in(names.implode())
        log = pl.read_parquet(path / _LOG).filter(theirs)
        rows = Store.load(path / _TEXTS).frame
        known = rows.filter(theirs)
        unnamed = rows.filter(pl.col("user_id").is_null())
        if len(unnamed) and len(log):
            hashes = [evidence.hash for evidence in cls(path, log, known).histories()[1]]
            known = pl.concat([known, unnamed.filter(pl.col("evidence_hash").is_in(hashes))])
        return cls(path, log, known)

    @cached_property
    def profiles(self) -> EvidenceProfiles:
        return EvidenceProfiles.load(self.path / "profiles", Catalog(pl.read_parquet(self.path / "catalog.parquet")))

    @property
    def wordings(self) -> tuple[Phrases, ...]:
        """The bundle's own wording, and the packaged one."""
        return (self.profiles.phrases, Phrases.read())

    def words(self) -> set[str]:
        """What prompts and answers may hold of them."""
        told = {needle for text in self.rows["text"] for needle in _of_text(text)}
        told.update(_facts((_evidence(text) for text in self.rows["evidence"]), self.wordings))
        if not len(self.log):
            return told
        now, earlier = self.histories()
        soft = SoftTokens.load(self.path / _ADAPTER)
        titles = dict(self.profiles.known.catalog.frame.select("item_id", "title").iter_rows())
        for items in self.log.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]:
            named = [f'"{plain(titles[item], TITLE_CHARS)}"' for item in items if item in titles]
            told.update(SEPARATOR.join(pair) for pair in pairwise(named))
            if soft is not None:
                told.update(map("".join, pairwise(soft.said(items))))  # as prompts have them
        return told.union(_facts(now, self.wordings), _facts(earlier, self.wordings, _TITLES))

    def as_edited(self, store: ProfileStore) -> Iterator[str]:
        """The same of their profiles after each of their edits, whether or not these versions were kept."""
        edits = store.edits(self.log["user_id"].unique())
        most = max(edits.group_by("user_id").len()["len"], default=0)
        for n in range(max(1, most - _EDITS), most + 1):
            queries, _ = self._queries(latest=2)
            first = (
                edits.group_by("user_id", maintain_order=True)
                .head(n)
                .with_columns(at=pl.lit(queries.frame["at"].min(), pl.Int64))
            )
            edited = self.profiles.with_edits(Edits(first))
            yield from (part for text in edited.as_of(queries).frame["text"] for part in (text, text[:_CUT]))
            yield from _facts(edited.evidence(queries), self.wordings)

    def histories(self) -> tuple[list[Evidence], list[Evidence]]:
        """The evidence of each user now and before the last event, which is what was held out; and at each event."""
        queries, late = self._queries(latest=_PREFIXES)
        found = self.profiles.evidence(queries)
        return [e for e, now in zip(found, late, strict=True) if now], found

    def _queries(self, latest: int) -> tuple[Queries, pl.Series]:
        """Each user after each of the latest events; and for which of them this is now, or before the last event."""
        whole = query_histories(InteractionLog(self.log)).frame.with_columns(n=pl.col("history").list.len())
        ends = whole.select("user_id", end=pl.int_ranges(1, pl.col("n") + 1).list.tail(latest)).explode("end")
        cut = whole.join(ends, on="user_id").with_columns(
            *(pl.col(name).list.head(pl.col("end")) for name in ("history", "weights", "times")),
            query_id=pl.int_range(pl.len(), dtype=pl.Int64),
        )
        return Queries(cut.select(Queries.held(cut))), cut["n"] - cut["end"] < 2


def _evidence(text: str) -> Evidence | None:
    """Evidence that was kept as JSON; None for that of another version, of which only the text speaks."""
    try:
        return Evidence.read(text)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _facts(
    evidence: Iterable[Evidence | None], wordings: Sequence[Phrases], kinds: tuple[str, ...] = ()
) -> Iterator[str]:
    """The sentences that evidence gives rise to, in every phrasing; only those with a claim of the given kinds.

    What says how much or how little somebody chose, or what others like, is no fact about them alone.
    """
    for one in dict.fromkeys(e for e in evidence if e is not None):
        for sentence in (said for phrases in wordings for said in sentences(one, phrases)):
            own = [claim for claim in sentence.claims if not claim.startswith(_NOT_THEIRS)]
            if any(claim.startswith(kinds or "") for claim in own):
                cut = len(sentence.text) if kinds else _CUT  # a prompt may have cut the profile within a sentence
                yield from (part for phrasing in sentence.phrasings for part in (phrasing, phrasing[:cut].rstrip(".")))


def _of_text(text: str) -> Iterator[str]:
    """A text, how it begins (prompts cut it), and those of its sentences that are not short."""
    yield text
    yield text[:_CUT]
    yield from (sentence for sentence in _SENTENCE.split(text) if len(sentence) >= _TELLING)


def _stored_words(store: ProfileStore, users: Sequence[Id], wordings: Sequence[Phrases]) -> Iterator[str]:
    """What prompts and answers may hold of what the store has of some users: texts, facts, and words of their own."""
    for user in users:
        for version in store.versions(user):
            yield from _of_text(version.text)
            yield from _facts([_evidence(version.evidence)], wordings)
        edits = store.edits([user])
        for said in edits.filter(pl.col("action") != "forget")["text"]:  # whose text is a mark and nobody's words
            if len(said.strip()) >= _WORDS:
                yield from (said, said[:_CUT])


def _rewrite(path: Path, found: _InBundle) -> None:
    with rewriting(path) as folder:
        log = pl.read_parquet(folder / _LOG)
        log.join(found.log.select("user_id").unique(), on="user_id", how="anti", maintain_order="left").write_parquet(
            folder / _LOG
        )
        texts = Store.load(folder / _TEXTS)
        key = ["evidence_hash", "user_id"]
        kept = texts.frame.join(found.rows.select(key), on=key, how="anti", nulls_equal=True, maintain_order="left")
        Store(kept).save(folder / _TEXTS)
