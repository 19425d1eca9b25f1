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
    "You liked 40 of the 53 titles that you rated.",
    "You gave high marks to 40 titles, and 20 of the titles you liked are horror.",
    "You gave 6 low marks.",
    "You have given 53 ratings, many of them to horror.",
    "You rate westerns lower than other films.",
    "You have little patience for westerns.",
    "You like horror such as Alien.",
    "You enjoyed Alien, one of the horror titles that you chose.",
    "Lately you chose Jaws 2.",
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
    # a total is no number of a value, nor what was chosen what was liked
    ("On 53 occasions you picked horror.", "number", "53"),
    ("You gave 53 ratings to horror.", "number", "53"),
    ("You like horror, with 53 choices of them.", "number", "53"),
    ("You like horror: 53 in all.", "number", "53"),
    ("You liked 53 titles.", "number", "53"),
    ("You gave 53 high marks.", "number", "53"),
    ("You have given 40 ratings.", "number", "40"),
    ("You gave 53 low marks.", "number", "53"),
    # a user gives ratings and receives none
    ("You have received 53 ratings.", "word", "received"),
    # what is disliked, told as liked, or as never met, or beside what others dislike
    ("Westerns never bore you.", "unknown", "never"),
    ("You do not dislike westerns.", "unknown", "not"),
    ("You cannot do without westerns.", "unknown", "cannot"),
    ("Nothing bores you less than westerns.", "unknown", "Nothing"),
    ("Westerns are anything but dull to you.", "unknown", "anything but"),
    ("You never watch westerns.", "unknown", "never"),
    ("You miss westerns.", "value", "westerns"),
    ("You dislike westerns more than anyone else.", "comparative", "westerns"),
    ("You hate westerns ten times as much as other people do.", "comparative", "westerns"),
    ("You rate westerns lower than other people do.", "comparative", "westerns"),
    # a comparison turned round, or of what is not compared
    ("Most people here choose horror more than you.", "unknown", "than you"),
    ("You like sci-fi better than horror.", "unknown", "better than"),
    ("You prefer dramas to horror.", "comparative", "dramas"),
    ("You would take dramas over horror.", "comparative", "dramas"),
    ("You now like comedies more than other people do.", "comparative", "comedies"),
    ("You like sci-fi best.", "superlative", "sci-fi"),
    # chosen last, and not known to be liked
    ("Recently you adored Jaws 2.", "title", "Jaws 2"),
    # an item that is nothing of the kind
    ("You enjoyed the sci-fi film Alien.", "title", "Alien"),
    ("You like sci-fi such as Alien.", "title", "Alien"),
    ("You liked Alien and other sci-fi.", "title", "Alien"),
    ("You liked Alien from the 1970s.", "title", "Alien"),
    # how far and how often is told in sentences of the wording alone
    ("You like horror and popular titles.", "unknown", "popular"),
    ("You have liked horror for a long time.", "unknown", "for a long time"),
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
