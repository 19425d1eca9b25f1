"""Whether a new bundle takes the champion's place: pure rules, which the registry carries out."""

from dataclasses import dataclass

METRIC = "served/ndcg@10"
"""What decides a promotion: a test metric of the stage that is served."""
EVENTS = "data/events"
"""Param of a run: how many events the evaluated log had."""
MOST_LOST = 0.1
"""Share of the champion's events that other data may lack. A real log grows; a truncated export shrinks."""


@dataclass(frozen=True)
class Version:
    """A registered bundle with its run's `METRIC` and, where they were logged, that one's 95% interval and `EVENTS`."""

    name: str
    number: int
    setting: str
    metric: float
    interval: tuple[float, float] | None
    events: int | None

    def __str__(self) -> str:
        spread = f" [{self.interval[0]:.4f}, {self.interval[1]:.4f}]" if self.interval else ""
        return f"{self.metric:.4f}{spread}"


@dataclass(frozen=True)
class Promotion:
    """What became of a new version, and why, in one line."""

    version: int
    promoted: bool
    why: str


def judge(new: Version, champion: Version | None, tolerance: float, rival: float | None) -> tuple[bool, str]:
    """Whether a version becomes champion, and why, in one line; the rules stand at `Registry.promote`."""
    if champion is None:
        return True, f"first version of '{new.name}': {METRIC} {new}"
    if champion.number == new.number:
        return True, f"is the champion already: {METRIC} {new}"
    who, floor = f"version {champion.number}'s {champion}", champion.metric
    if rival is not None:
        who, floor = f"the {rival:.4f} of version {champion.number}'s recipe on the same data", rival
    elif new.setting != champion.setting:
        return False, f"measured in another setting than the champion, version {champion.number}: cannot be compared"
    promoted = new.metric >= floor - tolerance
    why = f"{METRIC} {new} is {'not worse' if promoted else 'worse'} than {who} (tolerance {tolerance:g})"
    if promoted and rival is not None and (doubt := _doubt(new, champion, tolerance)):
        return False, f"{why}, but {doubt}: check the data"
    return promoted, why


def _doubt(new: Version, champion: Version, tolerance: float) -> str | None:
    """What speaks against the data that a version was made from; None where nothing does."""
    before = f"version {champion.number}"
    if champion.events and new.events is not None and new.events < (1 - MOST_LOST) * champion.events:
        return f"its log has {new.events} events, over {MOST_LOST:.0%} fewer than the {champion.events} of {before}"
    if new.metric < (champion.interval[0] if champion.interval else champion.metric) - tolerance:
        return f"falls below the {champion} that {before} had on its own data"
    return None
