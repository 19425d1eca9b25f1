"""A language model puts the evidence into words; what it says is checked before it may stand in for the template.

Three ways. "choose": every sentence has several true phrasings, and the model takes the likeliest one after what has
been said so far (mean log-likelihood of a token); it cannot say anything untrue, so even a very small model serves.
"phrase": it says each of the template's sentences in other words, one at a time; one that does not say the same is
asked for again, and then gives way to the template's. "write": it gets all sentences as facts and writes freely, which
takes a billion parameters or more; what is untrue or left out is repaired sentence by sentence (`faithful`).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import polars as pl

from recsys.data.words import one_line
from recsys.profiles.asking import Asking
from recsys.profiles.claims import Reading
from recsys.profiles.evidence import ENOUGH, Evidence
from recsys.profiles.faithful import LONGEST, MAX_WORDS, Checker, Repaired, Retry, repair, rephrase
from recsys.profiles.phrases import Sentence, read_prompt
from recsys.profiles.source import EvidenceProfiles
from recsys.profiles.store import Store
from recsys.profiles.summary import SummaryReport
from recsys.profiles.template import sentences
from recsys.protocols import LanguageModel
from recsys.tables import Id, Queries

log = logging.getLogger(__name__)

Way = Literal["choose", "phrase", "write"]
Asked = tuple[Id | None, Evidence]
_OPENING = "Your taste, in a few sentences:"
_SENTENCE_TOKENS = 80  # of an answer that is one sentence


@dataclass(frozen=True)
class _Text:
    """What one evidence got. text: None where the model failed; fault: what was wrong with the model's own text."""

    evidence: Evidence
    text: str | None
    fault: str | None = None
    written: str = ""
    raw: Reading | None = None
    repaired: Repaired | None = None


def summarize(
    profiles: EvidenceProfiles,
    queries: Queries,
    lm: LanguageModel,
    limit: int,
    *,
    prompt: Way | None = None,
    batch: int = 16,
    tries: int = 2,
) -> tuple[EvidenceProfiles, SummaryReport]:
    """Let `lm` write for at most `limit` evidences that it has not written for; returns profiles with a fuller store.

    Histories of a few events are left to the template, which says how little is known. Where a stored text of the same
    prompt and model still stands, none is asked for, and a recording `lm` makes an interrupted run resumable. Where the
    model fails on some (an error, no text, nothing true), the template speaks for these, and they are counted.

    tries : how often one sentence is asked for in other words before the template's stands in ("phrase", "write")

    Errors: `ModelError` where the model answers nothing at all (for "choose" also an endpoint that gives no
    log-likelihoods); `SpecError` for "phrase" and "write" in a language that the checker does not read.
    """
    from tqdm import tqdm

    way: Way = prompt or profiles.config.prompt
    started = time.monotonic()
    prompt_id = profiles.phrases.prompt_id
    if way != "choose":
        prompt_id = f"{read_prompt(way)[0]}+{prompt_id}"
    todo, standing = _todo(profiles, queries, prompt_id, lm.model_id)
    asking = Asking(lm)
    checker = None if way == "choose" and profiles.phrases.words["reading"] == "none" else _checker(profiles)
    done: list[_Text] = []
    with tqdm(total=min(limit, len(todo)), desc="LM profiles", unit="user", disable=None) as bar:
        for few in _batches(todo[:limit], batch):
            if asking.gone:
                break
            some = [evidence for _, evidence in few]
            told = [sentences(e, profiles.phrases) for e in some]
            if way == "choose" or checker is None:
                done += _choose(asking, some, told)
            elif way == "phrase":
                done += _phrase(asking, some, told, checker, tries)
            else:
                done += _write(asking, some, told, checker, tries)
            bar.update(len(some))
    asking.raise_if_nothing_worked()
    shown = _read(profiles, done, checker)
    took, waiting = time.monotonic() - started, len(todo) - len(done)
    report = _report(prompt_id, done, shown, asking, standing=standing, waiting=waiting, seconds=took)
    good = [
        _entry(user, one.evidence, one.text, prompt_id, lm.model_id)
        for (user, _), one in zip(todo, done, strict=False)  # as far as the model got
        if one.text is not None
    ]
    log.info(
        "profiles by %s (%s): %d of %d accepted, %.0f%% left to the template %s; %d of before still stand",
        *(lm.model_id, prompt_id, report.accepted, report.asked, 100 * report.failed_share, dict(report.faults) or ""),
        report.standing,
    )
    if asking.gone:
        log.warning("%s stopped answering: %s; %d evidences wait", lm.model_id, asking.first_error, report.waiting)
    return profiles.with_store(profiles.store.add(pl.DataFrame(good, schema=profiles.store.SCHEMA))), report


