"""A profile in plain words straight from evidence: faithful by construction, one sentence to a kind of fact.

The sentences' wording is data (`phrases`): several phrasings to a kind, the first being the template's.
"""

from collections.abc import Sequence

from recsys.data.words import MEASURES, one_line
from recsys.profiles.evidence import ENOUGH, MIN_LIFT, Evidence, Item, Trait
from recsys.profiles.phrases import Phrases, Sentence, read_prompt

__all__ = ["ENOUGH", "TEMPLATE", "Phrases", "Sentence", "claim", "profile", "read_prompt", "sentences"]

TEMPLATE = "template"  # prompt_id and model_id of a text that no model wrote
MAX_WORDS = 100
_STRONG = 2.0
_ALL_THERE_IS = ("titles-only", "varied")  # true only where nothing is held back


def profile(
    evidence: Evidence, phrases: Phrases, company: Sentence | None = None, *, partial: bool = False
) -> tuple[str, list[str]]:
    """The profile's text (about 20 to 100 words, second person) and its claims.

    company : what is said of people like this one, or of everybody; for who has chosen too little to be described
    partial : there is more that could be said, and the user does not want it counted; so it is not said that there is
        nothing else
    """
    told = sentences(evidence, phrases, company)
    if partial:
        told = [_modest(s, evidence, phrases) for s in told if s.kind not in _ALL_THERE_IS]
    return " ".join(s.text for s in told), [claim for s in told for claim in s.claims]


def sentences(evidence: Evidence, phrases: Phrases, company: Sentence | None = None) -> list[Sentence]:
    """The profile sentence by sentence; the last ones are left out where it would grow too long."""
    told = _tell(evidence, phrases, [company] if company else [])
    while len(told) > 1 and sum(max(len(p.split()) for p in s.phrasings) for s in told) > MAX_WORDS:
        told.pop()
    return told


def claim(kind: str, trait: Trait) -> str:
    """For example "likes|genres|Horror|lift=3.1|n=12"; the separator is kept out of names."""
    return f"{kind}|{_field(trait.attribute)}|{_field(trait.value)}|lift={trait.lift:.1f}|n={trait.n}"


def _field(text: object) -> str:
    return one_line(str(text).replace("|", "/"), 80)


def _modest(sentence: Sentence, e: Evidence, phrases: Phrases) -> Sentence:
    """What is common, without the claim that nothing sets the user apart, or that it is most of what was chosen."""
    if sentence.kind not in ("average", "mostly"):
        return sentence
    return phrases.say("common", sentence.claims, names=_names(e.usual, phrases))


def _tell(e: Evidence, phrases: Phrases, company: list[Sentence]) -> list[Sentence]:
    if not e.events:
        return [phrases.say("nothing", ["events|n=0"]), *company]
    if e.events < ENOUGH:
        return [_little(e, phrases), *_anchors(e, phrases), *_dislikes(e, phrases), *company]
    parts = (_common, _eras, _anchors, _recent, _dislikes, _reach, _rhythm)
    base = phrases.say("base", [f"events|n={e.events}"], count=_count(e, phrases))
    first = _tastes(e, phrases)
    return [first, *(s for part in parts for s in part(e, phrases)), *([] if first.kind == "open" else [base])]


def _little(e: Evidence, phrases: Phrases) -> Sentence:
    claims = [f"events|n={e.events}", *(claim("common", t) for t in e.common)]
    if e.common:
        return phrases.say("little", claims, count=_count(e, phrases), names=_names(e.common, phrases))
    return phrases.say("little-unnamed", claims, count=_count(e, phrases))


