"""What users changed in their own profile: they pin and forget values, say things in their own words, and take it back.

Edits are rows of a table, never changed once written; what stands at a moment is worked out from them. What a user said
is kept apart from what was inferred: it is quoted first in the profile, and where the two differ it wins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Self

import polars as pl

from recsys.data.requests import MAX_REQUEST
from recsys.data.words import facet_name, join, one_line, quoted
from recsys.errors import DataError, SpecError
from recsys.profiles.evidence import Evidence, Item, Trait
from recsys.profiles.population import Known
from recsys.profiles.privacy import Sensitive
from recsys.profiles.rhythm import PACE
from recsys.profiles.template import Phrases, Sentence
from recsys.profiles.wishes import Listener, Value, Wish, understand
from recsys.tables import ID, Id, Queries, Table

Action = Literal["pin", "forget", "say", "withdraw"]
ACTIONS = ("pin", "forget", "say", "withdraw")
QUOTED = 3  # of what a user said, so many of the latest are quoted in the profile: it is read by models, too
LONGEST_QUOTE = 200  # characters of each
NO_DISLIKE = "dislikes"
"""The `text` of a "forget" that takes out only the claim that the user dislikes the value. Nothing is ranked down by
it: who says "I do not dislike westerns" does not ask for fewer of them."""


OWN_PACE = Value(PACE, PACE)
"""How often the user comes back: told in profiles, and no value of the catalog, so that nothing is ranked by it."""


@dataclass(frozen=True)
class Edit:
    """One edit that stands. attribute, value : empty for "say"; text : the user's words, or what `NO_DISLIKE` says."""

    at: int
    action: Action
    attribute: str = ""
    value: str = ""
    text: str = ""

    @property
    def of(self) -> Value:
        """What it is about."""
        return Value(self.attribute, self.value)


