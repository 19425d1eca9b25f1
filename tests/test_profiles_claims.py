"""The reader of claims: what true and false sentences claim, kind by kind, and how much of the evidence they tell."""

import pytest
from portraits import RICH, make_checker

from recsys.profiles.faithful import Checker

TRUE = [
    "Horror is what you love best, and you have a mild liking for sci-fi as well.",
    "You choose horror about three times as often as other people do.",
    "Nothing beats horror for you.",
    "You can't get enough of horror and sci-fi.",
    "Half of what you liked is horror.",
    "Your favourite genre is horror.",
    "You have given 53 ratings, and 20 of the titles you liked are horror.",
    "Twenty of your choices were horror.",
    "50% of what you enjoy is horror.",
    "Dramas turn up often among your choices.",
    "Westerns rarely please you.",
    "You don't care much for westerns.",
    "You gave poor marks to westerns.",
    "You are happiest in the seventies.",
    "Films of the '70s appeal to you more than to most.",
    "Lately you have been turning to comedies.",
    "Comedy has caught your eye of late.",
    "Your most recent choices are Jaws 2 and Alien.",
    "You rated both Alien and “The Matrix” highly.",
    "Among your best-loved titles is The Matrix (1999).",
    "Sci-fi appeals to you more than to the average person, and horror far more so.",
    "While you find westerns dull, you never tire of horror and sci-fi.",
    "Unlike most people, you are drawn to horror.",
    "You are as keen on horror as nobody else.",
    "You last chose 'Jaws 2 (1978)'.",
]
FALSE = [
    ("You love musicals.", "value", "musicals"),
    ("You love westerns.", "value", "westerns"),
    ("You avoid horror.", "value", "horror"),
    ("You are fond of the 1940s.", "era", "1940s"),
    ("You thought highly of Evita.", "title", "Evita"),
    ("You loved Jaws 2.", "title", "Jaws 2"),
    ("You could not stand Alien.", "title", "Alien"),
    ("You have given 54 ratings.", "number", "54"),
    ("You liked 53 of the horror titles.", "number", "53"),
    ("Thirty of your choices were horror.", "number", "Thirty"),
    ("90% of what you like is horror.", "number", "90"),
    ("You choose horror five times as often as other people.", "comparative", "horror"),
    ("You choose sci-fi far more often than most people.", "comparative", "sci-fi"),
    ("You choose dramas more often than most people.", "comparative", "dramas"),
    ("Lately you have turned to horror.", "recency", "horror"),
    ("The last thing you chose was The Matrix.", "recency", "The Matrix"),
    ("You no longer care about sci-fi, which you loved.", "value", "sci-fi"),
    ("Sci-fi is your favourite.", "superlative", "Sci-fi"),
    ("Nearly all you choose is horror.", "share", "horror"),
    ("You love horror by Hitchcock.", "name", "Hitchcock"),
    ("You love horror and romcoms.", "topics", "romcoms"),
    ("You love classic horror with your family.", "unknown", "classic"),
    ("Вы любите horror.", "language", "Вы"),
    ("Horror, the 1970s.", "value", "Horror"),
]


@pytest.fixture(scope="module")
def checker() -> Checker:
    return make_checker()


@pytest.mark.parametrize("text", TRUE)
def test_true_paraphrases_have_every_claim_supported(checker: Checker, text: str) -> None:
    reading = checker.read(text, RICH)
    assert [(c.kind, c.name, c.why) for c in reading.claims if not c.supported] == []
    assert reading.precision == 1.0
    assert reading.faults == (None,)
    assert reading.told


@pytest.mark.parametrize(("text", "kind", "name"), FALSE)
def test_a_false_claim_is_found_and_named(checker: Checker, text: str, kind: str, name: str) -> None:
    wrong = [(c.kind, c.name) for c in checker.read(text, RICH).claims if not c.supported]
    assert (kind, name) in wrong
