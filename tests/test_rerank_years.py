"""Bounds on years in requests."""

from dataclasses import replace

import numpy as np
import pytest
from test_rerank_requests import by_text, catalog, ear_around, writer

from checks import WordEncoder
from recsys.rerank.hearing import Ear
from recsys.rerank.interpret import DOUBT, STRICT, Interpreter
from recsys.rerank.mentions import Mentions
from recsys.rerank.requests import Writer
from recsys.rerank.years import Years, years_in

__all__ = ["catalog", "writer"]  # fixtures


@pytest.mark.parametrize(
    ("request_", "rest", "first", "last"),
    [
        ("something from before 1970", "something", None, 1969),
        ("a thriller from before the 90s", "a thriller", None, 1989),
        ("comedies older than the sixties", "comedies", None, 1959),
        ("pre-1960 drama", "drama", None, 1959),
        ("a comedy until 1980", "a comedy", None, 1980),
        ("westerns, 1960s or older", "westerns", None, 1969),
        ("not newer than 1990", "", None, 1990),
        ("a war film, but nothing after 1960", "a war film", None, 1960),
        ("After 1996", "", 1997, None),
        ("post-2000 comedy", "comedy", 2001, None),
        ("a drama from after the \u201980s", "a drama", 1990, None),
        ("a comedy since 2000", "a comedy", 2000, None),
        ("from 1990 onwards, a comedy", "a comedy", 1990, None),
        ("drama from 2000 on", "drama", 2000, None),
        ("nothing older than 1990, please", "please", 1990, None),
        ("don't want anything older than the nineties", "", 1990, None),
        ("no films from before 1980", "", 1980, None),
        ("films between 1970 and 1985", "films", 1970, 1985),
        ("a thriller from the 1980s to the 00s", "a thriller", 1980, 2009),
        ("nothing before 1980 and nothing after 1999", "", 1980, 1999),
        ("not before and not after the nineties", "", 1990, 1999),
        ("a movie made in 1994", "a movie", 1994, 1994),
        ("a comedy from 1994.", "a comedy", 1994, 1994),
        ("i hate films from before 1980", "i", 1980, None),
        ("a comedy, excluding films after 2000", "a comedy", None, 2000),
        ("none of the films older than 1990", "", 1990, None),
        ("from 1990 to now", "", 1990, None),
        ("from 1990 up to 1995", "", 1990, 1995),
        ("old films (before 1960)", "old films", None, 1959),
        ("no horror from before 1980, comedies from before 1990", "no horror from before 1980, comedies", None, 1989),
    ],
)
def test_bounds_are_read_and_taken_out(request_: str, rest: str, first: int | None, last: int | None) -> None:
    assert years_in(request_) == (rest, Years(first, last))


@pytest.mark.parametrize(
    "request_",
    [
        "",
        "a light comedy from the nineties, no horror",  # a decade that is wanted is a value like others
        "an old movie from the 40s or 50s",
        "nothing from the 1990s",
        "movies after the war",
        "before noon",
        "in 12 Angry Men style",
        "no horror from before 1980",  # both, or none of the two
        "one that nobody had seen before the nineties",
        "with the 1990s on its label",
        "after 2000 and before 1990",  # leaves nothing
        "like Blade Runner 2049",
        "cant bear anything with war before 1980",
        "anything other than films from 1999",
        "before 1980? no thanks",
        "films from before 1980 are not for me",
        "from 1985 or 1990",
        "from 1985, 1986 or 1987",
        "before the late 80s",
        "a war movie set in 1944",
        "about the summer of 1969",
    ],
)
def test_what_names_no_bound_stays_as_it_is(request_: str) -> None:
    assert years_in(request_) == (request_, None)


def test_what_is_said_of_them() -> None:
    said = [str(Years(*bounds)) for bounds in ((None, None), (1990, None), (None, 1969), (1970, 1985), (1994, 1994))]
    assert said == ["", "since 1990", "until 1969", "from 1970 to 1985", "of 1994"]


@pytest.fixture
def ear(writer: Writer) -> Ear:
    """Knows nothing but rules."""
    facets = writer.facets
    texts = by_text(np.eye(len(facets.years), 64, dtype=np.float32))
    return ear_around(facets, Interpreter(64).eval(), WordEncoder().embed(facets.names), texts)


def test_a_bound_is_held_to_and_said(ear: Ear) -> None:
    middle = int(np.nanmedian(ear.years))
    asked = ear.hear([f"after {middle}", "drama"], WordEncoder())
    told, other = ear.told(asked)
    assert (told["first_year"], told["last_year"]) == (middle + 1, None)
    assert (other["first_year"], other["last_year"]) == (None, None)
    free = ear.fits(replace(asked, meanings={**asked.meanings, "first_year": asked.meanings["first_year"] - np.inf}))
    lost = ear.fits(asked) - free
    late = ear.years > middle
    assert 0 < late.sum() < len(late)
    np.testing.assert_allclose(lost[0], np.where(late, 0, np.log(STRICT)), rtol=1e-4)
    assert not lost[1].any()
    some = np.array([3, 1])
    np.testing.assert_allclose(ear.fits(asked, some), ear.fits(asked)[:, some], rtol=1e-4)


def test_where_no_item_has_a_year_none_is_heard(ear: Ear) -> None:
    timeless = replace(ear, years=np.full_like(ear.years, np.nan))
    (told,) = timeless.told(timeless.hear(["after 1990"], WordEncoder()))
    assert told["first_year"] is None
    (told,) = ear.told(ear.hear(["before 1850"], WordEncoder()))
    assert told["last_year"] is None, "nor where none is within"


def test_a_title_holds_no_bound_and_stays_in_the_request(ear: Ear) -> None:
    middle = int(np.nanmedian(ear.years))
    titles = (f"From {middle}", *ear.mentions.titles[1:])
    named = replace(ear, mentions=Mentions.of(titles))
    (told,) = named.told(named.hear([f"like From {middle} but from before {middle}"], WordEncoder()))
    assert (told["like"], told["first_year"], told["last_year"]) == (titles[0], None, middle - 1)


def test_who_says_nothing_but_a_value_wants_it(ear: Ear) -> None:
    alone, among = ear.hear(["Drama!", "drama and something else"], WordEncoder()).meanings["wants"]
    place = ear.names.index("drama")
    assert alone[place] == 1
    assert among[place] < 1 - DOUBT
    refused = ear.hear(["drama"], WordEncoder()).meanings["refuses"]
    assert not refused.any()


@pytest.mark.timeout(30)  # a tenth of a second is usual; half a second for each request it once was
@pytest.mark.parametrize("end", [" ,", ",", ";", "-", " and", " no"])
def test_no_request_takes_long(end: str) -> None:
    request = f"before 1990 x{end * (480 // len(end))}y"
    for _ in range(200):
        years_in(request)
