"""What becomes of a request in words: whether it is read, what it is taken to mean, and how that is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from doors import NO_OPINION, OPINION, Ears, listening, real_bundle

from checks import HashLM, WordEncoder
from recsys import bundle as bundles
from recsys.bundle import Bundle
from recsys.data.ingest import Dataset
from recsys.errors import ModelError
from recsys.rerank import Fallback, Fused, Identity, PackedConfig
from recsys.rerank.evidence import Evidence
from recsys.rerank.heard import Heard, Meaning, heard, meanings, unread, wanted
from recsys.rerank.packed import PackedJudge
from recsys.rerank.prompt import Prompt
from recsys.settings import Settings
from recsys.spec import Spec, fit
from recsys.tables import Slates

WISH = "western please, no horror"


@pytest.fixture(scope="module")
def bundle(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    plain = real_bundle(tmp_path_factory.mktemp("heard"), tiny)
    return replace(plain, recommender=replace(plain.recommender, reranker=listening(Ears())))


def packed(*conditions: str) -> PackedJudge:
    config = PackedConfig.model_validate({"conditions": conditions})
    return PackedJudge(config, Prompt.read(config.prompt), HashLM(), Evidence())


def test_it_is_said_why_a_request_is_not_read() -> None:
    assert "no reranker" in str(unread(Identity()))
    assert unread(listening(Ears())) is None
    assert unread(listening(packed("request", "recent"))) is None
    assert "fitted without requests" in str(unread(listening(packed("recent", "profile"))))
    assert "make nothing of the opinion" in str(unread(Fallback(Fused(Ears(), 30, {"plain": NO_OPINION}, {}))))
    assert "make nothing of the opinion" in str(unread(listening(Ears(), request=NO_OPINION)))
    assert unread(Fallback(Fused(Ears(), 30, {"plain": NO_OPINION, "request": OPINION}, {}))) is None


def test_a_meaning_is_one_line() -> None:
    meaning = Meaning(("comedy", "the 1990s"), ("horror",), "Heat", "newer")
    assert str(meaning) == 'wants comedy, the 1990s; refuses horror; like "Heat"; newer than "Heat"'
    assert str(Meaning(refuses=("war",))) == "refuses war"
    assert str(Meaning()).startswith("names nothing that this catalog tells apart")


def test_a_model_that_fails_is_no_meaning_and_no_crash(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Ears):
        def understood(self, requests: Any) -> Any:
            raise ModelError("no text encoder is given")

    assert meanings(listening(Mute()), [WISH]) is None
    assert "no text encoder is given" in caplog.text
    assert wanted(listening(Mute()), bundle.queries([1], [WISH])) == {}
    assert meanings(listening(packed("request")), [WISH]) is None


def test_only_who_asks_for_something_wants_something(bundle: Bundle) -> None:
    queries = bundle.queries([1, 2, 3], [WISH, " ", "no horror"])
    assert wanted(bundle.recommender.reranker, queries) == {1: ("western",)}
    assert wanted(Identity(), queries) == {}


def test_a_request_without_items_has_not_failed(bundle: Bundle) -> None:
    slates = bundle.recommender.recommend(bundle.queries([1], [WISH]), 3)
    reranker = bundle.recommender.reranker
    assert heard(reranker, WISH, Slates(slates.frame.clear())).unread is None
    kept = Slates(slates.frame.with_columns(served_by=pl.lit("candidates")))
    assert heard(reranker, WISH, kept) == Heard("the reranker failed, and the candidates' order is shown")


def test_a_fitted_sequence_reranker_hears_requests_from_its_bundle(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []
    read: list[Any] = []

    class Counting(WordEncoder):
        def states(self, texts: Any, max_tokens: int) -> Any:
            read.append(list(texts))
            return super().states(texts, max_tokens)

    def encoder(*_: Any) -> WordEncoder:
        loaded.append(1)
        return Counting()

    monkeypatch.setattr("recsys.spec.load_encoder", encoder)
    monkeypatch.setattr("recsys.bundle.load_encoder", encoder)
    small = {"dim": 16, "layers": 1, "length": 10, "epochs": 1, "finish": 0, "heldout": 10, "told": 5}
    # So short a training understands nothing.
    reranker = {"kind": "sequence", "written": 120, "exercises": 1, "understood": 0, "tune_users": 20, **small}
    spec = Spec.model_validate({"generator": {"kind": "popular"}, "lm": {"kind": "none"}, "reranker": reranker})
    settings = Settings(cache_dir=tmp_path / "cache", offline=True, device="cpu")
    line = fit(tiny, spec, settings, seed=0).recommender
    assert isinstance(line.reranker, Fallback)
    assert isinstance(line.reranker.primary, Fused)
    # So short a training may be worth no weight, and a judge that is not asked would prove nothing.
    loud = Fallback(replace(line.reranker.primary, fusions={"plain": OPINION}))
    path = bundles.write(tmp_path / "bundle", replace(line, reranker=loud), tiny, spec=spec)
    bundle = bundles.load(path, settings)
    del loaded[:], read[:]
    slates = bundle.recommender.recommend(bundle.queries([1, 2], [WISH, ""]), 5)
    became = heard(bundle.recommender.reranker, WISH, slates)
    assert read == [[WISH]], "the request is encoded once for its order, its reasons and what is said of it"
    (said,) = line.reranker.primary.judge.understood([WISH])  # type: ignore[attr-defined]
    assert became == Heard(
        meaning=Meaning(**{**said, "wants": tuple(said["wants"]), "refuses": tuple(said["refuses"])})
    )
    assert slates.frame["served_by"].unique().to_list() == ["reranker"]
    assert len(loaded) == 1, "the encoder is loaded once, not with every request"


def test_requests_of_which_too_little_is_understood_are_not_read(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("recsys.spec.load_encoder", lambda *_: WordEncoder())
    small = {"dim": 16, "layers": 1, "length": 10, "epochs": 1, "finish": 0, "heldout": 10, "told": 5}
    reranker = {"kind": "sequence", "written": 60, "exercises": 1, "tune_users": 20, **small}
    spec = Spec.model_validate({"generator": {"kind": "popular"}, "lm": {"kind": "none"}, "reranker": reranker})
    settings = Settings(cache_dir=tmp_path / "cache", offline=True, device="cpu")
    with caplog.at_level("WARNING"):
        fitted = fit(tiny, spec, settings, seed=0)
    assert "is understood: they will not be read" in caplog.text
    assert fitted.tuning["reranker"]["training"]["understood"] < 0.3
    assert "learned no requests" in str(unread(fitted.recommender.reranker))
