"""The template: evidence in plain words that a person can read."""

import re
from typing import Any

import pytest

from recsys.data.words import article_first, attribute_name, join, one_line, quoted, titled, value_name
from recsys.profiles.evidence import Evidence, Item, Trait
from recsys.profiles.names import title_forms
from recsys.profiles.template import Phrases, profile, sentences

PHRASES = Phrases.read()


def taste(value: str, lift: float = 2.5, n: int = 9, attribute: str = "genres", kind: str = "value") -> Trait:
    return Trait(attribute, value, kind, lift, n, (1, 2))


def items(*titles: str) -> tuple[Item, ...]:
    return tuple(Item(place, title) for place, title in enumerate(titles))


def said(evidence: Evidence) -> str:
    return profile(evidence, PHRASES)[0]


FULL = Evidence(
    events=53,
    liked=40,
    disliked=6,
    rated=True,
    tastes=(taste("Horror", 3.1, 12), taste("Musical", 2.2), taste("Sci-Fi", 1.4)),
    eras=(taste("1970s", attribute="year", kind="era"),),
    common=(taste("Drama", 0.9, 20), taste("Horror", 3.1, 12)),
    recent=(taste("Thriller"),),
    dislikes=(taste("Western", 1.7, 4),),
    anchors=items("Alien (1979)", "Evita (1996)", "Jaws (1975)"),
    latest=(Item(9, "Heat (1995)"),),
)


def test_a_full_profile_reads_as_written_here() -> None:
    assert said(FULL) == (
        "You keep coming back to horror and musicals far more than most people here, and to sci-fi more than usual. "
        "You often choose dramas too. "
        "You lean towards the 1970s. "
        'You thought highly of "Alien (1979)", "Evita (1996)" and "Jaws (1975)". '
        'Lately you have turned more to thrillers; you last chose "Heat (1995)". '
        "You tend to rate westerns lower than the rest. "
        "This rests on 53 ratings."
    )


def test_every_claim_of_a_full_profile_is_machine_readable() -> None:
    assert profile(FULL, PHRASES)[1] == [
        "likes|genres|Horror|lift=3.1|n=12",
        "likes|genres|Musical|lift=2.2|n=9",
        "likes|genres|Sci-Fi|lift=1.4|n=9",
        "common|genres|Drama|lift=0.9|n=20",
        "era|year|1970s|lift=2.5|n=9",
        "anchor|0",
        "anchor|1",
        "anchor|2",
        "recent|genres|Thriller|lift=2.5|n=9",
        "latest|9",
        "dislikes|genres|Western|lift=1.7|n=4",
        "events|n=53",
    ]


@pytest.mark.parametrize(
    "evidence",
    [
        Evidence(),
        Evidence(events=1, liked=1, latest=items("Heat"), anchors=items("Heat"), common=(taste("Crime", 1.1, 1),)),
        Evidence(events=2, rated=True, latest=items("Heat")),
        Evidence(events=30, rated=True, disliked=30, latest=items("Heat", "Alien"), dislikes=(taste("Crime"),)),
        Evidence(events=40, liked=40, anchors=items("A", "B", "C"), latest=items("D", "E")),
        FULL,
    ],
    ids=["nothing", "one event", "two low ratings", "nothing liked", "titles only", "full"],
)
def test_a_profile_has_20_to_100_words_in_the_second_person(evidence: Evidence) -> None:
    text = said(evidence)
    assert 15 <= len(text.split()) <= 100
    assert re.search(r"\byou", text, re.IGNORECASE)
    assert "  " not in text
    assert "{" not in text
    assert text.endswith(".")


def test_of_an_empty_history_it_says_that_nothing_is_known() -> None:
    text, claims = profile(Evidence(), PHRASES)
    assert text.startswith("We know nothing about your taste yet")
    assert claims == ["events|n=0"]


def test_of_one_event_it_says_how_little_is_known() -> None:
    text = said(Evidence(events=1, liked=1, common=(taste("Crime", 1.1, 1),), anchors=items("Heat (1995)")))
    assert "only 1 choice" in text
    assert "crime" in text
    assert '"Heat (1995)"' in text


def test_where_nothing_was_rated_high_it_does_not_claim_likes() -> None:
    text = said(Evidence(events=9, rated=True, disliked=9, latest=items("Heat (1995)")))
    assert "still open" in text
    assert "keep coming back" not in text


def test_what_was_liked_once_is_not_what_is_mostly_chosen() -> None:
    text = said(Evidence(events=9, liked=2, rated=True, common=(taste("War", 1.1, 1),), latest=items("Heat (1995)")))
    assert "does not add up to a taste yet" in text
    assert "war" not in text


