"""The audit of profiles: what it finds where the answer is known, and what it writes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from doors import real_bundle
from typer.testing import CliRunner

from checks import SayingLM, WordEncoder, with_word_vectors
from recsys.audit import Audit, audit, write_audit
from recsys.audit.freshness import THRESHOLDS, freshness
from recsys.audit.page import render
from recsys.audit.run import Sample
from recsys.audit.truth import truth
from recsys.audit.usefulness import DEPTH, Cut, Remembered, Retrieval, strangers, usefulness
from recsys.bundle import Bundle
from recsys.cli import app
from recsys.data.vocab import Vocab
from recsys.errors import SpecError
from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.evidence import Evidence, Trait
from recsys.profiles.rhythm import OFTEN, PACE
from recsys.settings import Settings
from recsys.tables import Catalog, InteractionLog


@pytest.fixture(scope="module")
def bundle(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return real_bundle(tmp_path_factory.mktemp("audit"), world)


@pytest.fixture(scope="module")
def cut(world: Any) -> Cut:
    return Cut.of(world.log, 120, 0)


@pytest.fixture(scope="module")
def retrieval(world: Any, cut: Cut) -> Retrieval:
    return Retrieval.of(cut, with_word_vectors(world.catalog), Remembered(WordEncoder()))


@pytest.fixture(scope="module")
def early(world: Any, cut: Cut) -> EvidenceProfiles:
    return ProfilesConfig().fit(cut.before, world.catalog, rated=world.rated, seed=0)


@pytest.fixture(scope="module")
def found(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    settings = Settings(cache_dir=tmp_path_factory.mktemp("cache"), offline=True)
    return audit(bundle, settings, users=60, edits=20, lies=30, encoder=WordEncoder(), progress=False)


def test_a_cut_holds_back_everybodys_second_half_and_asks_about_the_sampled(world: Any, cut: Cut) -> None:
    users = cut.queries.frame["user_id"]
    assert len(users) == 120 == users.n_unique()
    before, whole = (dict(log.frame.group_by("user_id").len().iter_rows()) for log in (cut.before, world.log))
    assert set(whole) > set(users)
    assert all(before[user] == (-(-n // 2) if n >= 4 else n) for user, n in whole.items())
    assert cut.before.frame.equals(Cut.of(world.log, 7, 1).before.frame)  # whoever is sampled
    last = dict(world.log.frame.group_by("user_id").agg(pl.col("item_id").last()).iter_rows())
    for row, after in zip(cut.queries.frame.iter_rows(named=True), cut.after, strict=True):
        assert not set(after) & set(row["history"])
        assert last[row["user_id"]] in {*after, *row["history"]}


def test_too_few_events_are_said_to_be_too_few(world: Any) -> None:
    few = InteractionLog(world.log.frame.group_by("user_id", maintain_order=True).head(3))
    with pytest.raises(SpecError, match="0 users have 4 events or more"):
        Cut.of(few, 10, 0)


def test_recall_is_the_share_of_what_was_held_out_and_met_items_take_no_place(retrieval: Retrieval) -> None:
    n, items = len(retrieval.cut.queries), len(retrieval.vocab)
    oracle = np.zeros((n, items), dtype=np.float32)
    met = np.zeros((n, items), dtype=np.float32)
    for row, after in enumerate(retrieval.cut.after):
        oracle[row, retrieval.vocab.encode(pl.Series(after))] = 1
        met[row, retrieval.vocab.encode(retrieval.cut.queries.frame["history"][row])] = 1
    assert retrieval.recall(oracle).tolist() == [1.0] * n
    assert retrieval.recall(oracle + 2 * met).tolist() == [1.0] * n
    chance = retrieval.recall(np.random.default_rng(0).random((n, items)).astype(np.float32)).mean()
    assert chance == pytest.approx(min(1, DEPTH / items), rel=0.15)


def test_texts_are_compared_without_what_all_items_share(retrieval: Retrieval, world: Any) -> None:
    """The text that is the mean of the catalog is like nothing; each item's own text is likest to that item."""
    titles = world.catalog.frame.sort("item_id")["text"].to_list()
    scores = retrieval.by_text(titles)
    order = retrieval.vocab.encode(world.catalog.frame.sort("item_id")["item_id"])
    assert (scores[np.arange(len(titles)), order] >= scores.max(axis=1) - 1e-5).mean() > 0.95
    mean = replace(retrieval, encoder=Mean(retrieval.shared))  # type: ignore[arg-type]  # says one vector of everything
    assert np.abs(mean.by_text(["anything"])).max() < 1e-6


class Mean:
    def __init__(self, vector: Any) -> None:
        self.vector = vector

    def embed(self, texts: Any) -> Any:
        return np.stack([self.vector for _ in texts])