def _checker(profiles: EvidenceProfiles) -> Checker:
    instructions = " ".join(read_prompt(name)[1] for name in ("write", "phrase"))
    return Checker.of(profiles.known, profiles.phrases, instructions)


def _todo(profiles: EvidenceProfiles, queries: Queries, prompt_id: str, model_id: str) -> tuple[list[Asked], int]:
    """The distinct evidences worth writing of, in order of queries, and for how many a text of this prompt and model
    still stands."""
    theirs = Store(profiles.store.frame.filter(prompt_id=prompt_id, model_id=model_id))
    found = profiles.evidence(queries)
    stands = profiles.with_store(theirs).stands(queries, found)
    seen: set[str] = set()
    todo, standing = [], 0
    for user, evidence, still in zip(queries.frame["user_id"], found, stands, strict=True):
        if evidence.events >= ENOUGH and evidence.hash not in seen:
            seen.add(evidence.hash)
            if still:
                standing += 1
            else:
                todo.append((user, evidence))
    return todo, standing


def _batches(todo: list[Asked], size: int) -> Iterator[list[Asked]]:
    for start in range(0, len(todo), size):
        yield todo[start : start + size]


def _choose(asking: Asking, some: list[Evidence], told: list[list[Sentence]]) -> list[_Text]:
    """Sentence by sentence, the likeliest phrasing after the chosen ones; ties go to the template's."""
    texts = [_OPENING] * len(told)
    lost: set[int] = set()
    for place in range(max(map(len, told), default=0)):
        open_ = [i for i, row in enumerate(told) if len(row) > place and i not in lost]
        choices = [told[i][place].phrasings for i in open_]
        scores = asking.score([texts[i] for i in open_], [[f" {p}" for p in row] for row in choices])
        for i, row, scored in zip(open_, choices, scores, strict=True):
            if scored is None:
                lost.add(i)
                continue
            best = max(range(len(row)), key=lambda j: (scored[j].mean, -j))
            texts[i] = f"{texts[i]} {row[best]}"
    return [
        _Text(e, None, "model") if i in lost else _Text(e, texts[i].removeprefix(_OPENING).strip())
        for i, e in enumerate(some)
    ]


def _phrase(
    asking: Asking, some: list[Evidence], told: list[list[Sentence]], checker: Checker, tries: int
) -> list[_Text]:
    """Each sentence in the model's words where these say the same."""

    def work(i: int, retry: Retry) -> Repaired:
        return rephrase(some[i], told[i], checker, retry, tries)

    found = _in_rounds(asking, len(some), work, tries)
    texts = []
    for e, facts, repaired in zip(some, told, found, strict=True):
        answers = [asking.answers.get(_again(fact, 0)) for fact in facts]
        if all(answer is None for answer in answers):
            texts.append(_Text(e, None, "model"))
            continue
        written = " ".join(one_line(answer or "", LONGEST) for answer in answers)
        fault = next((f for f in repaired.raw.faults if f), None) if written.strip() else "empty"
        texts.append(_of(e, fault, written, repaired))
    return texts