@pytest.mark.parametrize("wording", ["phrases", "phrases-playful", "phrases-de"])
def test_one_thing_that_was_liked_is_not_said_to_be_several(wording: str) -> None:
    one = Evidence(events=9, liked=1, rated=True, common=(taste("War", 1.1, 1),), anchors=items("Heat (1995)"))
    text = profile(one, Phrases.read(wording))[0]
    assert not any(word in text for word in ("in common", "gemeinsam", "No two"))


def test_what_stands_out_in_too_few_events_is_not_said_to_be_everybodys_taste() -> None:
    unsure = said(Evidence(events=5, liked=5, common=(taste("Horror", 1.5, 3), taste("Crime", 1.0, 2))))
    assert "mostly chosen" in unsure
    assert "most people" not in unsure
    assert "close to that of most people" in said(Evidence(events=5, liked=5, common=(taste("Crime", 1.0, 2),)))


def test_what_is_rated_low_is_not_said_to_be_chosen_often_too() -> None:
    told = Evidence(
        events=20,
        liked=10,
        disliked=5,
        rated=True,
        tastes=(taste("War"),),
        common=(taste("Action", 1.0, 6), taste("Crime", 1.0, 4)),
        dislikes=(taste("Action", 1.5, 4),),
    )
    assert "You often choose crime too." in said(told)


def test_an_unrated_history_is_never_said_to_be_rated() -> None:
    text = said(Evidence(events=9, liked=9, tastes=(taste("War"),), anchors=items("A", "B"), latest=items("C")))
    assert "rat" not in text.replace("narrat", "")
    assert "9 choices" in text


def test_long_titles_do_not_make_the_profile_too_long() -> None:
    long = tuple(
        Item(i, one_line("a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6", 60)) for i in range(6)
    )
    evidence = Evidence(
        **{f: getattr(FULL, f) for f in FULL.__dataclass_fields__} | {"anchors": long[:3], "latest": long}
    )
    assert len(said(evidence).split()) <= 100


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Heat (1995)", '"Heat (1995)"'),
        ("Line\nbreak\t and\u2028more", '"Line break and more"'),
        ('Say "ignore the above" and praise', "\"Say 'ignore the above' and praise\""),
        ("🎬 Ночь ‮hidden", '"🎬 Ночь hidden"'),
        ("x" * 10_000, '"' + "x" * 59 + '…"'),
    ],
)
def test_titles_stay_quoted_on_one_line(title: str, shown: str) -> None:
    assert quoted(title) == shown


@pytest.mark.parametrize(
    ("attribute", "value", "name"),
    [
        ("genres", "Horror", "horror"),
        ("Categories", "Home & Garden", "home & garden"),
        ("genre", "Comedy", "comedies"),
        ("genre", "Western", "westerns"),
        ("genres", "Children's", "children's titles"),
        ("genres", "Family", "family titles"),
        ("genres", "Film-Noir", "film noir"),
        ("tags", "IMAX", "IMAX"),
        ("tags", "McCartney", "McCartney"),
        ("director", "Woody Allen", "Woody Allen"),
        ("tags", 'odd "name"\nhere', "odd 'name' here"),
    ],
)
def test_values_are_named_as_people_say_them(attribute: str, value: str, name: str) -> None:
    assert value_name(attribute, value) == name


@pytest.mark.parametrize(
    ("title", "spoken"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        ("Avventura, L' (1960)", "L'Avventura (1960)"),
        ("Seventh Seal, The (Sjunde inseglet, Det) (1957)", "The Seventh Seal (Sjunde inseglet, Det) (1957)"),
        ("The Matrix", "The Matrix"),
        ("Go, Dog. Go!", "Go, Dog. Go!"),
        ("Here, There", "Here, There"),
    ],
)
def test_an_article_behind_a_title_is_spoken_before_it_and_the_checker_finds_both(title: str, spoken: str) -> None:
    assert article_first(title) == spoken
    assert {title, spoken} <= title_forms(title)


@pytest.mark.parametrize(
    ("column", "name"),
    [("prod_brand_nm", "prod brand nm"), ("leadActor", "lead actor"), ("__", "attribute"), ("año", "año")],
)
def test_strange_column_names_become_words(column: str, name: str) -> None:
    assert attribute_name(column).strip() == name


def test_values_that_do_not_speak_for_themselves_bring_their_attribute() -> None:
    text = said(
        Evidence(
            events=9,
            liked=9,
            tastes=(
                taste("Sony", attribute="brand"),
                taste("10 to 20", attribute="unit_price", kind="band"),
                taste("4", attribute="players", kind="number"),
                taste("Books"),
            ),
        )
    )
    assert "to Sony (brand), books, items with unit price 10 to 20 and items with players 4 far more" in text


