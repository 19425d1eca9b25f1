"""A bundle comes back as it was, or not at all."""

import json
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from checks import HashLM, assert_no_pickle
from recsys import bundle
from recsys.candidates import FusionConfig, PopularConfig, TransitionsConfig
from recsys.errors import BundleError, SpecError, StorageError, UnknownItemError, UnknownUserError
from recsys.lm import LMConfig
from recsys.rerank import PackedConfig
from recsys.spec import Spec, fit
from recsys.tables import Queries

SPEC = Spec(generator=FusionConfig(sources=(TransitionsConfig(), PopularConfig())), lm=LMConfig(kind="none"))


@pytest.fixture(scope="module")
def fitted(tiny, weights_settings):
    return fit(tiny, SPEC, weights_settings, seed=0).recommender


@pytest.fixture
def folder(fitted, tiny, tmp_path):
    return bundle.write(tmp_path / "bundle", fitted, tiny, spec=SPEC)


def test_a_bundle_recommends_what_was_fitted(fitted, folder, weights_settings):
    loaded = bundle.load(folder, weights_settings)
    queries = loaded.queries()
    assert_frame_equal(loaded.recommender.recommend(queries, 5).frame, fitted.recommend(queries, 5).frame)
    assert_no_pickle(folder)


def test_one_user_gets_the_same_alone_as_among_all(folder, weights_settings):
    loaded = bundle.load(folder, weights_settings)
    together = loaded.recommender.recommend(loaded.queries(), 10).frame
    for user in loaded.log.frame["user_id"].unique().sort().head(10):
        alone = loaded.recommender.recommend(loaded.queries([user]), 10).frame
        assert_frame_equal(alone, together.filter(pl.col("query_id") == user))


def test_every_altered_file_is_found_out(folder, weights_settings):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 5
    for path in files:
        body = path.read_bytes()
        for place in {0, len(body) // 2, len(body) - 1}:
            path.write_bytes(body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
            with pytest.raises(BundleError):
                bundle.load(folder, weights_settings)
        path.write_bytes(body)
    bundle.load(folder, weights_settings)


def test_missing_and_added_files_are_named(folder, weights_settings):
    (folder / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.txt: does not belong"):
        bundle.load(folder, weights_settings)
    (folder / "extra.txt").unlink()
    (folder / "catalog.parquet").unlink()
    with pytest.raises(BundleError, match=r"catalog\.parquet: is missing"):
        bundle.load(folder, weights_settings)


def test_a_folder_without_a_manifest_and_another_format_are_refused(folder, tmp_path, weights_settings):
    with pytest.raises(BundleError, match="no bundle here"):
        bundle.load(tmp_path / "nothing", weights_settings)
    manifest = folder / "manifest.json"
    body = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**body, "format": 99}))
    with pytest.raises(BundleError, match="format 99"):
        bundle.load(folder, weights_settings)


def test_a_bundle_is_not_written_over_another(folder, fitted, tiny):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(StorageError, match="not empty"):
        bundle.write(folder, fitted, tiny, spec=SPEC)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert bundle.write(folder, fitted, tiny, spec=SPEC, replace=True) == folder


def test_a_folder_of_the_users_own_is_never_replaced(fitted, tiny, tmp_path):
    mine = tmp_path / "precious"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="not empty"):
        bundle.write(mine, fitted, tiny, spec=SPEC, replace=True)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_shows_before_the_work():
    with pytest.raises(StorageError, match="choose another place") as error:
        bundle.refuse_taken(Path("/proc/nowhere/bundle"))
    assert "free space" not in str(error.value)


def test_a_recipe_that_this_version_cannot_read_says_to_refit(folder, weights_settings):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["spec"]["generator"]["novelty"] = 1
    (folder / "manifest.json").write_text(bundle._sealed(manifest))
    with pytest.raises(BundleError, match="refit"):
        bundle.load(folder, weights_settings)


def test_a_bundle_whose_weights_ignore_the_model_opens_without_it(world, settings, tmp_path):
    deaf = PackedConfig(depth=5, tune_users=30, conditions=("recent", "profile"))
    spec = SPEC.model_copy(update={"lm": LMConfig(), "reranker": deaf})
    line = fit(world, spec, settings, seed=0, lm=HashLM())
    assert line.tuning["reranker"]["weights"]["lm"] == 0.0
    path = bundle.write(tmp_path / "bundle", line.recommender, world, spec=spec)
    loaded = bundle.load(path, settings)  # these settings have no weights at all
    queries = Queries(loaded.queries().frame.head(5))
    assert_frame_equal(loaded.recommender.recommend(queries, 5).frame, line.recommender.recommend(queries, 5).frame)


def test_a_full_disk_leaves_no_half_written_bundle(fitted, tiny, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(StorageError, match="No space left"):
        bundle.write(tmp_path / "bundle", fitted, tiny, spec=SPEC)
    assert list(tmp_path.iterdir()) == []


def test_unknown_ids_are_named(folder, weights_settings):
    loaded = bundle.load(folder, weights_settings)
    with pytest.raises(UnknownUserError, match="nobody"):
        loaded.queries(["nobody"])
    with pytest.raises(UnknownUserError, match=r"'00\d+' is no whole number"):
        loaded.queries([f"00{loaded.log.frame['user_id'][0]}"])
    with pytest.raises(UnknownItemError, match=r"history\[1\] = 'nothing'"):
        loaded.adhoc([loaded.catalog.frame["item_id"][0], "nothing"])


def test_users_come_back_in_the_order_asked_and_ids_may_be_text(folder, weights_settings):
    loaded = bundle.load(folder, weights_settings)
    users = loaded.log.frame["user_id"].unique(maintain_order=True).to_list()
    asked = [str(users[4]), str(users[1]), str(users[2])]
    assert loaded.queries(asked).frame["user_id"].to_list() == [users[4], users[1], users[2]]


def test_k_must_fit_the_catalog(folder, weights_settings):
    loaded = bundle.load(folder, weights_settings)
    for k in (0, len(loaded.catalog) + 1):
        with pytest.raises(SpecError, match=f"k = {k}"):
            loaded.recommender.recommend(loaded.queries(), k)


def test_a_history_nobody_stored_is_answered_now(folder, weights_settings):
    loaded = bundle.load(folder, weights_settings)
    item, title = loaded.catalog.frame.select("item_id", "title").row(3)
    profile = loaded.recommender.profiles.as_of(loaded.adhoc([item] * 4)).frame["text"][0]
    assert title in profile, "what a visitor names counts as liked, also where the log is rated"
    slates = loaded.recommender.recommend(loaded.adhoc([item]), 5).frame
    assert len(slates) == 5
    assert item not in slates["item_id"].to_list()
    assert len(loaded.recommender.recommend(loaded.adhoc([]), 5)) == 5


def test_the_recipe_in_a_bundle_leaves_nothing_to_the_machine(world, settings):
    spec = SPEC.model_copy(update={"lm": LMConfig(dtype="auto", record=True)})
    lm = fit(world, spec, settings, seed=0, lm=HashLM()).spec.lm
    assert lm.dtype in ("float32", "bfloat16")
    assert not lm.record, "a server must not write what it is asked into a cache"
