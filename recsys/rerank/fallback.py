"""Rerankers for when there is nothing to rerank with: none wanted, or a language model that fails."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from recsys.data.files import atomic_folder
from recsys.errors import BundleError, ModelError
from recsys.protocols import Reranker
from recsys.rerank.features import QUIET_UP_TO, require_asked
from recsys.tables import Candidates, Catalog, Profiles, Queries

log = logging.getLogger(__name__)

BLOCK = 16  # at most QUIET_UP_TO, so that a primary that asks a language model shows no bar of its own
_FILE = "reranker.json"


class IdentityConfig(BaseModel):
    """No reranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_lm: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    kind: Literal["identity"] = "identity"

    def build(self) -> "Identity":
        """There is nothing to fit."""
        return Identity()


@dataclass(frozen=True)
class Identity:
    """The order of the candidates, as they come."""

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog) -> Candidates:
        """The candidates themselves."""
        return candidates

    def save(self, path: Path) -> None:
        """Write the folder. Errors: `StorageError`."""
        with atomic_folder(path) as folder:
            (folder / _FILE).write_text(json.dumps({"kind": "identity"}) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read the folder. Errors: `BundleError` where it holds something else."""
        try:
            kind = json.loads((path / _FILE).read_text("utf-8"))["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path / _FILE}: missing or not readable as a reranker") from error
        if kind != "identity":
            raise BundleError(f"{path / _FILE}: is a reranker of kind '{kind}', not 'identity'")
        return cls()


@dataclass(frozen=True)
class Fallback:
    """Another reranker; where its language model fails, the order of the candidates.

    A primary may say by `block` how many queries it is asked about at once: many where an opinion costs little and can
    be asked for anew, few where it is paid for. Of a block that fails, ever smaller parts are tried.

    give_up_after : failed queries in a row after which the rest of a call does not ask any more: a dead endpoint
        should cost a few timeouts, not one for each query
    """

    primary: Reranker
    give_up_after: int = 3

    @property
    def reach(self) -> int:
        """How many times the usual candidates the primary reads for who asks in words."""
        return int(getattr(self.primary, "reach", 1))

    def rerank(self, queries: Queries, candidates: Candidates, profiles: Profiles, catalog: Catalog) -> Candidates:
        """As the primary, some queries at a time; a query that it fails on keeps its candidates as they came, with
        their `served_by`. The log says how many did, and why.

        Errors: those of the primary except `ModelError`; `DataError` where a candidate's query is not asked.
        """
        require_asked(queries, candidates)
        reasons: list[str] = []  # of the failures in a row
        failed = 0

        def serve(part: Queries) -> pl.DataFrame:
            nonlocal failed
            own, texts = candidates, profiles
            if len(part) < len(queries):
                key = part.frame.select("query_id")
                own = Candidates(candidates.frame.join(key, on="query_id", how="semi", maintain_order="left"))
                texts = Profiles(profiles.frame.join(key, on="query_id", how="semi", maintain_order="left"))
            if len(reasons) < self.give_up_after:
                try:
                    answer = self.primary.rerank(part, own, texts, catalog).frame
                    reasons.clear()
                    return answer
                except ModelError as error:
                    if len(part) > 1:
                        return pl.concat([serve(some) for some in part.batches(-(-len(part) // BLOCK))])
                    reasons.append(str(error))
                    last.append(str(error))
            failed += len(part)
            return own.frame

        last: list[str] = []
        with tqdm(
            total=len(queries), desc="rerank", unit="user", leave=None, disable=len(queries) <= QUIET_UP_TO or None
        ) as bar:
            done = [candidates.frame.clear()]
            for block in queries.batches(getattr(self.primary, "block", BLOCK)):
                done.append(serve(block))
                bar.update(len(block))
        if failed:
            log.warning("%d of %d queries keep the candidates' order: %s", failed, len(queries), last[-1])
        return Candidates(pl.concat(done))

    def save(self, path: Path) -> None:
        """Write the primary: how to fall back is not part of what was fitted. Errors: `StorageError`."""
        self.primary.save(path)