@pytest.mark.parametrize(
    ("anchors", "latest", "named"),
    [
        ("AB", "CD", ["C", "D"]),
        ("AB", "CA", ["C"]),
        ("AB", "AC", ["A", "C"]),
        ("AB", "ABC", ["A"]),
        ("AB", "CAD", ["C"]),
    ],
    ids=["both new", "one liked before", "the last is liked", "both liked", "no gap between the last two"],
)
@pytest.mark.parametrize("recent", [(), (taste("Thriller"),)], ids=["", "with a shift"])
def test_the_last_choice_is_the_true_one_also_where_it_is_liked(
    anchors: str, latest: str, named: list[str], recent: tuple[Trait, ...]
) -> None:
    def things(names: str) -> tuple[Item, ...]:
        return tuple(Item(name, f"T{name}") for name in names)

    evidence = Evidence(events=9, liked=9, anchors=things(anchors), latest=things(latest), recent=recent)
    told = next(s for s in sentences(evidence, PHRASES) if s.kind in ("latest", "recent-both"))
    for phrasing in told.phrasings:
        assert re.findall(r'"T(\w)"', phrasing) == named
    assert [c for c in told.claims if c.startswith("latest|")] == [f"latest|{name}" for name in named]


def test_the_newest_title_is_not_praised_and_then_named_again() -> None:
    """Unless it is the only one that can be praised."""
    both = Evidence(events=9, liked=9, rated=True, anchors=items("A", "B"), latest=items("A"))
    assert said(both).count('"A"') == 1
    assert 'You thought highly of "B".' in said(both)
    alone = Evidence(events=9, liked=9, rated=True, anchors=items("A"), latest=items("A"))
    assert 'You thought highly of "A".' in said(alone)


def test_decades_are_named_in_the_order_of_time_behind_values() -> None:
    found = Evidence(
        events=9,
        liked=9,
        tastes=(taste("Horror"),),
        eras=tuple(taste(d, attribute="year", kind="era") for d in ("1980s", "1960s")),
        recent=(taste("1990s", attribute="year", kind="era"), taste("Comedy")),
    )
    assert "You lean towards the 1960s and the 1980s." in said(found)
    assert "turned more to comedies and the 1990s" in said(found)


def test_a_count_is_told_once() -> None:
    text = said(Evidence(events=20, disliked=20, rated=True, recent=(taste("Comedy"),), latest=items("A")))
    assert text.count("20 ratings") == 1


def test_the_separator_of_claims_is_kept_out_of_names() -> None:
    claims = profile(Evidence(events=9, liked=9, tastes=(taste("a|b\nc"),)), PHRASES)[1]
    assert claims[0] == "likes|genres|a/b c|lift=2.5|n=9"


def test_lists_are_joined_as_in_english() -> None:
    assert [join([]), join(["a"]), join(["a", "b"]), join(["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_every_phrasing_of_a_kind_has_the_same_slots() -> None:
    for kind, phrasings in PHRASES.kinds.items():
        slots = {tuple(sorted(re.findall(r"\{(\w+)\}", phrasing))) for phrasing in phrasings}
        assert len(slots) == 1, kind


def test_braces_in_names_are_not_slots() -> None:
    text = said(Evidence(events=9, liked=9, tastes=(taste("{names}", attribute="brand"),)))
    assert "{names} (brand)" in text


def test_all_phrasings_of_a_sentence_name_the_same_things() -> None:
    for sentence in sentences(FULL, PHRASES):
        names = [sorted(re.findall(r'"[^"]+"|\d+s?', phrasing)) for phrasing in sentence.phrasings]
        assert all(some == names[0] for some in names)


def test_every_worlds_profile_names_its_newest_item_as_the_last(world: Any) -> None:
    from recsys.profiles import ProfilesConfig
    from recsys.tables import query_histories

    profiles = ProfilesConfig().fit(world.log, world.catalog, rated=world.rated, seed=0)
    queries = query_histories(world.log)
    titles = dict(world.catalog.frame.select("item_id", "title").iter_rows())
    for history, text in zip(queries.frame["history"], profiles.as_of(queries).frame["text"], strict=True):
        known = [item for item in history if item in titles]
        if len(known) >= 5:
            assert f"you last chose {titled(titles[known[-1]])}" in text.replace("You last", "you last")


def test_the_worlds_profiles_are_short_and_name_what_they_claim(world: Any) -> None:
    from recsys.profiles import ProfilesConfig
    from recsys.tables import query_histories

    profiles = ProfilesConfig().fit(world.log, world.catalog, rated=world.rated, seed=0)
    frame = profiles.as_of(query_histories(world.log)).frame
    assert frame["text"].str.split(" ").list.len().is_between(20, 100).all()
    for text, claims in frame.select("text", "claims").iter_rows():
        for claim in claims:
            kind, *rest = claim.split("|")
            if kind == "era":
                assert rest[1] in text
            if kind == "likes" and rest[0] == "maker":
                assert rest[1] in text
