"""What is made of a request's text before it is read: titles that it names, and where refusals begin."""

from pathlib import Path

import pytest

from recsys.rerank.clauses import pieces_of, put_plainly, set_apart
from recsys.rerank.mentions import Mentions
from recsys.rerank.requests import Wording

HELD_OUT = Path(__file__).parent / "bench" / "requests-held-out.txt"


def test_titles_are_found_in_a_text_as_the_catalog_writes_them() -> None:
    mentions = Mentions.of(["Star Wars", "Star Wars Returns", "No", "comedy", "X", "Matrix, The", "七人の侍"])
    assert mentions.find("something like Star Wars, but newer") == 0
    assert mentions.find('more like "Star Wars Returns"!') == 1
    assert mentions.find("a comedy about star wars") == -1
    assert mentions.find("X") == -1
    assert mentions.find("") == -1
    assert mentions.find("like The Matrix, please") == 5
    assert mentions.find("like Matrix, The") == 5
    assert mentions.find("something like 七人の侍") == 6
    assert Mentions.of([]).find("anything") == -1


@pytest.mark.parametrize(
    ("text", "like", "refused"),
    [
        ("science fiction, but not Star Wars", -1, 0),
        ("nothing like Star Wars", -1, 0),
        ("I don't like Heat", -1, 1),
        ("anything but Heat, please", -1, 1),
        ("like Star Wars, but no more Heat", 0, 1),
        ("something like Heat, no Western", 1, -1),
        ("why not Heat again", 1, -1),
        ("not unlike Heat", 1, -1),
        ("no horror, like Star Wars", 0, -1),
    ],
)
def test_a_title_that_is_turned_down_is_refused_and_not_likened(text: str, like: int, refused: int) -> None:
    mentions = Mentions.of(["Star Wars", "Heat"])
    assert mentions.find(text) == like
    assert mentions.find(text, turned_down=True) == refused


@pytest.mark.parametrize("file", [None, HELD_OUT])
def test_no_phrasing_that_likens_turns_its_title_down(file: Path | None) -> None:
    mentions = Mentions.of(["Star Wars"])
    for phrase in Wording.read(file).phrases["like"]:
        assert mentions.find("please " + phrase.replace("{like}", "Star Wars"), turned_down=True) == -1, phrase


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a comedy without romance", "a comedy, without romance"),
        ("thriller but not horror and no drama", "thriller, but not horror, and no drama"),
        ("comedy no romance", "comedy, no romance"),
        ("westerns that are not old", "westerns, that are not old"),
        ("a comedy, without romance", "a comedy, without romance"),
        ("I do not want horror, why not a drama", "I do not want horror, why not a drama"),
        ("something that is not sad", "something, that is not sad"),
        ("No horror. Not Titanic", "No horror. Not Titanic"),
        ("I'd not mind a western", "I'd not mind a western"),
        ("Comedy, No Romance", "Comedy, No Romance"),
        ("like Rebel Without a Cause", "like Rebel Without a Cause"),
    ],
)
def test_a_refusal_that_runs_on_is_set_apart(text: str, read: str) -> None:
    assert set_apart(text) == read
    assert set_apart(read) == read
    # What is read apart has lost its comma.
    assert " ".join(pieces_of(text)).replace(",", "") == read.replace("  ", " ").replace(",", "")


@pytest.mark.parametrize(
    ("text", "like"),
    [
        ("something like titanic but newer", 0),
        ("like titanic", 0),
        ("movies like 'titanic', please", 0),
        ("newer than TITANIC", 0),
        ("similar to titanic and toy story", 0),
        ("i like toy story 2 and westerns", 2),
        ("anything like the matrix?", 3),
        ("i would like big comedies", -1),
        ("i'd like big", -1),
        ("something big", -1),
        ("toy story", -1),
        ("something like big comedies", -1),
    ],
)
def test_behind_what_likens_a_title_is_found_in_any_case(text: str, like: int) -> None:
    mentions = Mentions.of(["Titanic", "Toy Story", "Toy Story 2", "Matrix, The", "Big"])
    assert mentions.find(text) == like
    assert mentions.all(text, 3) == [], "profiles are written with titles as the catalog has them"


@pytest.mark.parametrize(
    ("said", "put"),
    [
        ("a good movie", "a good one"),
        ("no war Films, please", "no war one, please"),
        ("a film noir", "a film noir"),
        ("some film-noir movies", "some film-noir one"),
        ("a filmed play about a comic book", "a filmed play about a comic book"),
        ("Family films and movies", "Family films and one"),
        ("Nothing but comedies", "only comedies"),
        ("anything but comedies", "anything but comedies"),
    ],
)
def test_what_all_items_are_is_no_value(said: str, put: str) -> None:
    assert put_plainly(said, ("comedy", "film-noir", "war", "family film")) == put
    assert put_plainly("a film noir", ("comedy",)) == "a one noir"


@pytest.mark.parametrize(
    ("said", "pieces"),
    [
        ("something funny but not romantic", ["something funny", "but not romantic"]),
        ("a comedy, and not a romance, please", ["a comedy", "and not a romance, please"]),
        ("not horror but something funny", ["something funny", "but not horror"]),
        ("no war, just a comedy", ["a comedy", "but no war"]),
        ("a comedy rather than a drama", ["a comedy", "but not a drama"]),
        ("a drama which isn't a romance", ["a drama, which is not a romance"]),
        ("not only action but also adventure", ["not only action but also adventure"]),
        ("not scary but not dull", ["not scary", "but not dull"]),
        ("a comedy, no horror", ["a comedy, no horror"]),
    ],
)
def test_what_is_wanted_is_read_apart_from_what_is_not(said: str, pieces: list[str]) -> None:
    assert pieces_of(said) == pieces
