"""A language model puts the evidence into words; what it writes is checked before it may stand in for the template.

Two ways. "choose": every sentence has several true phrasings, and the model takes the likeliest one after what has
been said so far (mean log-likelihood of a token); it cannot say anything untrue, so even a very small model serves.
"write": the model gets the template's sentences as facts and writes freely, which takes a billion parameters or more.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from recsys.data.words import one_line
from recsys.profiles.evidence import ENOUGH, Evidence
from recsys.profiles.faithful import MAX_WORDS, Checker
from recsys.profiles.source import EvidenceProfiles
from recsys.profiles.template import Sentence, read_prompt, sentences
from recsys.protocols import LanguageModel
from recsys.tables import Id, Queries

log = logging.getLogger(__name__)

Asked = tuple[Id | None, Evidence]
_LONGEST = 5000  # characters of a text that are looked at
_OPENING = "Your taste, in a few sentences:"


@dataclass(frozen=True)
class SummaryReport:
    """What became of one run: texts asked for, accepted, and rejected by kind of fault; how long it took.

    waiting : evidences that were left for a later run because of the limit
    rejected : the texts that failed, with what was wrong
    """

    prompt_id: str
    model_id: str
    asked: int
    accepted: int
    waiting: int
    seconds: float
    faults: Mapping[str, int] = field(default_factory=dict)
    rejected: Sequence[tuple[str, str]] = ()

    @property
    def failed_share(self) -> float:
        """Share of the asked texts that the template replaces; 0 where nothing was asked."""
        return 1 - self.accepted / self.asked if self.asked else 0.0


def summarize(
    profiles: EvidenceProfiles,
    queries: Queries,
    lm: LanguageModel,
    limit: int,
    *,
    prompt: Literal["choose", "write"] | None = None,
    batch: int = 16,
) -> tuple[EvidenceProfiles, SummaryReport]:
    """Let `lm` write for at most `limit` evidences that it has not written for; returns profiles with a fuller store.

    Histories of a few events are left to the template, which says how little is known. Stored texts of the same
    prompt and model are not asked for again, and a recording `lm` makes an interrupted run resumable.

    Errors: `ModelError` from the model (for "choose" also where an endpoint gives no log-likelihoods).
    """
    from tqdm import tqdm

    way = prompt or profiles.config.prompt
    prompt_id, wording = read_prompt("write") if way == "write" else (profiles.phrases.prompt_id, "")
    started = time.monotonic()
    todo = _todo(profiles, queries, prompt_id, lm.model_id)
    checker = Checker.of(profiles.known, profiles.phrases, wording)
    good: list[dict[str, object]] = []
    bad: list[tuple[str, str]] = []
    with tqdm(total=min(limit, len(todo)), desc="LM profiles", unit="user", disable=None) as bar:
        for some in _batches(todo[:limit], batch):
            told = [sentences(e, profiles.phrases) for _, e in some]
            texts = _write(lm, told, wording) if way == "write" else _choose(lm, told)
            for (user, evidence), text in zip(some, texts, strict=True):
                fault = checker.fault(text, evidence) if way == "write" else None
                if fault is None:
                    good.append(_entry(user, evidence, text, prompt_id, lm.model_id))
                else:
                    bad.append((fault, text))
            bar.update(len(some))
    report = SummaryReport(
        prompt_id,
        lm.model_id,
        len(good) + len(bad),
        len(good),
        max(len(todo) - limit, 0),
        time.monotonic() - started,
        dict(sorted(Counter(fault.split(":")[0] for fault, _ in bad).items())),
        tuple(bad),
    )
    log.info(
        "profiles by %s (%s): %d of %d accepted, %.0f%% left to the template %s",
        *(lm.model_id, prompt_id, report.accepted, report.asked, 100 * report.failed_share, dict(report.faults) or ""),
    )
    return profiles.with_store(profiles.store.add(pl.DataFrame(good, schema=profiles.store.SCHEMA))), report


def _todo(profiles: EvidenceProfiles, queries: Queries, prompt_id: str, model_id: str) -> list[Asked]:
    """The distinct evidences worth writing of that this prompt and model have not written of, in order of queries."""
    frame = profiles.store.frame.filter(prompt_id=prompt_id, model_id=model_id)
    seen = set(frame["evidence_hash"])
    todo = []
    for user, evidence in zip(queries.frame["user_id"], profiles.evidence(queries), strict=True):
        if evidence.events >= ENOUGH and evidence.hash not in seen:
            seen.add(evidence.hash)
            todo.append((user, evidence))
    return todo


def _batches(todo: list[Asked], size: int) -> Iterator[list[Asked]]:
    for start in range(0, len(todo), size):
        yield todo[start : start + size]


def _choose(lm: LanguageModel, told: list[list[Sentence]]) -> list[str]:
    """Sentence by sentence, the likeliest phrasing after the chosen ones; ties go to the template's."""
    texts = [_OPENING] * len(told)
    for place in range(max(map(len, told), default=0)):
        open_ = [i for i, row in enumerate(told) if len(row) > place]
        choices = [told[i][place].phrasings for i in open_]
        scores = lm.score([texts[i] for i in open_], [[f" {p}" for p in row] for row in choices])
        for i, row, scored in zip(open_, choices, scores, strict=True):
            best = max(range(len(row)), key=lambda j: (scored[j].mean, -j))
            texts[i] = f"{texts[i]} {row[best]}"
    return [text.removeprefix(_OPENING).strip() for text in texts]


def _write(lm: LanguageModel, told: list[list[Sentence]], wording: str) -> list[str]:
    """Free text from the facts, on one line, without quotes around the whole."""
    prompts = [wording.replace("{facts}", "\n".join(f"- {s.text}" for s in row)).strip() for row in told]
    written = [one_line(text, _LONGEST) for text in lm.generate(prompts, max_tokens=2 * MAX_WORDS)]
    return [t[1:-1].strip() if t.count('"') == 2 and t[0] == t[-1] == '"' else t for t in written]


def _entry(user: Id | None, evidence: Evidence, text: str, prompt_id: str, model_id: str) -> dict[str, object]:
    return {
        "evidence_hash": evidence.hash,
        "user_id": None if user is None else str(user),
        "evidence": evidence.json,
        "text": text,
        "prompt_id": prompt_id,
        "model_id": model_id,
        "as_of": evidence.last,
    }
