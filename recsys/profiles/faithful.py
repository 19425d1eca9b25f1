"""Is a text that a model wrote about a user true to the evidence, and what can be made of one that is not wholly?

`Checker.fault` judges a whole text: every claim supported (`claims`), every sentence naming something of the evidence
(what names nothing cannot be checked), spoken to "you", of a sensible length, repeating neither itself nor its
instructions. `repair` goes sentence by sentence: what is true is kept, what is not is asked for again or replaced by
the template's sentence of the same fact, and what the text leaves out of the strongest evidence is added, so that
every claim of what is shown is supported.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from recsys.data.words import one_line
from recsys.errors import SpecError
from recsys.profiles.claims import Reader, Reading
from recsys.profiles.evidence import Evidence
from recsys.profiles.lexicon import Lexicon
from recsys.profiles.names import Names
from recsys.profiles.phrases import Phrases, Sentence
from recsys.profiles.population import Known
from recsys.profiles.privacy import Sensitive
from recsys.profiles.support import Facts, Told

MIN_WORDS, MAX_WORDS = 12, 120
LONGEST = 5000  # characters of a text that are looked at
_ECHO = 7  # consecutive words that make an echo of the instructions, or a repetition
_ENOUGH = 3  # things of the evidence that a text must name (all of them where there are fewer)
_TOKEN = re.compile(r"[^\W_]+(?:['’.\-&][^\W_]+)*")
_ENDED = re.compile(r"[.!?…][\"”')\]]*$")

Retry = Callable[[Sentence, int], str | None]
"""Says a fact of the template in other words, at the n-th try; None where there is no answer to be had."""


@dataclass(frozen=True)
class Checker:
    """reader : finds and checks claims; echoes : runs of `_ECHO` words of the instructions; sensitive : what is said of
    nobody, be it true."""

    reader: Reader
    echoes: frozenset[tuple[str, ...]]
    sensitive: Sensitive

    @classmethod
    def of(cls, known: Known, phrases: Phrases, instructions: str) -> "Checker":
        """Learn the catalog's names, and the wording that a model was given.

        Errors: `SpecError` for a wording in a language that the checker has no words of.
        """
        language = phrases.words["reading"]
        if language == "none":
            raise SpecError(
                f"{phrases.prompt_id}: [words] reading = none: a model's own text cannot be checked in this language; "
                "let it choose among the wording's phrasings (prompt = 'choose')"
            )
        lexicon = Lexicon.read(language)
        reader = Reader(Names.of(known, phrases, lexicon), lexicon, phrases.fixed)
        return cls(reader, frozenset(_runs(instructions)), known.sensitive)

    def read(self, text: str, evidence: Evidence) -> Reading:
        """The text's claims, checked."""
        return self.reader.read(one_line(text, LONGEST), evidence)

    def fault(self, text: str, evidence: Evidence) -> str | None:
        """Why the text may not be shown, in a word or two and the name at fault; None where nothing is wrong."""
        words = text.split()
        if not words:
            return "empty"
        if not MIN_WORDS <= len(words) <= MAX_WORDS:
            return "length"
        reading = self.read(text, evidence)
        bare = [self._bare(sentence, evidence) for sentence in reading.sentences]
        runs = _runs(" ".join(bare))
        if len(set(runs)) < len(runs) or not self.echoes.isdisjoint(runs):
            return "echo"
        if not self._speaks_to_you(text):
            return "person"
        if (word := self.sensitive.fault(text)) is not None:
            return f"sensitive: {word}"
        for fault in reading.faults:
            if fault is not None:
                return fault
        e = evidence
        there = {(t.attribute, t.value) for t in (*e.tastes, *e.eras, *e.common, *e.recent, *e.dislikes)}
        items = {i.item_id for i in (*e.anchors, *e.latest)}
        return None if len(reading.told) >= min(_ENOUGH, len(there) + len(items)) else "too little named"

    def sentence_fault(self, sentence: str, fault: str | None, before: str, evidence: Evidence) -> str | None:
        """Why a sentence, whose claims have that fault, may not follow the text `before`."""
        if fault is not None:
            return fault
        if (word := self.sensitive.fault(sentence)) is not None:
            return f"sensitive: {word}"
        if not _ENDED.search(sentence):
            return "unfinished"
        runs, earlier = _runs(self._bare(sentence, evidence)), _runs(self._bare(before, evidence))
        repeated = len(set(runs)) < len(runs) or not set(earlier).isdisjoint(runs) or sentence in before
        return "echo" if repeated or not self.echoes.isdisjoint(runs) else None

    def rephrases(self, text: str, fact: Sentence, evidence: Evidence) -> bool:
        """Whether the text is one true sentence that tells neither more nor less than the template's."""
        reading = self.read(text, evidence)
        if len(reading.sentences) != len(self.read(fact.text, evidence).sentences):
            return False
        faults = [
            self.sentence_fault(s, f, "", evidence) for s, f in zip(reading.sentences, reading.faults, strict=True)
        ]
        return not any(faults) and reading.told == self.read(fact.text, evidence).told

    def fits(self, text: str, evidence: Evidence) -> bool:
        """Whether a repaired text may be shown."""
        reading = self.read(text, evidence)
        sized = MIN_WORDS <= len(text.split()) <= MAX_WORDS
        return (
            sized
            and self.sensitive.fault(text) is None
            and self._speaks_to_you(text)
            and reading.precision == 1.0
            and not any(reading.faults)
        )

    def _speaks_to_you(self, text: str) -> bool:
        return self.reader.lexicon.has("you", text)

    def _bare(self, text: str, evidence: Evidence) -> str:
        """The text without its titles, which may be long and come twice."""
        masked = self.reader.names.mask(text, evidence)
        return "".join(" " if c in masked.titles else c for c in masked.text)


