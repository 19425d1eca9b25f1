"""What came of letting a language model write profiles (`recsys.profiles.summarize`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class SummaryReport:
    """What became of one run: texts asked for, accepted, and rejected by kind of fault; what it cost.

    asked, accepted : evidences that the model was asked about, and those whose text has something of its own in it;
        the template speaks for the others
    standing : evidences for which a text of the same prompt and model still stands (`ProfilesConfig.refresh`)
    waiting  : evidences that were left for a later run because of the limit, or since the model stopped answering
    faults   : what was wrong first with each of its texts that was not true as it stood, by kind; "model" where it
        failed to answer
    rejected : the texts that nothing could be kept of, with what was wrong
    claim_precision, coverage : of what is shown, template's texts included: supported claims over all claims, and the
        mean share of the strongest evidence that a text tells. Without a reader of the language 1 by construction
    false_texts, false_claims : of what the model wrote, before any repair: the share of texts with an unsupported
        claim, and the share of claims that are unsupported; 0 for "choose"
    kept, regenerated, replaced, removed, added : sentences (see `faithful.Repaired`)
    prompt_tokens, completion_tokens : as the model counts them, else estimated (`lm.usage`)
    """

    prompt_id: str
    model_id: str
    asked: int
    accepted: int
    waiting: int
    seconds: float
    standing: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    rejected: Sequence[tuple[str, str]] = ()
    claim_precision: float = 1.0
    coverage: float = 1.0
    false_texts: float = 0.0
    false_claims: float = 0.0
    kept: int = 0
    regenerated: int = 0
    replaced: int = 0
    removed: int = 0
    added: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the texts that were rejected."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rejected", "model_id")}
        return {"model": self.model_id, **told, "faults": dict(self.faults), "seconds": round(self.seconds, 1)}

    @property
    def failed_share(self) -> float:
        """Share of the asked texts that the template replaces; 0 where nothing was asked."""
        return 1 - self.accepted / self.asked if self.asked else 0.0
