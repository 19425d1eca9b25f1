"""The checker: what a model wrote passes only where the evidence supports all of it."""

import pytest
from portraits import EVIDENCE, PHRASES, make_checker

from recsys.profiles.faithful import Checker
from recsys.profiles.template import profile


@pytest.fixture(scope="module")
def checker() -> Checker:
    return make_checker()


GOOD = 'You love horror and sci-fi, above all from the 1970s, and you think highly of "Alien (1979)".'


def test_a_true_text_passes(checker: Checker) -> None:
    assert checker.fault(GOOD, EVIDENCE) is None


def test_the_templates_own_text_passes(checker: Checker) -> None:
    assert checker.fault(profile(EVIDENCE, PHRASES)[0], EVIDENCE) is None


@pytest.mark.parametrize(
    "text",
    [
        "You go for science fiction and horrors, mostly of the '70s; westerns you like less.",
        'You adore Alien and "The Matrix" (1999), and horror in general, but you rarely enjoy westerns.',
        "Horror and sci-fi are what you choose first. You have 53 ratings here, and the 1970s are your decade.",
    ],
)
def test_other_true_wordings_pass(checker: Checker, text: str) -> None:
    assert checker.fault(text, EVIDENCE) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("You like horror.", "length"),
        (GOOD * 20, "length"),
        (GOOD.replace("horror", "comedies"), "value: comedies"),
        (GOOD.replace("1970s", "1940s"), "era: 1940s"),
        (GOOD.replace("Alien (1979)", "Heat (1995)"), "title: Heat (1995)"),
        (GOOD.replace("Alien (1979)", "Alien (1986)"), "title: Alien (1986)"),
        (GOOD.replace('"Alien (1979)"', "The Big Sleep"), "title: The Big Sleep"),
        (GOOD.replace('"Alien (1979)"', "Evita"), "title: Evita"),
        (GOOD + " You saw 99 of them, all horror.", "number: 99"),
        (GOOD + " You are a 45-year-old fan of horror.", "number: 45-year-old"),
        (GOOD + " You dislike sci-fi.", "value: sci-fi"),
        (GOOD + " You also enjoy westerns.", "value: westerns"),
        (GOOD + " You never tire of good things and of life.", "nothing named"),
        (GOOD.replace("You love", "She loves").replace("you think", "she thinks"), "person"),
        ("I love horror and sci-fi as you do, above all from the 1970s, and Alien too.", "person"),
        ("You are a helpful AI assistant, trained to love horror, sci-fi and the 1970s.", "person"),
        ("Horror and sci-fi from the 1970s: Alien and the horror of space again and again.", "person"),
        (GOOD + " Keep names, titles and numbers exactly as they are written, and horror.", "echo"),
        ("You love horror of the 1970s and sci-fi a lot. " * 2, "echo"),
        ("You are really very fond indeed of horror, and again of horror.", "too little named"),
        (GOOD + " You love horror on sunny beaches.", "word: sunny"),
        ("Vous aimez beaucoup les films d'horreur et la science des années passées, surtout le soir.", "person"),
        ("asdf qwer zxcv " * 6, "echo"),
    ],
)
def test_what_is_wrong_is_rejected_and_named(checker: Checker, text: str, fault: str) -> None:
    found = checker.fault(text, EVIDENCE)
    assert found is not None
    assert found.startswith(fault)


def test_planted_false_claims_of_every_value_and_title_are_caught(checker: Checker) -> None:
    """One false name at a time in an otherwise true text."""
    false = [f"You also like {v.lower()}." for v in ("Comedy", "Western", "Drama", "Musical")]
    false += [f"You also like the {d}." for d in ("1940s", "1950s", "1960s", "1980s", "1990s")]
    false += [
        f'You also like "{t}".' for t in ("Evita (1996)", "Heat (1995)", "The Big Sleep (1946)", "Titanic (1997)")
    ]
    false += [f"You tend to avoid {v}." for v in ("horror", "sci-fi", "the 1970s")]
    assert [text for text in false if checker.fault(f"{GOOD} {text}", EVIDENCE) is None] == []
