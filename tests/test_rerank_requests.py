"""Requests that are written for training, and what is understood of requests."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from checks import WordEncoder, with_word_vectors, words
from recsys.data.vocab import Vocab
from recsys.errors import SpecError
from recsys.networks.items import centred, item_vectors
from recsys.rerank.clauses import pieces_of
from recsys.rerank.hearing import SURE, Ear
from recsys.rerank.interpret import DOUBT, LONGEST, STRICT, Exercises, Interpreter, Words, log_fits
from recsys.rerank.likeness import Likeness
from recsys.rerank.mentions import Mentions
from recsys.rerank.requests import KINDS, PAST, Facets, Request, Wording, Writer
from recsys.rerank.told import sentences_of
from recsys.tables import Catalog

HELD_OUT = Path(__file__).parent / "bench" / "requests-held-out.txt"


@pytest.fixture(scope="module")
def catalog(world: Any) -> Catalog:
    return with_word_vectors(world.catalog)


@pytest.fixture(scope="module")
def writer(world: Any, catalog: Catalog) -> Writer:
    vocab = Vocab.of_items(catalog)
    facets = Facets.of(catalog, vocab, vocab.encode(world.log.frame["item_id"]))
    return Writer(facets, Wording.read(), centred(item_vectors(catalog, vocab)))


def every_item(writer: Writer, times: int = 5) -> Any:
    return np.repeat(np.arange(len(writer.near)), times).astype(np.int32)


@pytest.mark.parametrize("wording", [None, HELD_OUT], ids=["packaged", "held out"])
def test_a_request_is_true_of_its_item(writer: Writer, wording: Path | None) -> None:
    items = every_item(writer)
    requests = Writer(writer.facets, Wording.read(wording), writer.near).write(items, seed=3)
    for item, request in zip(items, requests, strict=True):
        assert writer.facets.fits(request)[item], request
        assert request.text.strip()
        assert "{" not in request.text
    past = PAST if "no era" in Wording.read(wording).phrases else ()
    assert {request.kind for request in requests} == {*KINDS, *past}


def test_what_is_refused_and_wanted_is_said(writer: Writer) -> None:
    facets = writer.facets
    for request in writer.write(every_item(writer), seed=1):
        for value in (*request.wants, *request.refuses):
            assert any(way in request.text for way in facets.spoken[value]), request
        if request.like >= 0:
            assert facets.titles[request.like] in request.text


def test_a_refusal_follows_with_and_without_a_comma_and_may_be_of_several_values(writer: Writer) -> None:
    """A reader that knows "a comedy, without romance" alone takes "a comedy without romance" for two refusals."""
    bare = {"no": ("without {no}",), "open": ("",), "close": ("",)}
    requests = replace(writer, wording=Wording({**writer.wording.phrases, **bare})).write(every_item(writer), seed=1)
    both = [r.text for r in requests if r.kind == "want no" and not r.text.startswith("without")]
    commas = sum(", without " in text for text in both)
    assert 0.3 < commas / len(both) < 0.7
    assert {len(r.refuses) for r in requests if "none" in r.kind} == {2, 3, 4}
    assert all(", " in r.text for r in requests if len(r.refuses) > 2)
    assert {len(r.refuses) for r in requests if r.kind == "no"} == {1}


def test_requests_are_the_same_for_the_same_seed_and_others_for_another(writer: Writer) -> None:
    items = every_item(writer, 1)
    assert writer.write(items, 1) == writer.write(items, 1)
    assert writer.write(items, 1) != writer.write(items, 2)


def test_newer_and_older_are_true(writer: Writer) -> None:
    items = every_item(writer)
    compared = [(i, r) for i, r in zip(items, writer.write(items, 4), strict=True) if r.than]
    assert {request.than for _, request in compared} == {1, -1}
    for item, request in compared:
        assert np.sign(writer.facets.years[item] - writer.facets.years[request.like]) == request.than


def said(phrase: str) -> set[str]:
    return set(words(phrase))


@pytest.mark.parametrize("other", [HELD_OUT, HELD_OUT.with_stem("requests-held-out-2")], ids=["first", "second"])
@pytest.mark.parametrize("kind", ["want", "two", "era", "no", "none", "like", "newer", "older"])
def test_no_held_out_phrase_is_nearly_one_of_training(kind: str, other: Path) -> None:
    """Seven tenths of the words of both together, slots included, would make it the same phrase with an extra."""
    phrases = [
        taught for taught in (Wording.read() + Wording.more()).phrases[kind] if taught != f"{{{kind}}}"
    ]  # a value alone is none
    for held in Wording.read(other).phrases[kind]:
        nearest = max(phrases, key=lambda taught: _overlap(held, taught))
        assert _overlap(held, nearest) < 0.7, (held, nearest)


def test_more_refusals_are_refusals_and_no_others_than_those_of_their_own() -> None:
    plain, more = Wording.read(), Wording.more()
    slots = {"no": ["{no}"], "none": ["{no}", "{other}"], "no era": ["{era}"]}
    assert set(more.phrases) == set(slots)
    for kind, lines in more.phrases.items():
        assert not set(lines) & set(plain.phrases[kind])
        assert len(set(lines)) == len(lines)
        assert all(sorted(re.findall(r"\{\w+\}", line)) == slots[kind] for line in lines)
    both = plain + more
    assert both.phrases["no"] == (*plain.phrases["no"], *more.phrases["no"])  # the plainest stays the first
    assert both.phrases["want"] == plain.phrases["want"]


def _overlap(one: str, other: str) -> float:
    return len(said(one) & said(other)) / len(said(one) | said(other))


def test_phrasings_are_split_without_overlap() -> None:
    most, rest = Wording.read().split()
    for kind, lines in Wording.read().phrases.items():
        assert set(most.phrases[kind]) | set(rest.phrases[kind]) == set(lines)
        assert not (set(most.phrases[kind]) & set(rest.phrases[kind])) - {""}


def test_wording_that_lacks_a_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("[open]\n-\n[close]\n-\n[want]\n{want}\n")
    with pytest.raises(SpecError, match=r"some.txt: the kind \[two\] is missing"):
        Wording.read(tmp_path / "some.txt")


def test_a_catalog_that_says_nothing_is_asked_for_by_likeness_alone(catalog: Catalog) -> None:
    bare = Catalog(catalog.frame.select("item_id", pl.col("title").str.replace(r" \(\d+\)", ""), "text", "embedding"))
    vocab = Vocab.of_items(bare)
    facets = Facets.of(bare, vocab, np.arange(len(vocab)))
    assert len(facets) == 0
    assert np.isnan(facets.years).all()
    writer = Writer(facets, Wording.read(), centred(item_vectors(bare, vocab)))
    assert {request.kind for request in writer.write(np.arange(20, dtype=np.int32), 0)} == {"like"}


def test_one_item_alone_can_still_be_asked_for(catalog: Catalog) -> None:
    one = Catalog(catalog.frame.head(1))
    vocab = Vocab.of_items(one)
    facets = Facets.of(one, vocab, np.zeros(1, dtype=np.int32))
    (request,) = Writer(facets, Wording.read(), np.ones((1, 4), np.float32)).write(np.zeros(1, dtype=np.int32), 0)
    assert request == Request(request.text)


NO_ERA = torch.tensor([False])


def test_the_log_probability_of_fitting_is_worked_out_by_hand() -> None:
    meanings = {
        "wants": torch.tensor([[0.5, 0.0]]),
        "refuses": torch.tensor([[0.0, 0.4]]),
        "newer": torch.tensor([0.8]),
        "older": torch.tensor([0.0]),
        "like_years": torch.tensor([1990.0]),
    }
    carried = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    years = torch.tensor([1995.0, 1995.0, 1995.0, float("nan")])
    found = log_fits(meanings, carried, years, NO_ERA.expand(2))[0]
    expected = [0.0, np.log(0.5), np.log(0.6), np.log(0.2)]  # no year: not known to be newer
    np.testing.assert_allclose(found, expected, atol=1e-6)


NO_COMPARISON = {"newer": torch.zeros(1), "older": torch.zeros(1), "like_years": torch.tensor([float("nan")])}


def test_certainty_rules_nothing_out_for_good() -> None:
    sure = {name: torch.ones(1, 1) for name in ("wants", "refuses")}
    found = log_fits({**sure, **NO_COMPARISON}, torch.tensor([[1.0], [0.0]]), torch.zeros(2), NO_ERA)
    np.testing.assert_allclose(found[0], [np.log(STRICT), np.log(DOUBT)], rtol=1e-3)


def test_what_is_heard_as_refused_is_held_to_whatever_the_odds() -> None:
    """An item that carries it stands behind one that lacks a value that is surely wanted."""
    heard = {"wants": torch.tensor([[1.0, 0.0]]), "refuses": torch.tensor([[0.0, SURE + 0.01]])}
    has_both, has_neither = log_fits(
        {**heard, **NO_COMPARISON}, torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2), NO_ERA.expand(2)
    )[0]
    assert has_both < has_neither


def learned(writer: Writer, epochs: int) -> tuple[Interpreter, Any]:
    encoder = WordEncoder()
    requests = writer.write(every_item(writer, 6), seed=0)
    words, names = Words.of([r.text for r in requests], encoder), encoder.embed(list(writer.facets.names))
    torch.manual_seed(0)
    network = Interpreter(encoder.dim, dim=64, layers=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for batch in Exercises(requests, words, names, batch=64, rng=np.random.default_rng(epoch)):
            optimizer.zero_grad()
            network(batch).backward()
            optimizer.step()
    return network.eval(), names


def by_text(texts: Any) -> Likeness:
    return Likeness.of(texts, texts[:, :0])


def ear_around(facets: Facets, network: Interpreter, names: Any, likeness: Likeness) -> Ear:
    carried = facets.carried.astype(np.float32)
    mentions = Mentions.of(facets.titles)
    return Ear(True, network, facets.names, names, facets.eras, carried, facets.years, mentions, likeness)


def test_the_interpreter_learns_what_is_wanted_and_what_is_refused(writer: Writer) -> None:
    network, names = learned(writer, 20)
    requests = writer.write(every_item(writer, 1), seed=99)
    meanings = network.meanings(Words.of([r.text for r in requests], WordEncoder()), names)
    for which in ("wants", "refuses"):
        right = np.zeros(meanings[which].shape, dtype=bool)
        for row, request in enumerate(requests):
            right[row, list(getattr(request, which))] = True
        said = meanings[which].numpy()
        assert said[right].mean() > said[~right].mean() + 0.35, which


def test_batch_equals_singles_in_reading_requests(writer: Writer) -> None:
    network, names = learned(writer, 1)
    texts = [r.text for r in writer.write(every_item(writer, 1)[:20], 5)]
    whole = network.meanings(Words.of(texts, WordEncoder()), names)
    for row, text in enumerate(texts):
        one = network.meanings(Words.of([text], WordEncoder()), names)
        for name, value in one.items():
            np.testing.assert_allclose(value[0], whole[name][row], atol=1e-5)


def test_an_item_that_is_turned_down_is_held_back_and_said_to_be(writer: Writer) -> None:
    network, names = learned(writer, 0)
    facets = writer.facets
    likeness = replace(by_text(np.eye(len(facets.years), 64, dtype=np.float32)), keen=8.0)
    ear = ear_around(facets, network, names, likeness)
    asked = ear.hear([f"but not {facets.titles[7]}", "drama"], WordEncoder())
    (told, other), fits = ear.told(asked), ear.fits(asked)
    assert told["like"] is None
    assert facets.titles[7] in told["refuses"]
    assert facets.titles[7] not in other["refuses"]
    assert fits[0, 7] < fits[0].max() + np.log(STRICT) / 2
    np.testing.assert_allclose(ear.fits(asked, np.array([3, 7]))[0, 1], fits[0, 7], rtol=1e-5)
    assert fits[1, 7] > fits[1].max() + np.log(STRICT) / 2
    assert not asked.meanings["alike"][0].any()  # texts that are like the title are not what is asked for


def test_a_capital_at_the_start_of_a_sentence_is_no_title() -> None:
    mentions = Mentions.of(["No", "Big", "Big Night"])
    assert mentions.find("No horror please") == -1
    assert mentions.find("A comedy. Big laughs!") == -1
    assert mentions.find('"No" was great') == 0
    assert mentions.find("like Big but older") == 1
    assert mentions.find("Big Night was great") == 2


def test_a_long_request_is_read_in_pieces() -> None:
    assert pieces_of("Horror? No thanks. A comedy; nothing old!") == ["Horror? No thanks. A comedy; nothing old!"]
    assert [len(piece.split()) for piece in pieces_of("word " * 60)] == [24, 24, 12]
    assert pieces_of(f"{'word ' * 18}end. {'more ' * 5}end. last one") == [
        f"{'word ' * 18}end.",
        f"{'more ' * 5}end. last one",
    ]
    assert pieces_of("  ") == [""]


def test_what_any_piece_says_counts(writer: Writer) -> None:
    network, names = learned(writer, 2)
    facets = writer.facets
    likeness = replace(by_text(np.eye(len(facets.years), 64, dtype=np.float32)), keen=2.0)
    ear = ear_around(facets, network, names, likeness)
    title = facets.titles[7]
    long = "word " * 22  # so that each sentence is a piece of its own
    parts_said = [f"{long}some comedy.", f"{long}no western.", f"like {title}"]
    whole = ear.hear([" ".join(parts_said), "drama"], WordEncoder())
    parts = ear.hear(parts_said, WordEncoder())
    for name in ("wants", "refuses", "newer", "older"):
        np.testing.assert_allclose(whole.meanings[name][0], parts.meanings[name].amax(dim=0), atol=1e-5)
    assert whole.like.tolist() == [7, -1]
    assert whole.meanings["like_years"][0] == facets.years[7]
    assert torch.isnan(whole.meanings["like_years"][1])
    assert not whole.meanings["alike"][0].any()  # what it names is all that counts


def test_no_end_of_a_request_is_lost_where_words_have_many_tokens(writer: Writer) -> None:
    facets, read = writer.facets, []

    class Listening(WordEncoder):
        def states(self, texts: Any, max_tokens: int) -> Any:
            read.append(list(texts))
            return super().states(texts, max_tokens)

    names = WordEncoder().embed(facets.names)
    likeness = by_text(np.eye(len(facets.years), 64, dtype=np.float32))
    ear = ear_around(facets, Interpreter(64).eval(), names, likeness)
    request = " ".join([*(f"a{i}-b{i}-c{i}" for i in range(20)), "-", "no", "western"])
    found = ear.hear([request, "drama"], Listening())
    pieces = read[-1]
    assert " ".join(pieces) == f"{request} drama"
    assert all(len(words(piece)) < LONGEST for piece in pieces)
    apart = ear.hear(pieces[:-1], WordEncoder())
    torch.testing.assert_close(found.meanings["refuses"][0], apart.meanings["refuses"].amax(dim=0))


def test_how_far_likeness_goes_is_learned() -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(200, 64)).astype(np.float32)
    answers = np.arange(150, dtype=np.int32)
    likeness = by_text(texts)
    twice = likeness.towards(np.stack([texts[0], (texts[0] + texts[0]) / 2]))
    np.testing.assert_allclose(twice @ likeness.texts[0], 1, atol=1e-2)
    said = texts[answers] + rng.normal(size=(150, 64)).astype(np.float32)
    assert likeness.learn(said, answers, texts[:0]).keen >= 8
    assert likeness.learn(said[::-1], answers, texts[:0]).keen <= 1


def test_sentences_of_a_profile() -> None:
    assert sentences_of('You like horror. You thought highly of "Up. Down." Lately "A"; more.') == [
        "You like horror.",
        'You thought highly of "Up.',
        'Down." Lately "A"; more.',
    ]
    assert sentences_of("  ") == []
    assert len(sentences_of("One. " * 50)) == 10


def test_what_names_nothing_is_likened_to_the_texts_of_items(writer: Writer) -> None:
    """A text of the catalog itself, asked for in words that no value stands for, puts its item first."""
    network, names = learned(writer, 0)
    facets = writer.facets
    texts = np.eye(len(facets.years), 64, dtype=np.float32)
    said = WordEncoder().embed(["zebra xylophone"])[0]
    texts[5] = said
    likeness = replace(by_text(texts), keen=8.0)
    ear = ear_around(facets, network, names, likeness)
    asked = ear.hear(["zebra xylophone"], WordEncoder())
    assert asked.meanings["alike"].any()
    without = replace(ear, likeness=replace(likeness, keen=0.0))
    gained = ear.fits(asked)[0] - without.fits(without.hear(["zebra xylophone"], WordEncoder()))[0]
    assert gained.argmax() == 5
    assert gained[5] > 0


def test_what_is_like_the_item_that_is_named_comes_first_and_not_the_item_itself(writer: Writer) -> None:
    """By its text, and by who meets it."""
    network, names = learned(writer, 0)
    facets, n = writer.facets, len(writer.facets.years)
    texts = np.eye(n, 64, dtype=np.float32)
    texts[5] = texts[7]
    met = np.zeros((n, 2), dtype=np.float32)
    met[[7, 9]] = 1, 0
    ear = ear_around(facets, network, names, Likeness.of(texts, met))
    said = [f"like {facets.titles[7]}", "drama", f"show me {facets.titles[7]} again"]
    again = ear.fits(ear.hear(said, WordEncoder()))[2]
    assert again[7] > np.delete(again, 7).max(), "who wants the item itself gets it"
    asked = ear.hear(said[:2], WordEncoder())
    assert asked.like.tolist() == [7, -1]
    gained = ear.fits(asked) - ear.fits(replace(asked, like=np.full(2, -1)))
    assert set(gained[0].argsort()[-2:]) == {5, 9}
    assert gained[0, 7] < np.log(STRICT) / 2
    assert not gained[1].any()
    np.testing.assert_allclose(ear.fits(asked, np.array([9, 7]))[0], ear.fits(asked)[0, [9, 7]], rtol=1e-4)


def test_of_items_that_have_what_is_wanted_those_with_little_else_come_first() -> None:
    """Whatever their decade, of which all have one; and not where nothing is wanted."""
    carried = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.float32)
    eras, years = torch.tensor([False, False, False, True]), torch.full((5,), torch.nan)
    wants = torch.tensor([[0.99, 0, 0, 0], [0.99, 0.99, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.99]])
    meanings = {"wants": wants, "refuses": torch.zeros(4, 4), "like_years": torch.full((4,), torch.nan)}
    meanings |= {"newer": torch.zeros(4), "older": torch.zeros(4)}
    one, two, none, era = log_fits(meanings, carried, years, eras)
    assert one[0] > one[1] > one[2] > one[3]
    assert two[1] > two[2] > two[0]
    assert none.abs().max() == 0
    torch.testing.assert_close(era[[0, 1, 3]], torch.zeros(3))