@dataclass(frozen=True)
class Repaired:
    """A text that may be shown, and what became of the model's sentences.

    kept, regenerated, replaced, removed : its sentences that stand, that were asked for again, that gave way to the
        template's, that were left out; added : the template's sentences for what it did not tell
    by_template : nothing of the model's is in it
    raw : the claims of what the model wrote; shown : those of `text`
    """

    text: str
    raw: Reading
    shown: Reading
    kept: int = 0
    regenerated: int = 0
    replaced: int = 0
    removed: int = 0
    added: int = 0

    @property
    def by_template(self) -> bool:
        """Whether nothing of the model's stands in the text."""
        return not self.kept and not self.regenerated


@dataclass
class _Draft:
    """Sentences so far (each with whether it tells of the strongest evidence), and what became of the model's."""

    sentences: list[str] = field(default_factory=list)
    told: set[Told] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("kept", "regenerated", "replaced", "removed", "added"), 0)
    )

    def put(self, sentence: str, told: frozenset[Told], how: str) -> None:
        self.sentences.append(sentence)
        self.told |= told
        self.counts[how] += 1

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def repair(
    text: str,
    evidence: Evidence,
    facts: Sequence[Sentence],
    checker: Checker,
    retry: Retry | None = None,
    tries: int = 1,
) -> Repaired:
    """Make of a model's text one whose every claim is supported, of 12 to 120 words, that speaks to "you".

    facts : the template's sentences for the same evidence; retry : asks for one of them in other words, `tries` times
    at most. Pure but for `retry`. Where no such text can be made it is the template's.
    """
    raw = checker.read(text, evidence)
    by_fact = {fact.text: checker.read(fact.text, evidence) for fact in facts}
    draft = _Draft()
    # what a later sentence tells truly need not be said in place of an earlier one
    for sentence, fault in zip(raw.sentences, raw.faults, strict=True):
        if checker.sentence_fault(sentence, fault, "", evidence) is None:
            draft.told |= checker.read(sentence, evidence).told
    for sentence, fault in zip(raw.sentences, raw.faults, strict=True):
        if checker.sentence_fault(sentence, fault, draft.text, evidence) is None:
            draft.put(sentence, checker.read(sentence, evidence).told, "kept")
            continue
        fact = _fact_of(checker.read(sentence, evidence), facts, by_fact, draft)
        if fact is None:
            draft.counts["removed"] += 1
        else:
            _say_again(fact, evidence, checker, draft, by_fact, retry, tries)
    wanted = set(Facts.of(evidence).strongest)
    for fact in facts:
        told = by_fact[fact.text].told
        if fact.text not in draft.used and (wanted & told) - draft.told:
            draft.put(fact.text, told, "added")
    return _whole(draft, raw, evidence, facts, checker)


def rephrase(evidence: Evidence, facts: Sequence[Sentence], checker: Checker, retry: Retry, tries: int = 1) -> Repaired:
    """Each of the template's sentences in the words of `retry`, where these tell the same; else the template's."""
    by_fact = {fact.text: checker.read(fact.text, evidence) for fact in facts}
    draft, first = _Draft(), []
    for fact in facts:
        first.append(retry(fact, 0) or "")
        _say_again(fact, evidence, checker, draft, by_fact, retry, tries, at_first="kept")
    return _whole(draft, checker.read(" ".join(first), evidence), evidence, facts, checker)


def _fact_of(
    reading: Reading, facts: Sequence[Sentence], by_fact: dict[str, Reading], draft: _Draft
) -> Sentence | None:
    """The template's sentence that names most of what a faulty one names, and is not yet said; None for none."""
    named = {claim.name.casefold() for claim in reading.claims}

    def shared(fact: Sentence) -> int:
        return len(named & {claim.name.casefold() for claim in by_fact[fact.text].claims})

    left = [f for f in facts if f.text not in draft.used and by_fact[f.text].told - draft.told and shared(f)]
    return max(left, key=shared) if left else None


def _say_again(
    fact: Sentence,
    evidence: Evidence,
    checker: Checker,
    draft: _Draft,
    by_fact: dict[str, Reading],
    retry: Retry | None,
    tries: int,
    at_first: str = "regenerated",
) -> None:
    """The fact in other words where these are true, at the first of a few tries; else in the template's."""
    draft.used.add(fact.text)
    told = by_fact[fact.text].told
    for attempt in range(tries if retry is not None else 0):
        said = retry(fact, attempt) if retry is not None else None
        if said is None:
            break
        said = one_line(said, LONGEST)
        if said in fact.phrasings:  # said again as it was: not the model's own words
            continue
        if checker.rephrases(said, fact, evidence) and not checker.sentence_fault(said, None, draft.text, evidence):
            draft.put(said, told, "regenerated" if attempt else at_first)
            return
    draft.put(fact.text, told, "replaced")


def _whole(draft: _Draft, raw: Reading, evidence: Evidence, facts: Sequence[Sentence], checker: Checker) -> Repaired:
    template = " ".join(fact.text for fact in facts)
    for fact in facts:  # too short a text is filled up
        if len(draft.text.split()) < MIN_WORDS and fact.text not in draft.used and fact.text not in draft.sentences:
            draft.put(fact.text, frozenset(), "added")
    own = draft.counts["kept"] or draft.counts["regenerated"]
    if own and checker.fits(draft.text, evidence):
        return Repaired(draft.text, raw, checker.read(draft.text, evidence), **draft.counts)
    counts = {"removed": len(raw.sentences), "added": len(facts)}
    return Repaired(template, raw, checker.read(template, evidence), **counts)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _TOKEN.findall(text.casefold())
    return [tuple(words[i : i + _ECHO]) for i in range(len(words) - _ECHO + 1)]
