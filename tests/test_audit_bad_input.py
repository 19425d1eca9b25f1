"""The audit of bundles that lack something: figures for what there is, or an error that says what is missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from doors import real_bundle
from typer.testing import CliRunner

from checks import WordEncoder
from recsys.audit import Audit, audit, write_audit
from recsys.bundle import Bundle
from recsys.cli import app
from recsys.data.ingest import Dataset
from recsys.errors import SpecError, StorageError, WeightsError
from recsys.profiles import EvidenceProfiles
from recsys.profiles.edits import Edit, Edits
from recsys.settings import Settings
from recsys.tables import Catalog, InteractionLog


@pytest.fixture(scope="module")
def bundle(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return real_bundle(tmp_path_factory.mktemp("bad"), tiny)


def audited(bundle: Bundle, cache: Path, users: int = 20) -> Audit:
    settings = Settings(cache_dir=cache, offline=True)
    return audit(bundle, settings, users=users, edits=4, lies=6, encoder=WordEncoder(), progress=False)


def over(bundle: Bundle, profiles: EvidenceProfiles) -> Bundle:
    return replace(bundle, recommender=replace(bundle.recommender, profiles=profiles))


def test_a_catalog_without_attributes_is_audited_by_what_it_has(tiny: Dataset, tmp_path: Path) -> None:
    bare = Catalog(tiny.catalog.frame.select("item_id", "title", "text"))
    found = audited(real_bundle(tmp_path, replace(tiny, catalog=bare)), tmp_path)
    files = write_audit(tmp_path / "out", found)
    figures = json.loads(files[0].read_text("utf-8"))
    assert figures["claim_precision"] == 1.0
    assert figures["planted_caught"] is None
    assert "can be lied about" in figures["faithfulness"]["unread"]
    assert figures["usefulness"]["users"] == 20
    assert "can be lied about" in files[1].read_text("utf-8")


def test_one_user_is_too_few(bundle: Bundle, tmp_path: Path) -> None:
    """Nobody else's profile is there to compare with."""
    user = bundle.log.frame["user_id"][0]
    alone = replace(bundle, log=InteractionLog(bundle.log.frame.filter(user_id=user)))
    with pytest.raises(SpecError, match="1 users have 4 events or more, 2 are needed"):
        audited(alone, tmp_path)


def test_without_the_encoders_weights_nothing_is_measured(bundle: Bundle, settings: Settings) -> None:
    with pytest.raises(WeightsError):
        audit(bundle, settings, progress=False)


def test_a_folder_that_is_in_use_is_refused_before_the_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_CACHE_DIR", str(tmp_path / "cache"))  # without weights: whoever begins to work fails
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("of the user's own")
    command = ["profile", "audit", "--bundle", str(bundle.path), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, StorageError)
    assert "give --replace" in str(refused.exception)
    assert isinstance(CliRunner().invoke(app, [*command, "--replace"]).exception, WeightsError)
    assert (tmp_path / "out" / "mine.txt").read_text() == "of the user's own"


def test_texts_that_are_shipped_are_read_though_a_model_wrote_them_earlier(bundle: Bundle, tmp_path: Path) -> None:
    own = bundle.recommender.profiles
    assert isinstance(own, EvidenceProfiles)
    queries = bundle.queries()
    false = "You love horror, westerns and operas, and you have rated 9999 films since 1903."
    rows = [
        {
            "evidence_hash": e.hash,
            "user_id": str(user),
            "evidence": e.json,
            "text": false,
            "prompt_id": "old",
            "model_id": "careless",
            "as_of": e.last,
        }
        for user, e in zip(queries.frame["user_id"], own.evidence(queries), strict=True)
    ]
    written = own.with_store(own.store.add(pl.DataFrame(rows, schema=own.store.SCHEMA)))
    found = audited(over(bundle, written), tmp_path)
    figures = found.as_dict()
    assert figures["claim_precision"] < 0.5
    assert 15 <= figures["faithfulness"]["by_model"] < 20  # a model's text of four events is not shown
    assert figures["raw_lm_failure_rate"] is None
    assert "keeps only what was repaired" in figures["raw_lm_failure_why_null"]
    # Whole histories were told of: such a text would know what is held out.
    assert figures["usefulness"]["profile"] == audited(bundle, tmp_path).as_dict()["usefulness"]["profile"]


def test_what_users_say_of_themselves_is_not_doubted(bundle: Bundle, tmp_path: Path) -> None:
    own = bundle.recommender.profiles
    assert isinstance(own, EvidenceProfiles)
    said = [Edits.of(user, Edit(0, "say", text="nothing but opera")) for user in bundle.log.frame["user_id"].unique()]
    found = audited(over(bundle, own.with_edits(Edits(pl.concat([one.frame for one in said])))), tmp_path)
    assert found.truth.precision == 1.0
    assert not any("opera" in sample.text for sample in found.samples)


def test_titles_with_markup_are_shown_as_they_are_written(tiny: Dataset, tmp_path: Path) -> None:
    marked = tiny.catalog.frame.with_columns(title=pl.lit("<img src=x onerror=alert(1)> & ") + pl.col("title"))
    found = audited(real_bundle(tmp_path, replace(tiny, catalog=Catalog(marked))), tmp_path)
    page: Any = write_audit(tmp_path / "out", found)[1].read_text("utf-8")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; " in page
