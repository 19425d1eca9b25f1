"""Is what profiles say true, and would it be noticed if it were not?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.errors import SpecError
from recsys.profiles.evidence import Evidence
from recsys.profiles.faithful import Checker
from recsys.profiles.lies import Lie, caught, plant
from recsys.profiles.source import EvidenceProfiles


@dataclass(frozen=True)
class Truth:
    """Of the texts that are shown: supported claims over all claims, the mean share of the strongest evidence that a
    text tells, and the share of texts that the checker finds fault with. What a text says of others, where a user has
    chosen too little ("people like you ..."), claims nothing of the user and is left out. Of planted lies: the share
    caught, by kind and for "all".

    unread : why none of it can be told, where the checker does not read the wording's language
    """

    texts: int
    claims: int = 0
    precision: float | None = None
    coverage: float | None = None
    doubted: float | None = None
    lies: int = 0
    caught: Mapping[str, float] | None = None
    unread: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "texts": self.texts,
            "claims": self.claims,
            "coverage": self.coverage,
            "doubted": self.doubted,
            "lies": self.lies,
            "caught": None if self.caught is None else dict(self.caught),
            "unread": self.unread,
        }


def truth(
    profiles: EvidenceProfiles, evidence: Sequence[Evidence], texts: Sequence[str], *, lies: int, seed: int
) -> Truth:
    """Read every text against its evidence, and plant `lies` false sentences in such texts."""
    try:
        checker = Checker.of(profiles.known, profiles.phrases, "")
    except SpecError as error:
        return Truth(len(texts), unread=str(error))
    _, company = profiles.levels.of(evidence)
    own = [text if c is None else text.replace(c.text, "") for text, c in zip(texts, company, strict=True)]
    readings = [checker.read(text, e) for text, e in zip(own, evidence, strict=True)]
    claims = sum(len(reading.claims) for reading in readings)
    supported = sum(claim.supported for reading in readings for claim in reading.claims)
    coverage = [reading.coverage(e) for reading, e in zip(readings, evidence, strict=True)]
    doubted = sum(any(reading.faults) for reading in readings)
    shares: Mapping[str, float] | None = None
    why = None
    try:
        planted = plant(evidence, profiles.known, profiles.phrases, lies, seed=seed)
        shares = caught(planted, lambda lie: _found(checker, lie))
    except SpecError as error:
        planted, why = [], str(error)
    return Truth(
        len(texts),
        claims,
        supported / claims if claims else 1.0,
        sum(coverage) / len(coverage) if coverage else 1.0,
        doubted / len(texts) if texts else 0.0,
        len(planted),
        shares,
        why,
    )


def _found(checker: Checker, lie: Lie) -> bool:
    """Whether the false sentence itself is found, not merely some fault somewhere."""
    reading = checker.read(lie.text, lie.evidence)
    return any(f for s, f in zip(reading.sentences, reading.faults, strict=True) if s in lie.sentence)