class Edits(Table):
    """Everything that users ever changed. Columns, none of them null:

    user_id          : Int64 or String; compared as text, so that ids from a web form find their user
    at               : Int64, on the log's clock; at one moment, rows further down are later
    action           : "pin" (count on the value), "forget" (do not count on it), "say", or "withdraw" (take it back)
    attribute, value : as the catalog has them; empty where the edit is about words
    text             : what was said; empty for "pin"; for "forget" empty or `NO_DISLIKE`; for "withdraw" what was said
                       before and is taken back, or empty
    """

    COLUMNS = {
        "user_id": ID,
        "at": (pl.Int64,),
        "action": (pl.String,),
        "attribute": (pl.String,),
        "value": (pl.String,),
        "text": (pl.String,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        action, value = pl.col("action"), pl.col("value") != ""
        said = pl.col("text").str.strip_chars() != ""
        for wrong, message in (
            (~action.is_in(ACTIONS), f"column 'action' is none of {', '.join(ACTIONS)}"),
            (action.is_in(("pin", "forget")) & ~value, "column 'value' is empty, name what is pinned or forgotten"),
            ((action == "pin") & said, "column 'text' is not empty for a pin, use 'say' for words"),
            ((action == "forget") & said & (pl.col("text") != NO_DISLIKE), f"'text' of forget is '{NO_DISLIKE}' or ''"),
            ((action == "say") & (value | ~said), "a 'say' has a text and no value"),
            ((action == "withdraw") & (value == said), "a 'withdraw' names either a value or what was said"),
        ):
            rows = self.frame.select(wrong).to_series().arg_true()
            if len(rows):
                raise DataError(f"Edits: {message}: row {rows[0]}")

    @classmethod
    def none(cls) -> Self:
        """Nobody changed anything."""
        return cls(pl.DataFrame(schema={name: types[0] for name, types in cls.COLUMNS.items()}))

    @classmethod
    def of(cls, user_id: Id, *edits: Edit) -> Self:
        """Some edits of one user."""
        rows = [{"user_id": user_id, **{name: getattr(edit, name) for name in list(cls.COLUMNS)[1:]}} for edit in edits]
        schema: dict[str, Any] = {name: types[0] for name, types in cls.COLUMNS.items()}
        return cls(
            pl.DataFrame(rows, schema={**schema, "user_id": pl.String if isinstance(user_id, str) else pl.Int64})
        )

    def add(self, later: "Edits") -> Self:
        """These edits, and `later` ones behind them."""
        frames = [self.frame.select(list(self.COLUMNS)), later.frame.select(list(self.COLUMNS))]
        if frames[0].schema["user_id"] != frames[1].schema["user_id"]:
            frames = [frame.with_columns(pl.col("user_id").cast(pl.String)) for frame in frames]
        return type(self)(pl.concat(frames))

    def as_of(self, queries: Queries) -> dict[Id, tuple[Edit, ...]]:
        """By query_id, the edits of its user that stand at its moment, oldest first; queries without any are left out.

        Nothing younger than the query counts. Of several edits of one value the last one stands.
        """
        found: dict[Id, list[Edit]] = {}
        for query, *fields in self._of(queries).select("query_id", *list(self.COLUMNS)[1:]).iter_rows():
            found.setdefault(query, []).append(Edit(*fields))
        return {query: left for query, edits in found.items() if (left := standing(edits))}

    def last(self, queries: Queries) -> dict[Id, int]:
        """By query_id, the time of its user's youngest edit at its moment, withdrawals and withdrawn ones included."""
        return dict(self._of(queries).group_by("query_id").agg(pl.col("at").max()).iter_rows())

    def _of(self, queries: Queries) -> pl.DataFrame:
        """The rows that count for each query, with its `query_id`, in the table's order."""
        if not len(self):
            return self.frame.with_columns(queries.frame["query_id"].clear())
        asked = queries.frame.select("query_id", user=pl.col("user_id").cast(pl.String), until="at").drop_nulls("user")
        own = self.frame.with_columns(user=pl.col("user_id").cast(pl.String)).with_row_index("row")
        return asked.join(own, on="user").filter(pl.col("at") <= pl.col("until")).sort("row")


def standing(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """What is left of one user's edits, oldest first: the last of each value and of each text, if not withdrawn."""
    left: dict[tuple[str, ...], Edit] = {}
    for edit in sorted(edits, key=lambda edit: edit.at):
        key = edit.of if edit.value else ("", "", one_line(edit.text, len(edit.text)).casefold())
        left.pop(key, None)
        if edit.action != "withdraw":
            left[key] = edit
    return tuple(left.values())


def wishes(edits: Sequence[Edit], known: Known | Listener) -> list[Wish]:
    """What standing edits ask of a ranking: more or less of a value, for each that one of them is about.

    Where edits and words contradict each other, the last one counts.
    """
    found: dict[Value, Wish] = {}
    for edit in edits:
        if edit.action == "say":
            asked = understand(edit.text, known)
        elif edit.text == NO_DISLIKE or edit.of == OWN_PACE:
            asked = []
        else:
            asked = [Wish(*edit.of, "more" if edit.action == "pin" else "less")]
        found |= {wish.of: wish for wish in asked}
    return list(found.values())


def apply(evidence: Evidence, edits: Sequence[Edit], known: Known | Listener, *, pins: bool = True) -> Evidence:
    """The evidence as the user wants it counted.

    What is forgotten, or refused in words, leaves tastes, decades, reach, common and recent values and dislikes, and
    with it go the anchors that carry it; the latest items stay, for they are what happened. What is pinned or wished
    for leaves dislikes, and with `pins` it is the first of the tastes: with its lift and count where it is found in the
    evidence, else with a lift of 1 and a count of 0. A profile's text takes `pins=False`, since "you keep coming back
    to" would be untrue of it; `sentences` says that it was asked for.
    """
    listener = Listener.of(known)
    asked = wishes(edits, listener)
    less = {wish.of for wish in asked if wish.direction == "less"}
    more = {wish.of: None for wish in asked if wish.direction == "more"}
    undisliked = {edit.of for edit in edits if edit.text == NO_DISLIKE and edit.action == "forget"} | less | more.keys()
    unpaced = any(edit.of == OWN_PACE for edit in edits)
    if not undisliked and not unpaced:
        return evidence

    def kept(traits: tuple[Trait, ...], gone: Iterable[Value]) -> tuple[Trait, ...]:
        return tuple(trait for trait in traits if _of(trait) not in gone)

    tastes = kept(evidence.tastes, less)
    if pins:
        first = [trait for value in more if (trait := _trait(value, evidence, listener)) is not None]
        tastes = (*first, *kept(tastes, more))
    return replace(
        evidence,
        tastes=tastes,
        eras=kept(evidence.eras, less),
        reach=kept(evidence.reach, less),
        rhythm=() if unpaced else evidence.rhythm,
        common=kept(evidence.common, less),
        recent=kept(evidence.recent, less),
        dislikes=kept(evidence.dislikes, undisliked),
        anchors=_without(evidence.anchors, less, listener.known),
    )


def sentences(edits: Sequence[Edit], known: Known | Listener, phrases: Phrases) -> list[Sentence]:
    """What a profile says first: the user's own words, quoted, then what was pinned and what is not counted on.

    Claims: "said|TEXT", "pinned|ATTRIBUTE|VALUE", "forgotten|ATTRIBUTE|VALUE", "undisliked|ATTRIBUTE|VALUE".
    """
    kinds = Listener.of(known).kinds
    told = []
    said = [edit for edit in edits if edit.action == "say"]
    if said:
        words = phrases.join([quoted(edit.text, LONGEST_QUOTE) for edit in said[-QUOTED:]])
        told.append(phrases.say("told", [f"said|{_field(edit.text, MAX_REQUEST)}" for edit in said], words=words))
    for kind, chosen in (
        ("pinned", [e for e in edits if e.action == "pin"]),
        ("forgotten", [e for e in edits if e.action == "forget" and e.text != NO_DISLIKE]),
        ("undisliked", [e for e in edits if e.action == "forget" and e.text == NO_DISLIKE]),
    ):
        if chosen:
            own = {**{e.of: kinds.get(e.of, "value") for e in chosen}, OWN_PACE: PACE}
            names = phrases.join([phrases.facet(*e.of, own[e.of]) for e in chosen])
            claims = [f"{kind}|{_field(e.attribute)}|{_field(e.value)}" for e in chosen]
            told.append(phrases.say(kind, claims, names=names))
    return told


def value_of(text: str, known: Known | Listener, sensitive: Sensitive) -> Value:
    """The value that somebody names: "genres=Horror", or "horror" where only one attribute has it; in any case; "pace"
    for how often they come back.

    Errors: `SpecError` for one that the catalog does not tell apart, with what is near; for one that several attributes
    have; for one of which nothing is said of anybody.
    """
    listener = Listener.of(known)
    attribute, equals, name = (part.strip() for part in text.partition("="))
    if equals:
        wanted = attribute.casefold(), name.casefold()
        found = [value for value in listener.kinds if (value.attribute.casefold(), value.value.casefold()) == wanted]
    else:
        found = list(listener.named(text))
    if len(found) == 1:
        return found[0]
    if not found and text.strip().casefold() == PACE:
        return OWN_PACE
    if found:
        raise SpecError(f"'{text}' may be any of {', '.join(f'{v.attribute}={v.value}' for v in found)}: name one")
    if sensitive.hides(attribute if equals else "", name or attribute):
        raise SpecError(f"'{text}': of this nothing is kept of anybody (profiles.sensitive in the recipe)")
    by_name = {value.value.casefold(): value for value in listener.kinds}
    near = get_close_matches((name or attribute).casefold(), by_name, n=3) or list(by_name)[:3]
    some = ", ".join(f"{by_name[one].attribute}={by_name[one].value}" for one in near)
    raise SpecError(f"'{text}' is no value that this catalog tells apart; near are: {some}")


def explain(edit: Edit, known: Known | Listener) -> str:
    """One line for people: what the edit is, and what is made of it."""
    listener = Listener.of(known)
    kinds = listener.kinds
    if edit.action == "say":
        asked = understand(edit.text, listener)
        parts = [f"{w.direction} of {facet_name(*w.of, kinds[w.of])}" for w in asked]
        meaning = join(parts) or "nothing in it that this catalog tells apart; it is shown, and changes no ranking"
        return f"said {quoted(edit.text, LONGEST_QUOTE)}: understood as {meaning}"
    if edit.text and edit.action == "withdraw":
        return f"took back what was said: {quoted(edit.text, LONGEST_QUOTE)}"
    if edit.of == OWN_PACE:
        name, unknown = "how often they come back", ""
    else:
        name = facet_name(edit.attribute, one_line(edit.value, 40), kinds.get(edit.of, "value"))
        unknown = "" if edit.of in kinds else " (no value that this catalog tells apart; it changes no ranking)"
    verb = {"pin": "counts on", "forget": "does not count on", "withdraw": "took back what was said of"}[edit.action]
    if edit.text == NO_DISLIKE:
        return f"has nothing against {name}{unknown}"
    return f"{verb} {name}{unknown}"


def _of(trait: Trait) -> Value:
    return Value(trait.attribute, trait.value)


def _trait(value: Value, evidence: Evidence, listener: Listener) -> Trait | None:
    """The value as a taste; None where the population does not know it."""
    counted = (*evidence.tastes, *evidence.eras, *evidence.common)
    for trait in counted:
        if _of(trait) == value:
            return trait
    kind = listener.kinds.get(value)
    return None if kind is None else Trait(*value, kind, 1.0, 0)


def _without(items: tuple[Item, ...], gone: Iterable[Value], known: Known) -> tuple[Item, ...]:
    """The items that carry none of the values."""
    if not items or not gone:
        return items
    names = pl.DataFrame([tuple(value) for value in gone], schema=["attribute", "value"], orient="row")
    facets = known.population.values.join(names, on=["attribute", "value"], how="semi")["facet"]
    carriers = set(known.facets.filter(pl.col("facet").is_in(facets.implode()))["item"])
    codes = known.vocab.encode(pl.Series([item.item_id for item in items]))
    return tuple(item for item, code in zip(items, codes, strict=True) if int(code) not in carriers)


def _field(text: str, limit: int = 80) -> str:
    """As the template's claims have it: on one line, the separator kept out."""
    return one_line(text.replace("|", "/"), limit)
