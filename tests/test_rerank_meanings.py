"""What requests mean, learned once for all catalogs: made-up catalogs, what is shipped, and when it is used."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checks import WordEncoder, with_word_vectors
from recsys.data.vocab import Vocab
from recsys.errors import BundleError, SpecError
from recsys.networks.items import centred, item_vectors
from recsys.rerank import SequenceConfig
from recsys.rerank import meanings as module
from recsys.rerank.clauses import pieces_of, put_plainly
from recsys.rerank.hearing import SURE
from recsys.rerank.interpret import RIVALS, Interpreter, Words, rivals
from recsys.rerank.meanings import ear_of, heard_right
from recsys.rerank.requests import Facets, Wording, Writer
from recsys.rerank.shipped import FACTS, FOLDER, restored, rounded, shipped
from recsys.rerank.worlds import read_values, said_otherwise, world
from recsys.settings import Settings

HELD_OUT = Path(__file__).parent / "bench" / "requests-held-out.txt"
# Nothing is read of a catalog but what it can be asked for.
CONFIG = SequenceConfig(written=600, exercises=1, understood=0.05)


# Catalogs that do not exist.


def test_requests_of_made_up_worlds_are_true_of_their_items() -> None:
    writer = world(400, Wording.read(), 0.0, seed=1)
    items = np.arange(400, dtype=np.int32)
    for item, request in zip(items, writer.write(items, 2), strict=True):
        assert writer.facets.fits(request)[item], request
        for value in (*request.wants, *request.refuses):
            assert any(way in request.text for way in writer.facets.spoken[value]), request


def test_a_made_up_item_has_values_of_one_kind_of_catalog_only() -> None:
    values = read_values()
    domains = {v.name.lower(): {w.domain for w in values if w.name.lower() == v.name.lower()} for v in values}
    facets = world(300, Wording.read(), 0.0, seed=0).facets
    for item in range(300):
        own = [
            domains[way] for f in np.flatnonzero(facets.carried[item]) if (way := facets.names[f].lower()) in domains
        ]
        assert not own or set.intersection(*own), [facets.names[f] for f in np.flatnonzero(facets.carried[item])]


def test_other_ways_to_say_a_value_are_said() -> None:
    facets = world(50, Wording.read(), 0.0, seed=0).facets
    horror = next(ways for ways in facets.spoken if ways[0] == "horror")
    assert "something scary" in horror


def test_values_that_cannot_be_read_are_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "values.txt"
    file.write_text("# a comment\n[films]\ngenre: horror | comedy = a funny one\nno colon here\n")
    with pytest.raises(SpecError, match=r"values.txt, line 4: not \"attribute: value \| value\""):
        read_values(file)
    file.write_text("genre: horror\n")
    with pytest.raises(SpecError, match=r"line 1: .*below a \[kind of catalog\]"):
        read_values(file)


def test_values_that_could_be_mistaken_for_each_other_are_told_apart_in_training() -> None:
    rng = np.random.default_rng(0)
    names = rng.normal(size=(30, 16))
    names[1] = names[0] + 0.01 * rng.normal(size=16)  # the same in other words
    names[2] = names[0] + 0.8 * rng.normal(size=16)  # like it
    near = rivals(names.astype(np.float32))
    assert near.shape == (30, RIVALS)
    assert 2 in near[0]
    assert 1 not in near[0]
    assert all(value not in row for value, row in enumerate(near))


# What is shipped.


def folder_of(path: Path, network: Interpreter, encoder_id: str = "words@1") -> Path:
    from safetensors.numpy import save

    path.mkdir()
    data = save(rounded({name: value.numpy() for name, value in network.state_dict().items()}))
    (path / "words.safetensors").write_bytes(data)
    facts = [{"encoder": encoder_id, "file": "words.safetensors", "sha256": hashlib.sha256(data).hexdigest()}]
    (path / FACTS).write_text(json.dumps(facts))
    return path


def test_a_network_is_used_for_its_own_encoder_only(tmp_path: Path) -> None:
    network = Interpreter(64).eval()
    folder = folder_of(tmp_path / "shipped", network, "some/words@abc")
    found = shipped("a copy elsewhere@abc", folder)
    assert found is not None
    for one, other in zip(found.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=float(other.detach().abs().max()) / 200, rtol=0)
    assert shipped("some/words@other", folder) is None
    assert shipped("some/words@abc", tmp_path) is None


def test_weights_are_rounded_row_by_row() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 40)).astype(np.float32) * np.array([1e-3, 1, 10, 0, 1e3], np.float32)[:, None]
    state = {"a.weight": matrix, "a.bias": rng.normal(size=7).astype(np.float32)}
    kept = rounded(state)
    assert kept["a.weight"].dtype == np.int8
    again = restored(kept)
    assert set(again) == set(state)
    assert (np.abs(again["a.weight"] - matrix) <= np.abs(matrix).max(axis=1, keepdims=True) / 253).all()
    np.testing.assert_allclose(again["a.bias"], state["a.bias"], rtol=1e-3)


def test_a_shipped_file_that_was_altered_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shipped", Interpreter(64))
    file = folder / "words.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"words.safetensors: is not the file that was shipped .*: reinstall"):
        shipped("words@1", folder)


# Which one is used.


@pytest.fixture(scope="module")
def writer(world_catalog: Any) -> Writer:
    vocab = Vocab.of_items(world_catalog)
    facets = Facets.of(world_catalog, vocab, np.arange(len(vocab), dtype=np.int32))
    return Writer(facets, Wording.read().split()[0], centred(item_vectors(world_catalog, vocab)))


@pytest.fixture(scope="module")
def world_catalog(world: Any) -> Any:
    return with_word_vectors(world.catalog)


def heard_by(config: SequenceConfig, writer: Writer, catalog: Any, folder: Path) -> Any:
    texts = item_vectors(catalog, Vocab.of_items(catalog))
    settings = Settings(cache_dir=folder, device="cpu", offline=True)
    frequency = np.ones(len(texts), dtype=np.int64)
    return ear_of(config, writer, writer, frequency, texts, WordEncoder(), settings, 0)


def test_learning_goes_on_from_what_is_shipped_and_leaves_it_as_it_is(
    writer: Writer, world_catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        start = Interpreter(64).eval()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    monkeypatch.setattr(module, "shipped", lambda _: start)
    ear, report = heard_by(CONFIG.model_copy(update={"written": 200}), writer, world_catalog, tmp_path)
    assert report["meanings"] == "shipped"
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    learned = ear.interpreter.state_dict()["words.weight"]
    assert not torch.equal(learned, before["words.weight"])
    assert torch.corrcoef(torch.stack([learned.flatten(), before["words.weight"].flatten()]))[0, 1] > 0.9


def test_a_catalogs_own_training_moves_the_shipped_weights_a_part_of_the_way(
    writer: Writer, world_catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = []
    for seed in (5, 6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            networks.append(Interpreter(64).eval())
    start, learned = networks
    monkeypatch.setattr(module, "shipped", lambda _: start)
    monkeypatch.setattr(module, "train_interpreter", lambda *_: learned)
    ear, _ = heard_by(CONFIG.model_copy(update={"written": 100}), writer, world_catalog, tmp_path)
    own, before, after = (network.state_dict() for network in (ear.interpreter, start, learned))
    assert module.OWN == 0.7
    for name in own:
        assert torch.allclose(own[name], 0.3 * before[name] + 0.7 * after[name], atol=1e-6), name


def test_who_asks_for_learned_meanings_starts_from_nothing(
    writer: Writer, world_catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def learn(_: Any, __: Any, names: Any, n: int, *rest: Any) -> Interpreter:
        assert rest[-1] is None
        passes.append(n)
        return Interpreter(names.shape[1]).eval()

    monkeypatch.setattr(module, "shipped", None)  # is not asked for
    monkeypatch.setattr(module, "train_interpreter", learn)
    config = CONFIG.model_copy(update={"meanings": "learned", "exercises": 2})
    _, report = heard_by(config, writer, world_catalog, tmp_path)
    assert report["meanings"] == "learned"
    assert passes == [8]


def test_a_catalogs_values_are_said_in_other_ways_where_these_are_known() -> None:
    spoken = said_otherwise([("horror", "horror films"), ("Yoko Ono",), ("the 1990s", "the nineties")])
    assert spoken[0][:2] == ("horror", "horror films")
    assert "something scary" in spoken[0]
    assert spoken[1:] == (("Yoko Ono",), ("the 1990s", "the nineties"))


def test_where_too_little_is_understood_requests_are_not_read(
    writer: Writer, world_catalog: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CONFIG.model_copy(update={"understood": 1.0, "written": 100, "exercises": 1})
    ear, report = heard_by(config, writer, world_catalog, tmp_path)
    assert not ear.learned
    assert report["understood"] < 1
    assert "raise reranker.written or reranker.exercises, or lower reranker.understood" in caplog.text


# With the real encoder.


@pytest.mark.weights
def test_what_is_shipped_is_for_the_default_encoder_and_understands_new_words(encoder: Any) -> None:
    network = shipped(encoder.model_id)
    assert network is not None
    other = world(400, Wording.read(HELD_OUT), 0.0, seed=5)
    requests = other.write(np.arange(400, dtype=np.int32), 6)
    words, names = Words.of_requests(requests, encoder), encoder.embed(list(other.facets.names))
    found = heard_right(network, requests, words, names)
    assert min(found["wanted"], found["refused"]) > 0.85, found
    assert found["falsely"] < 1.5, found  # of some 800 values


@pytest.mark.weights
def test_a_few_requests_are_enough_where_learning_goes_on_from_what_is_shipped(
    encoder: Any, writer: Writer, world_catalog: Any, tmp_path: Path
) -> None:
    """Learned from nothing, as many as these teach next to nothing."""
    shares = {}
    for meanings in ("shipped", "learned"):
        config = CONFIG.model_copy(update={"meanings": meanings, "written": 300})
        settings = Settings(cache_dir=tmp_path / meanings, device="cpu", offline=True)
        texts = encoder.embed(list(world_catalog.frame["title"]))
        frequency = np.ones(len(texts), dtype=np.int64)
        _, report = ear_of(config, writer, writer, frequency, texts, encoder, settings, 0)
        shares[meanings] = report["understood"]
    assert shares["shipped"] > 0.8, shares
    assert shares["learned"] < 0.5, shares


@pytest.mark.weights
@pytest.mark.parametrize(
    ("text", "wants", "refuses"),
    [
        ("something light and funny, no horror", {"comedy"}, {"horror"}),
        ("comedy", {"comedy"}, set()),
        ("a comedy, nothing scary", {"comedy"}, {"horror"}),
        ("a western from the sixties", {"western", "the 1960s"}, set()),
        ("anything but a thriller", set(), {"thriller"}),
        ("singing and dancing, nothing serious", {"musical"}, {"drama"}),
        ("a comedy without horror", {"comedy"}, {"horror"}),
        ("western but not from the sixties", {"western"}, {"the 1960s"}),
        ("nothing from the 1990s", set(), {"the 1990s"}),
        ("no horror, no drama, no comedy", set(), {"horror", "drama", "comedy"}),
        ("not horror but something funny", {"comedy"}, {"horror"}),
        ("something funny but not dramatic", {"comedy"}, {"drama"}),
        ("a western movie that isn't a comedy", {"western"}, {"comedy"}),
        ("nothing but westerns", {"western"}, set()),
    ],
)
def test_plain_words_are_understood(encoder: Any, text: str, wants: set[str], refuses: set[str]) -> None:
    names = ["comedy", "horror", "western", "musical", "thriller", "drama", "documentary", "the 1960s", "the 1990s"]
    network = shipped(encoder.model_id)
    assert network is not None
    heard = network.meanings(Words.of(pieces_of(put_plainly(text, tuple(names))), encoder), encoder.embed(names))
    found = {
        name: {n for n, p in zip(names, heard[name].amax(dim=0), strict=True) if p > SURE}
        for name in ("wants", "refuses")
    }
    assert found == {"wants": wants, "refuses": refuses}


def test_the_card_names_what_is_shipped() -> None:
    card = (FOLDER / "README.md").read_text("utf-8")
    for facts in json.loads((FOLDER / FACTS).read_text("utf-8")):
        assert facts["sha256"] in card
        assert facts["encoder"].rpartition("@")[0] in card
        assert len((FOLDER / facts["file"]).read_bytes()) < 15e6


@pytest.mark.weights
def test_what_is_shipped_can_be_made_anew(encoder: Any, weights_settings: Any, tmp_path: Path) -> None:
    """The recipe, at a hundredth of its size."""
    options = {"out": tmp_path, "requests": 300, "passes": 1, "tested": 50, "phrases": HELD_OUT}
    done = subprocess.run(
        [sys.executable, "pipelines/train_meanings.py", *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, "RECSYS_OFFLINE": "1", "RECSYS_CACHE_DIR": str(weights_settings.cache_dir)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (facts,) = json.loads((tmp_path / FACTS).read_text("utf-8"))
    assert set(facts["figures"]) == {"kept", "requests-held-out"}
    assert all(value >= 0 for found in facts["figures"].values() for value in found.values())
    assert shipped(encoder.model_id, tmp_path) is not None
