"""Do profiles stay fresh at the cost of the new events alone, and what does it cost not to write a text anew?

Sampled users' histories are told in steps to `profiles.fresh.Living`, once for each threshold of how far the evidence
may move before a text is written anew. At the end every text is asked what its user chose next (`usefulness`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from recsys.audit.usefulness import Cut, Retrieval
from recsys.metrics import Paired, paired
from recsys.profiles.evidence import Evidence
from recsys.profiles.fresh import Living
from recsys.profiles.source import EvidenceProfiles
from recsys.profiles.template import profile
from recsys.tables import InteractionLog

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.01)  # always, ..., never: evidence moves by 1 at most
STEPS = 6
SHARE = 0.8  # of each history is told; of that, the first half at once and the rest in steps


@dataclass(frozen=True)
class Kept:
    """What came of one threshold: the share of regenerations that were skipped, recall@100 at the end, and the same
    minus that of texts that are always written anew, paired by user."""

    threshold: float
    skipped: float
    recall: float
    change: Paired


@dataclass(frozen=True)
class Freshness:
    """kept   : by threshold, the lowest (always written anew) first
    equal    : share of the users whose evidence, updated step by step, is that of the whole history exactly
    speedup  : seconds to make everybody's profiles anew over seconds to update those of a tenth of the users, as on a
        day on which so many chose something
    """

    users: int
    steps: int
    kept: tuple[Kept, ...]
    equal: float
    speedup: float

    def at(self, threshold: float) -> Kept:
        """What came of the threshold nearest to one."""
        return min(self.kept, key=lambda kept: abs(kept.threshold - threshold))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [
            {"threshold": k.threshold, "skipped": k.skipped, "recall@100": k.recall, "change": k.change.row()}
            for k in self.kept
        ]
        return {
            "users": self.users,
            "steps": self.steps,
            "thresholds": rows,
            "equal_to_rebuild": self.equal,
            "rebuild_over_update_seconds": self.speedup,
        }


def freshness(
    cut: Cut,
    retrieval: Retrieval,
    profiles: EvidenceProfiles,
    *,
    seed: int,
    thresholds: Sequence[float] = THRESHOLDS,
    step: Callable[[], None] = lambda: None,
) -> Freshness:
    """Tell the histories of a cut (of `SHARE`) in steps. profiles : fitted without what the cut holds out.

    step : called after each threshold, for a progress bar
    """
    users = cut.queries.frame["user_id"]
    log = InteractionLog(cut.before.frame.filter(pl.col("user_id").is_in(users.implode())))
    parts = list(_in_steps(log, STEPS))
    known, bounds = profiles.known, profiles.bounds

    def write(evidence: Sequence[Evidence]) -> list[str]:
        return [profile(e, profiles.phrases)[0] for e in evidence]

    started = time.perf_counter()
    whole = Living.of(log, known, bounds, write)
    rebuild = time.perf_counter() - started
    found, base = [], None
    equal = 0.0
    for threshold in thresholds:
        living = Living.of(parts[0], known, bounds, write)
        due = written = 0
        for part in parts[1:]:
            living, refreshed = living.update(part, known, bounds, write, refresh=threshold)
            due, written = due + refreshed.users, written + refreshed.written
        texts = dict(zip(living.users, living.texts, strict=True))
        recall = retrieval.recall(retrieval.by_text([texts[user] for user in users]))
        recall = recall[recall == recall]  # of who chose something next that the catalog holds
        if base is None:
            base = recall
            now, then = (dict(zip(one.users, one.evidence, strict=True)) for one in (living, whole))
            equal = sum(now[user] == then[user] for user in users) / len(users)
        skipped = 1 - written / due if due else 0.0
        found.append(Kept(threshold, skipped, float(recall.mean()), paired(recall, base, seed=seed)))
        step()
    some = users.gather_every(10)
    day = InteractionLog(parts[-1].frame.filter(pl.col("user_id").is_in(some.implode())))
    living = Living.of(InteractionLog.of(pl.concat([part.frame for part in parts[:-1]])), known, bounds, write)
    started = time.perf_counter()
    living.update(day, known, bounds, write, refresh=0.0)
    update = time.perf_counter() - started
    return Freshness(len(users), STEPS, tuple(found), equal, rebuild / max(update, 1e-9))


def _in_steps(log: InteractionLog, steps: int) -> Iterator[InteractionLog]:
    """The first half of each history, then the rest in so many steps."""
    place, size = pl.int_range(pl.len()).over("user_id"), pl.len().over("user_id")
    first = (size / 2).ceil()
    late = 1 + ((place - first) * steps / (size - first).clip(1)).floor().clip(0, steps - 1)
    rows = log.frame.with_columns(step=pl.when(place < first).then(0).otherwise(late).cast(pl.Int64))
    for number in range(steps + 1):
        yield InteractionLog(rows.filter(pl.col("step") == number).drop("step"))