def test_an_item_that_the_catalog_lacks_cannot_be_found(cut: Cut, world: Any) -> None:
    gone = set(cut.after[0])
    catalog = Catalog(world.catalog.frame.filter(~pl.col("item_id").is_in(gone)))
    lost = Retrieval.of(cut, with_word_vectors(catalog), Remembered(WordEncoder()))
    recall = lost.recall(np.zeros((len(cut.queries), len(lost.vocab)), dtype=np.float32))
    assert np.isnan(recall[0])
    assert np.isfinite(recall).any()


def test_a_text_that_tells_what_comes_next_finds_more_than_another_users(
    retrieval: Retrieval, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.audit.usefulness.DEPTH", 20)
    texts = [" ".join(retrieval.titles[item] for item in after) for after in cut.after]
    found = usefulness(retrieval, texts, texts, seed=0)
    assert found.over["stranger"].ci95[0] > 0
    assert found.over["template"].delta == 0
    assert found.recall["profile"][0] > 1.2 * found.recall["stranger"][0]
    nothing = usefulness(retrieval, ["the same for everybody"] * len(texts), texts, seed=0)
    assert nothing.over["stranger"].delta == 0
    assert nothing.over["template"].ci95[1] < 0


def test_every_stranger_is_another_one() -> None:
    for n in (2, 3, 50):
        other = strangers(n, 1)
        assert sorted(other) == list(range(n))
        assert all(row != place for place, row in enumerate(other))


def test_what_is_held_out_changes_no_profile_of_the_audit(bundle: Bundle, tmp_path: Path) -> None:
    """Usefulness would be a leak if the profiles knew what users chose after the cut."""
    from recsys.audit.run import _fitted

    own = bundle.recommender.profiles
    assert isinstance(own, EvidenceProfiles)
    cut = Cut.of(bundle.log, 100, 0)
    frame = bundle.log.frame.with_row_index("row")
    known = cut.before.frame.join(frame, on=["user_id", "item_id", "ts"], how="inner", nulls_equal=True)["row"]
    shuffled = frame.with_columns(
        item_id=pl.when(pl.col("row").is_in(known.implode()))
        .then(pl.col("item_id"))
        .otherwise(pl.lit(frame["item_id"][0]))
    ).drop("row")
    other = Cut.of(InteractionLog(shuffled), 100, 0)
    texts = [_fitted(bundle, own, one, 0).as_of(one.queries).frame["text"].to_list() for one in (cut, other)]
    assert texts[0] == texts[1]


def test_freshness_is_bounded_by_always_and_never(early: EvidenceProfiles, world: Any) -> None:
    later = Cut.of(world.log, 80, 0, share=0.8)
    retrieval = Retrieval.of(later, with_word_vectors(world.catalog), Remembered(WordEncoder()))
    seen: list[int] = []
    found = freshness(later, retrieval, early, seed=0, thresholds=(0.0, 0.2, 0.5, 1.01), step=lambda: seen.append(1))
    skipped = [kept.skipped for kept in found.kept]
    assert skipped[0] == 0
    assert skipped[-1] > 0.5
    assert skipped == sorted(skipped)
    assert found.kept[0].change.delta == 0
    assert found.equal == 1.0
    assert len(seen) == 4
    assert found.at(0.25).threshold == 0.2
    never = freshness(later, retrieval, early, seed=0, thresholds=(1.01,))
    assert never.kept[0].skipped == found.kept[-1].skipped


def test_a_false_text_lowers_precision(early: EvidenceProfiles, cut: Cut) -> None:
    evidence = early.evidence(cut.queries)
    texts = early.as_of(cut.queries).frame["text"].to_list()
    sound = truth(early, evidence, texts, lies=12, seed=0)
    assert sound.precision == 1.0
    assert sound.coverage is not None
    assert sound.coverage > 0.98  # a text has room for so much
    assert sound.doubted == 0
    assert sound.caught is not None
    assert sound.caught["all"] >= 0.9
    swapped = truth(early, evidence, [texts[row] for row in strangers(len(texts), 0)], lies=12, seed=0)
    assert swapped.precision is not None
    assert swapped.precision < 0.9
    assert swapped.doubted is not None
    assert swapped.doubted > 0.9


def test_in_a_language_that_is_not_read_truth_is_not_claimed(world: Any, cut: Cut) -> None:
    config = ProfilesConfig(wording="phrases-de")
    german = config.fit(cut.before, world.catalog, rated=world.rated, seed=0)
    texts = german.as_of(cut.queries).frame["text"].to_list()
    found = truth(german, german.evidence(cut.queries), texts, lies=6, seed=0)
    if german.phrases.words["reading"] == "none":
        assert found.precision is None
        assert "cannot be checked" in str(found.unread)
    else:
        assert found.precision == 1.0


def test_the_figures_are_there_and_written_whole(found: Audit, tmp_path: Path) -> None:
    files = write_audit(tmp_path / "out", found)
    figures = json.loads(files[0].read_text("utf-8"))
    assert figures["claim_precision"] == 1.0
    assert figures["raw_lm_failure_rate"] is None
    assert figures["raw_lm_failure_why_null"].startswith("no model wrote")
    assert figures["planted_caught"] >= 0.9
    assert figures["steer_rate"] >= 0.9
    assert 0 <= figures["skipped_regenerations"] <= 1
    assert figures["tokens"] == {"prompt": 0, "completion": 0}
    assert figures["seconds"] > 0
    for kind in ("profile", "template", "titles", "stranger", "history", "popular"):
        low, high = figures["usefulness"][kind]["ci95"]
        assert low <= figures["usefulness"][kind]["recall@100"] <= high
    page = files[1].read_text("utf-8")
    assert page.count('class="user"') == 20
    assert "http:" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "<script" not in page


def test_the_same_seed_gives_the_same_figures(found: Audit, bundle: Bundle, tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path, offline=True)
    again = audit(bundle, settings, users=60, edits=20, lies=30, encoder=WordEncoder(), progress=False)
    one, two = found.as_dict(), again.as_dict()
    for figures in (one, two):
        del figures["seconds"], figures["freshness"]["rebuild_over_update_seconds"]
    assert one == two


def test_what_users_and_titles_say_is_escaped(found: Audit, tmp_path: Path) -> None:
    sample = replace(found.samples[0], user="<b>17</b>", text='You like "<script>alert(1)</script>".')
    assert isinstance(sample, Sample)
    page = write_audit(tmp_path, replace(found, samples=[sample]))[1].read_text("utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<b>17" not in page


def test_how_often_a_user_comes_back_is_shown_in_days(found: Audit, tmp_path: Path) -> None:
    evidence = Evidence(rhythm=(Trait(PACE, OFTEN, PACE, 2.5, 9),))
    sample = replace(found.samples[0], evidence=evidence)
    page = write_audit(tmp_path, replace(found, samples=[sample]))[1].read_text("utf-8")
    assert "often (2.5 times the usual, 9 days)" in page


def test_the_bundles_own_threshold_is_measured(bundle: Bundle, tmp_path: Path) -> None:
    own = bundle.recommender.profiles
    assert isinstance(own, EvidenceProfiles)
    config = own.config.model_copy(update={"refresh": 0.27})
    profiles = EvidenceProfiles(config, own.known, own.store, own.phrases, own.personas)
    changed = replace(bundle, recommender=replace(bundle.recommender, profiles=profiles))
    settings = Settings(cache_dir=tmp_path, offline=True)
    found = audit(changed, settings, users=20, edits=4, lies=6, encoder=WordEncoder(), progress=False)
    assert found.freshness.at(found.refresh).threshold == 0.27
    assert [kept.threshold for kept in found.freshness.kept] == sorted({*THRESHOLDS, 0.27})


def test_in_a_catalog_of_a_hundred_recall_says_nothing_and_that_is_said(
    found: Audit, retrieval: Retrieval, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["drama"] * len(retrieval.cut.queries)
    assert f"of {found.usefulness.items:,} items" in render(found)
    assert "any query finds all" not in caplog.text
    few = replace(retrieval, vocab=Vocab(retrieval.vocab.ids[:90]), vectors=retrieval.vectors[:90])
    assert usefulness(few, texts, texts, seed=0).recall["profile"][0] == 1.0
    assert "the catalog has 90 items: any query finds all" in caplog.text


def test_a_model_that_says_what_is_false_is_counted_and_not_shown(bundle: Bundle, tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path, offline=True)
    lm = SayingLM("You hate everything and you have rated 9999 films.")
    found = audit(
        bundle, settings, users=40, edits=4, lies=6, lm=lm, lm_users=10, prompt="write", encoder=WordEncoder(),
        progress=False,
    )  # fmt: skip
    figures = found.as_dict()
    assert figures["users"] == 10
    assert figures["raw_lm_failure_rate"] > 0
    assert figures["raw_lm_failure_why_null"] is None
    assert figures["claim_precision"] == 1.0
    assert figures["tokens"]["prompt"] > 0
    assert not any("9999" in sample.text for sample in found.samples)
    assert "had a claim without support" in write_audit(tmp_path / "out", found)[1].read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "sing", "--lm-users", "3"], "must be choose, phrase or write"),
        (["--prompt", "write"], "go with --lm-users"),
        (["--lm-users", "3"], "name one by --lm"),
    ],
)
def test_what_cannot_be_audited_is_said_in_a_line(
    bundle: Bundle, tmp_path: Path, options: list[str], message: str
) -> None:
    command = ["profile", "audit", "--bundle", str(bundle.path), "--out", str(tmp_path), *options]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, SpecError)
    assert message in str(done.exception)
