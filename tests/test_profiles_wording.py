"""Wordings are data: tones and languages, a user's own file, and errors that name file, kind and slot."""

from pathlib import Path
from typing import Any

import pytest
from portraits import RICH, make_checker, trait

from recsys.errors import SpecError
from recsys.profiles import EvidenceProfiles, ProfilesConfig, summarize
from recsys.profiles.evidence import Evidence
from recsys.profiles.faithful import Checker
from recsys.profiles.lexicon import Lexicon
from recsys.profiles.phrases import Phrases, read_prompt
from recsys.profiles.template import profile, sentences
from recsys.tables import Queries, query_histories

ENGLISH = read_prompt("phrases")[1]
WORDINGS = ["phrases", "phrases-playful", "phrases-de"]


def test_a_profile_in_german_reads_as_written_here() -> None:
    assert profile(RICH, Phrases.read("phrases-de"))[0] == (
        "Du wählst Horror weit öfter als die meisten hier, und Science-Fiction öfter als üblich. "
        "Oft wählst du auch Dramen. "
        "Du hast eine Vorliebe für die 1970er. "
        'Sehr gut bewertet hast du "Alien (1979)" und "The Matrix (1999)". '
        'In letzter Zeit wählst du öfter Komödien; zuletzt war es "Jaws 2 (1978)". '
        "Schlechter als den Rest bewertest du Western. "
        "Das beruht auf 53 Bewertungen."
    )


def test_the_tone_changes_and_the_claims_do_not() -> None:
    playful = profile(RICH, Phrases.read("phrases-playful"))
    assert playful[0].startswith("You can't get enough of horror, far more than most people here, and you pick sci-fi")
    assert playful[1] == profile(RICH, Phrases.read())[1]


@pytest.mark.parametrize("name", ["phrases", "phrases-playful"])
def test_the_checker_believes_a_wording_of_who_likes_nothing_yet(name: str) -> None:
    phrases = Phrases.read(name)
    nothing_high = Evidence(events=12, disliked=3, rated=True, dislikes=(trait("Western", n=3),))
    for told in sentences(nothing_high, phrases):
        for said in told.phrasings:
            assert make_checker(phrases).read(said, nothing_high).faults == (None,), said


def test_joining_words_names_and_counts_are_in_the_file() -> None:
    german = Phrases.read("phrases-de")
    assert german.join(["a", "b", "c"]) == "a, b und c"
    assert [german.count(n, rated=rated) for n in (1, 2) for rated in (True, False)] == [
        *("1 Bewertung", "1 Auswahl"),
        *("2 Bewertungen", "2 Auswahlen"),
    ]
    assert german.facet("year", "1990s", "era") == "die 1990er"
    assert german.facet("price", "10 to 20", "band") == "Titel mit Preis 10 to 20"
    assert german.facet("brand", "Sony", "value") == "Sony (Marke)"
    assert german.facet("genres", "Film-Noir", "value") == "Film-Noir"
    assert Phrases.read().facet("price", "10 to 20", "band") == "items with price 10 to 20"


@pytest.mark.parametrize("name", WORDINGS)
def test_a_wording_is_restored_from_its_text(name: str) -> None:
    phrases = Phrases.read(name)
    assert Phrases.parse(phrases.text, name) == phrases
    assert phrases.prompt_id.startswith(f"{name}@")


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "ours.txt"
    file.write_text(ENGLISH.replace("You lean towards {names}.", "You fancy {names}."), "utf-8")
    for given in (file, str(file)):
        phrases = Phrases.read(given)
        assert "You fancy the 1970s." in profile(RICH, phrases)[0]
        assert phrases.prompt_id.startswith("ours@")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[eras]", "[eons]", r"\[eons\] is no kind of sentence"),
        ("[eras]\n", "", r"\[eras\] is missing"),
        ("[base]\nThis rests", "[base]\n\n[other]\nThis rests", r"\[other\] is no kind"),
        ("You lean towards {names}.", "You lean.", r"\[eras\] 'You lean.': slot \{names\}"),
        ("You lean towards {names}.", "You lean towards {name}.", r"\[eras\].*slot \{name\}"),
        ("You lean towards {names}.", "You lean towards {names} and {names}.", r"\[eras\].*each once"),
        ("and = and\n", "", r"\[words\] 'and' is missing"),
        ("and = and\n", "and = and\nor = or\n", r"\[words\] 'or' is unknown"),
        ("decade = the {start}s", "decade = the nineties", r"\[words\] decade: slot \{start\}"),
        ("and = and\n", "and\n", r"is not of the form"),
        ("[nothing]", "A line.\n[nothing]", r"'A line.' stands before the first"),
        ("[base]\n", "[base]\n[base]\n", r"\[base\] comes twice"),
    ],
)
def test_a_faulty_file_is_refused_by_file_kind_and_slot(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in ENGLISH
    file = tmp_path / "ours.txt"
    file.write_text(ENGLISH.replace(old, new, 1), "utf-8")
    with pytest.raises(SpecError, match=told) as caught:
        Phrases.read(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["phrases-klingon", "../secrets", "", "nowhere/ours.txt"])
def test_a_wording_that_is_not_there_is_refused(given: str) -> None:
    with pytest.raises(SpecError, match=r"no packaged wording|cannot be read"):
        Phrases.read(given)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SpecError, match="cannot be read as a wording"):
        Phrases.read(tmp_path / "ours.txt")