def _tastes(e: Evidence, phrases: Phrases) -> Sentence:
    strong = [t for t in e.tastes if t.lift >= _STRONG]
    milder = [t for t in e.tastes if t.lift < _STRONG]
    claims = [claim("likes", t) for t in e.tastes]
    if strong and milder:
        return phrases.say("likes-both", claims, strong=_names(strong, phrases), milder=_names(milder, phrases))
    if e.tastes:
        return phrases.say("likes-strong" if strong else "likes", claims, names=_names(e.tastes, phrases))
    if e.usual:
        # What stands out in too few events to be called a taste is not what everybody chooses, either.
        kind = "mostly" if any(t.lift >= MIN_LIFT for t in e.usual) else "average"
        return phrases.say(kind, [claim("common", t) for t in e.usual], names=_names(e.usual, phrases))
    if e.common:
        return phrases.say("varied")
    if e.liked:
        return phrases.say("titles-only")
    return phrases.say("open", [f"events|n={e.events}"], count=_count(e, phrases))


def _common(e: Evidence, phrases: Phrases) -> list[Sentence]:
    """What makes up a fifth of the choices or more, though others choose it too; only beside tastes, and not where it
    is rated low."""
    named = {(t.attribute, t.value) for t in (*e.tastes, *e.dislikes)}
    often = [t for t in e.usual if (t.attribute, t.value) not in named and t.n * 5 >= e.liked]
    if not e.tastes or not often:
        return []
    return [phrases.say("common", [claim("common", t) for t in often], names=_names(often, phrases))]


def _eras(e: Evidence, phrases: Phrases) -> list[Sentence]:
    if not e.eras:
        return []
    return [phrases.say("eras", [claim("era", t) for t in e.eras], names=_names(e.eras, phrases))]


def _anchors(e: Evidence, phrases: Phrases) -> list[Sentence]:
    """The most telling titles but the newest, which is named as the last choice, unless there is no other."""
    newest = {i.item_id for i in e.latest[:1]} if e.events >= ENOUGH else set()
    items = [i for i in e.anchors if i.item_id not in newest] or list(e.anchors)
    if not items:
        return []
    kind = "anchors-rated" if e.rated else "anchors"
    return [phrases.say(kind, [f"anchor|{_field(i.item_id)}" for i in items], titles=_titles(items, phrases))]


def _recent(e: Evidence, phrases: Phrases) -> list[Sentence]:
    """The newest item always, whatever was said before; the one before it only where it is not yet named."""
    said = {i.item_id for i in e.anchors}
    items = [*e.latest[:1], *(i for i in e.latest[1:2] if i.item_id not in said)]
    claims = [*(claim("recent", t) for t in e.recent), *(f"latest|{_field(i.item_id)}" for i in items)]
    slots = {"names": _names(e.recent, phrases), "titles": _titles(items, phrases)}
    if e.recent:
        return [phrases.say("recent-both" if items else "recent", claims, **slots)]
    return [phrases.say("latest", claims, **slots)] if items else []


def _dislikes(e: Evidence, phrases: Phrases) -> list[Sentence]:
    if not e.dislikes:
        return []
    return [phrases.say("dislikes", [claim("dislikes", t) for t in e.dislikes], names=_names(e.dislikes, phrases))]


def _reach(e: Evidence, phrases: Phrases) -> list[Sentence]:
    """Which way the user leans between what everybody meets and what few do."""
    return [phrases.say(f"reach-{t.value}", [claim("reach", t)]) for t in e.reach]


def _rhythm(e: Evidence, phrases: Phrases) -> list[Sentence]:
    """How often the user comes back."""
    return [phrases.say(f"{t.attribute}-{t.value}", [claim(t.attribute, t)]) for t in e.rhythm]


def _count(e: Evidence, phrases: Phrases) -> str:
    return phrases.count(e.events, rated=e.rated)


def _names(traits: Sequence[Trait], phrases: Phrases) -> str:
    """A list of noun phrases. Decades come behind values, in the order of time; measures come last, since "and" after
    one would seem to go on with it."""
    ordered = sorted(traits, key=lambda t: (t.kind in MEASURES, t.kind == "era", t.value if t.kind == "era" else ""))
    return phrases.join([phrases.facet(t.attribute, t.value, t.kind) for t in ordered])


def _titles(items: Sequence[Item], phrases: Phrases) -> str:
    return phrases.titles([i.title for i in items])
