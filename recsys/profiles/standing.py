"""Texts that a language model wrote at an earlier fit, and that a new one need not have written again."""

import polars as pl

from recsys.errors import SpecError
from recsys.profiles.evidence import Evidence
from recsys.profiles.faithful import Checker
from recsys.profiles.source import EvidenceProfiles
from recsys.profiles.store import Store


def carried(before: EvidenceProfiles, now: EvidenceProfiles, users: pl.Series) -> Store:
    """Of each of `users` the youngest text of the earlier profiles, where those were made by the same recipe.

    users : who is in the log now: of who has left it, and of who was forgotten, nothing is carried on

    A text has to be true of what it was written of by today's catalog, wording and list of what is sensitive; whether
    that still holds of the user is for `EvidenceProfiles.as_of` to say (`ProfilesConfig.refresh`).
    """
    if _recipe(before) != _recipe(now):
        return Store.empty()
    here = pl.col("user_id").is_in(users.cast(pl.String).implode())
    frame = before.store.frame.filter(here).sort("user_id", "as_of", "evidence_hash")
    youngest = frame.unique("user_id", keep="last", maintain_order=True)
    try:
        checker = Checker.of(now.known, now.phrases, "")
    except SpecError:  # a language that is not read: "choose" is all that can have written, and it says what is true
        return Store(youngest)
    rows = youngest.select("text", "evidence").iter_rows()
    true = [not any(checker.read(text, Evidence.read(evidence)).faults) for text, evidence in rows]
    return Store(youngest.filter(pl.Series(true, dtype=pl.Boolean)))


def _recipe(profiles: EvidenceProfiles) -> tuple[object, str]:
    """What makes a text what it is, but for the log."""
    return profiles.config.model_copy(update={"lm_users": 0}), profiles.phrases.prompt_id