@pytest.mark.parametrize("name", WORDINGS)
@pytest.mark.parametrize(
    "evidence",
    [
        RICH,
        Evidence(),
        Evidence(events=2, common=(trait("Drama", lift=1.0, n=1),)),
        Evidence(events=2),
        Evidence(events=30, rated=True, disliked=30),
        Evidence(events=30, liked=30),
    ],
    ids=["rich", "nothing", "little", "unnamed", "open", "titles only"],
)
def test_every_kind_of_user_gets_whole_sentences_in_every_wording(name: str, evidence: Evidence) -> None:
    text = profile(evidence, Phrases.read(name))[0]
    assert 12 <= len(text.split()) <= 110
    assert text[-1] == "."
    assert "{" not in text


def test_the_playful_tone_passes_the_checker_in_all_its_phrasings() -> None:
    phrases = Phrases.read("phrases-playful")
    checker = make_checker(phrases)
    for which in range(3):
        text = " ".join(s.phrasings[which % len(s.phrasings)] for s in sentences(RICH, phrases))
        reading = checker.read(text, RICH)
        assert [c for c in reading.claims if not c.supported] == []
        assert reading.faults == (None,) * len(reading.faults)
        assert reading.coverage(RICH) == 1.0


def test_in_german_a_model_may_choose_and_its_own_text_is_refused(world: Any, scripted_lm: Any) -> None:
    english = ProfilesConfig().fit(world.log, world.catalog, rated=world.rated, seed=0)
    german = EvidenceProfiles(english.config, english.known, english.store, Phrases.read("phrases-de"))
    queries = Queries(query_histories(world.log).frame.head(5))
    written, report = summarize(german, queries, scripted_lm(model_id="m"), 5)
    assert report.accepted == report.asked > 0
    assert "öfter" in written.as_of(queries).frame.filter(model_id="m")["text"][0]
    for way in ("write", "phrase"):
        with pytest.raises(SpecError, match=r"phrases-de@.*reading = none.*'choose'"):
            summarize(german, queries, scripted_lm(reply="Du magst alles."), 5, prompt=way)  # type: ignore[arg-type]


def test_a_wording_may_not_name_words_to_read_by_that_are_not_there() -> None:
    with pytest.raises(SpecError, match="reading-xx"):
        make_checker(Phrases.parse(ENGLISH.replace("reading = en", "reading = xx"), "ours"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[faded]", "[gone]", r"reading-en.txt: \[faded\]"),
        ("twice = 2", "twice", r"\[factors\]: 'twice' has no number"),
    ],
)
def test_faulty_words_to_read_by_are_refused(old: str, new: str, told: str) -> None:
    text = read_prompt("reading-en")[1]
    with pytest.raises(SpecError, match=told):
        Lexicon.parse(text.replace(old, new, 1), "reading-en.txt")


def test_every_entry_of_the_words_to_read_by_finds_itself() -> None:
    lexicon = Lexicon.read("en")
    for section, entries in lexicon.entries.items():
        for entry in entries:
            assert lexicon.words[section].search(f"so {entry.replace('*', 'xy')} so"), (section, entry)


def test_checkers_of_the_same_catalog_are_made_from_any_english_wording(world: Any) -> None:
    profiles = ProfilesConfig().fit(world.log, world.catalog, rated=world.rated, seed=0)
    for name in ("phrases", "phrases-playful"):
        phrases = Phrases.read(name)
        checker = Checker.of(profiles.known, phrases, "")
        for e in profiles.evidence(Queries(query_histories(world.log).frame.head(60))):
            text, _ = profile(e, phrases)
            assert [c for c in checker.read(text, e).claims if not c.supported] == [], text