def _write(
    asking: Asking, some: list[Evidence], told: list[list[Sentence]], checker: Checker, tries: int
) -> list[_Text]:
    """Free text from the facts, repaired where it is not true."""
    wording = read_prompt("write")[1]
    prompts = [wording.replace("{facts}", "\n".join(f"- {s.text}" for s in row)).strip() for row in told]
    asking.generate(prompts, 2 * MAX_WORDS)
    answers = [asking.answers[prompt] for prompt in prompts]
    texts = [_unquoted(one_line(answer or "", LONGEST)) for answer in answers]

    def work(i: int, retry: Retry) -> Repaired:
        # a model that failed, or that spoke of nothing known, is not asked again
        hopeless = answers[i] is None or not checker.read(texts[i], some[i]).told
        return repair(texts[i], some[i], told[i], checker, None if hopeless else retry, tries)

    found = _in_rounds(asking, len(some), work, tries)
    return [
        _Text(e, None, "model") if answer is None else _of(e, checker.fault(text, e), text, repaired)
        for e, answer, text, repaired in zip(some, answers, texts, found, strict=True)
    ]


def _of(evidence: Evidence, fault: str | None, written: str, repaired: Repaired) -> _Text:
    text = None if repaired.by_template else repaired.text
    return _Text(evidence, text, fault, written, repaired.raw, repaired)


def _in_rounds(asking: Asking, n: int, work: Callable[[int, Retry], Repaired], tries: int) -> list[Repaired]:
    """`work` of each of n texts, whose questions are gathered and asked together, round after round."""
    wanted: list[str] = []

    def retry(fact: Sentence, attempt: int) -> str | None:
        prompt = _again(fact, attempt)
        if prompt not in asking.answers:
            wanted.append(prompt)
            return None
        answer = asking.answers[prompt]
        return None if answer is None else _unquoted(one_line(answer, LONGEST))

    # a sentence that is said anew may change which others are asked for: a few rounds more than tries
    found = [work(i, retry) for i in range(n)]
    for _ in range(2 * tries):
        if not wanted:
            break
        asking.generate(wanted, _SENTENCE_TOKENS)
        wanted.clear()
        found = [work(i, retry) for i in range(n)]
    return found


def _again(fact: Sentence, attempt: int) -> str:
    """Asks for a fact in other words; each try starts from another of its phrasings."""
    said = fact.phrasings[attempt % len(fact.phrasings)]
    return read_prompt("phrase")[1].replace("{fact}", said).strip()


def _unquoted(text: str) -> str:
    """The text without quotes around the whole."""
    return text[1:-1].strip() if text.count('"') == 2 and text[0] == text[-1] == '"' else text


def _read(profiles: EvidenceProfiles, done: list[_Text], checker: Checker | None) -> list[tuple[Reading, Evidence]]:
    """The claims of what is shown for each evidence: the model's text or the template's."""
    if checker is None:
        return []
    shown = []
    for one in done:
        text = one.text or " ".join(s.text for s in sentences(one.evidence, profiles.phrases))
        shown.append((checker.read(text, one.evidence), one.evidence))
    return shown


def _report(
    prompt_id: str,
    done: list[_Text],
    shown: list[tuple[Reading, Evidence]],
    asking: Asking,
    *,
    standing: int,
    waiting: int,
    seconds: float,
) -> SummaryReport:
    raw = [one.raw for one in done if one.raw is not None]
    wrong = [sum(not claim.supported for claim in reading.claims) for reading in raw]
    claims = sum(len(reading.claims) for reading, _ in shown)
    good = sum(claim.supported for reading, _ in shown for claim in reading.claims)
    repaired = [one.repaired for one in done if one.repaired is not None]
    sums = {name: sum(getattr(r, name) for r in repaired) for name in _COUNTED}
    prompt_tokens, completion_tokens = asking.tokens
    return SummaryReport(
        prompt_id,
        asking.lm.model_id,
        len(done),
        sum(one.text is not None for one in done),
        waiting,
        seconds,
        standing,
        dict(sorted(Counter(one.fault.split(":")[0] for one in done if one.fault).items())),
        tuple((one.fault or "nothing kept", one.written) for one in done if one.text is None),
        good / claims if claims else 1.0,
        sum(reading.coverage(e) for reading, e in shown) / len(shown) if shown else 1.0,
        sum(map(bool, wrong)) / len(raw) if raw else 0.0,
        sum(wrong) / max(sum(len(reading.claims) for reading in raw), 1),
        **sums,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


_COUNTED = ("kept", "regenerated", "replaced", "removed", "added")


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
