"""What changed between two profiles, in words, from their claims."""

from dataclasses import replace

import pytest

from recsys.profiles.diff import STEP, claims_of, claims_of_version, diff
from recsys.profiles.evidence import Evidence, Item, Trait
from recsys.profiles.template import Phrases, profile
from recsys.profiles.versions import Version

OLD = [
    "likes|genres|Horror|lift=2.0|n=12",
    "likes|genres|Drama|lift=2.0|n=9",
    "likes|genres|War|lift=3.0|n=4",
    "era|year|1970s|lift=1.5|n=9",
    "recent|genres|Thriller|lift=2.5|n=9",
    "dislikes|genres|Western|lift=1.7|n=4",
    "anchor|1",
    "latest|9",
    "said|no blood",
    "pinned|genres|Crime",
    "events|n=53",
]


@pytest.mark.parametrize(
    ("new", "lines"),
    [
        (OLD, []),
        (OLD[::-1], []),  # the order of claims says nothing
        ([*OLD[:-1], "events|n=65"], ["12 more ratings"]),
        ([*OLD[:-1], "events|n=54"], ["1 more rating"]),
        ([*OLD[:-1], "events|n=50"], ["3 fewer ratings"]),
        ([*OLD, "likes|genres|Musical|lift=1.4|n=5"], ["new among your tastes: musicals"]),
        (OLD[1:], ["faded from your tastes: horror"]),
        (OLD[:3] + OLD[4:], ["no longer a leaning: the 1970s"]),
        ([*OLD, "recent|genres|Crime|lift=2.0|n=3"], ["lately you turn more to crime"]),
        ([*OLD, "dislikes|brand|Sony|lift=2.0|n=3"], ["now rated lower than the rest: Sony (brand)"]),
        ([*OLD, "anchor|2", "anchor|3"], ['new among your most telling choices: "Alien" and "3"']),
        ([c.replace("latest|9", "latest|2") for c in OLD], ['you last chose "Alien"']),
        ([*OLD, "said|more cats"], ['you told us "more cats"']),
        (OLD[:8] + OLD[9:], ['you took back "no blood"']),
        ([*OLD, "forgotten|genres|Horror"], ["you asked us not to count on horror"]),
        (OLD[:9] + OLD[10:], ["you took back that we count on crime"]),
        ([*OLD, "mood|dark|n=3"], ["new: mood|dark|n=3"]),
        ([*OLD, "likes|genres"], ["new: likes|genres"]),
    ],
)
def test_what_changed_is_said(new: list[str], lines: list[str]) -> None:
    assert diff(OLD, new, titles={"2": "Alien"}, noun="rating") == lines


def test_a_taste_is_stronger_or_weaker_from_a_step_on() -> None:
    assert STEP == 1.25
    stronger = [c.replace("Horror|lift=2.0", "Horror|lift=2.5") for c in OLD]
    assert diff(OLD, stronger) == ["stronger taste: horror (2.0 to 2.5 times the usual)"]
    assert diff(stronger, OLD) == ["weaker taste: horror (2.5 to 2.0 times the usual)"]
    assert diff(OLD, [c.replace("Horror|lift=2.0", "Horror|lift=2.4") for c in OLD]) == []
    assert diff(OLD, [c.replace("Horror|lift=2.0", "Horror|lift=?") for c in OLD]) == []


def test_several_changes_of_a_kind_share_a_line_and_edits_come_first() -> None:
    new = ["said|less of everything", "likes|genres|Comedy|lift=2.0|n=9", "likes|genres|Crime|lift=2.0|n=9"]
    assert diff([], new) == ['you told us "less of everything"', "new among your tastes: comedies and crime"]
    assert diff(new, [])[0] == 'you took back "less of everything"'


def test_words_of_a_user_cannot_break_out_of_their_quotes() -> None:
    assert diff([], ['said|a "b" | c\nd']) == ["you told us \"a 'b' | c d\""]


FULL = Evidence(
    events=40,
    liked=30,
    tastes=(Trait("genres", "Horror", "value", 3.1, 12),),
    eras=(Trait("year", "1950s", "era", 1.5, 7),),
    anchors=(Item(0, "Alien"),),
    latest=(Item(1, "Scream"), Item(2, "Heat")),
)


def test_evidence_is_compared_by_all_its_claims() -> None:
    assert diff(FULL, FULL) == []
    fewer = replace(FULL, eras=(), events=28)
    assert diff(fewer, FULL) == ["new leaning: the 1950s", "12 more choices"]
    assert diff(claims_of(fewer), FULL) == diff(fewer, FULL)
    assert diff(Evidence(), Evidence()) == []


def test_the_claims_of_a_profile_are_among_those_of_its_evidence() -> None:
    told = profile(FULL, Phrases.read())[1]
    assert told
    assert set(told) <= {*claims_of(FULL), "latest|2"}


def test_reach_is_told_in_words_and_versions_are_compared_by_their_evidence() -> None:
    """A text has no room for all of it: what it leaves out has not gone."""
    habit = Trait("popularity", "lesser-known", "reach", 1.6, 20)
    strong = Trait("genres", "Horror", "value", 3.0, 12)
    one = Evidence(events=30, liked=30, tastes=(strong,), reach=(habit,))
    two = Evidence(events=31, liked=31, tastes=(strong,), reach=(habit,))
    versions = [Version("u", at, "text", ("events|n=30",), e.json) for at, e in ((1, one), (2, two))]
    assert diff(*map(claims_of_version, versions)) == ["1 more choice"]
    assert diff(Evidence(events=30), one) == [
        "new among your tastes: horror",
        "you now look beyond what is popular more than most",
    ]
    said = Version("u", 3, "text", ("said|no gore", "likes|genres|Horror|lift=9.0|n=1"), one.json)
    assert diff(claims_of_version(versions[0]), claims_of_version(said)) == ['you told us "no gore"']
    kept_nothing = Version("u", 4, "text", ("events|n=3",))
    assert claims_of_version(kept_nothing) == ("events|n=3",)
