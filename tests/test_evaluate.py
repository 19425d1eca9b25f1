"""The evaluation against what can be known without it: on the small world, with a scripted model or none."""

import json
import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import polars as pl
import pytest

from checks import HashLM, with_word_vectors
from recsys.candidates import FusionConfig, PopularConfig, TransitionsConfig
from recsys.data.ingest import dataset_from_frames
from recsys.data.split import split_log
from recsys.errors import SpecError, StorageError
from recsys.evaluate import evaluate, write_results
from recsys.lm import LMConfig
from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.protocols import Score
from recsys.rerank import PackedConfig
from recsys.spec import Spec, Training, fit, load_spec
from recsys.tables import InteractionLog

PLAIN = Spec(generator=FusionConfig(sources=(TransitionsConfig(window=5), PopularConfig())), lm=LMConfig(kind="none"))


@pytest.fixture(scope="module")
def found(world, weights_settings):
    return evaluate(world, PLAIN, weights_settings, sample_users=120, seed=3)


def test_the_metrics_have_the_promised_shape(found):
    metrics = found.metrics
    assert metrics.keys() >= {"data", "split", "stages", "lift", "seconds", "peak_rss_mb"}
    assert list(metrics["stages"]) == ["popular", "candidates", "reranked"]
    for stage in metrics["stages"].values():
        names = {
            "ndcg@10",
            "recall@10",
            "mrr@10",
            "recall@50",
            "recall@100",
            "coverage@10",
            "coverage@100",
            "popularity@10",
        }
        assert stage.keys() == names | {"ci95"}
        assert all(low <= stage[name] <= high for name, (low, high) in stage["ci95"].items())
    assert metrics["lift"]["ndcg@10"].keys() == {"delta", "relative", "ci95", "p"}
    assert metrics["data"]["queries"] == 120
    json.dumps(metrics)


def test_per_query_ranks_give_the_metrics_again(found):
    frame = found.per_query
    assert frame.columns == ["query_id", "user_id", "item_id", "popular", "candidates", "reranked"]
    for stage, metrics in found.metrics["stages"].items():
        gain = frame.select(pl.when(pl.col(stage) <= 10).then(1 / (1 + pl.col(stage)).log(2)).otherwise(0)).to_series()
        assert gain.mean() == pytest.approx(metrics["ndcg@10"], abs=1e-12)


def test_without_a_reranker_nothing_is_lifted(found):
    assert found.metrics["lift"]["ndcg@10"] == {"delta": 0.0, "relative": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


def test_candidates_beat_popularity_on_a_world_with_tastes(found):
    stages = found.metrics["stages"]
    assert stages["candidates"]["ndcg@10"] > 1.5 * stages["popular"]["ndcg@10"]


def events(log: InteractionLog) -> set[tuple[object, ...]]:
    return set(log.frame.select("user_id", "item_id", "ts").iter_rows())


class Seen:
    """Records every log that any part is fitted on, by the part's kind, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logs: dict[str, list[set[tuple[object, ...]]]] = {}
        for config in (ProfilesConfig, PackedConfig, PopularConfig):
            monkeypatch.setattr(config, "fit", self.watch(config.__name__, config.fit))
        monkeypatch.setattr(FusionConfig, "train", self.watch("FusionConfig", FusionConfig.train))

    def watch(self, name: str, fit: Any) -> Any:
        def watched(config: Any, *args: Any, **kwargs: Any) -> Any:
            self.logs.setdefault(name, []).extend(events(a) for a in args if isinstance(a, InteractionLog))
            return fit(config, *args, **kwargs)

        return watched


def test_no_part_is_fitted_on_an_answer_that_it_is_asked_for(world, world_split, weights_settings, monkeypatch):
    seen = Seen(monkeypatch)
    spec = PLAIN.model_copy(update={"reranker": PackedConfig(depth=5, tune_users=20)})
    described: list[int] = []
    as_of = EvidenceProfiles.as_of
    monkeypatch.setattr(EvidenceProfiles, "as_of", lambda own, queries: described.append(0) or as_of(own, queries))
    evaluate(world, spec, weights_settings, sample_users=20, lm=HashLM())
    assert len(described) == 2, "profiles are made once for the reranker's fit and once for the evaluation"
    before, known = events(world_split.fit), events(world_split.known)
    # What the reranker learns from is made by parts fitted before tune; what answers test, before test.
    sources = seen.logs.pop("PopularConfig")
    assert seen.logs == {"FusionConfig": [before, known], "ProfilesConfig": [before, known], "PackedConfig": [before]}
    # The fusion learns its weights from sources that had not seen the answers: first on the last events before tune;
    # then, with a head start, on tune's own, which the sources fitted before tune had not seen.
    inner = events(split_log(world_split.fit, "leave-last").known)
    assert sources == [inner, before, known, known]  # the last one is the stage `popular`
    assert not known & events(world_split.test)


def test_for_production_the_reranker_learns_from_parts_that_had_not_seen_its_answers(
    world, weights_settings, monkeypatch
):
    seen = Seen(monkeypatch)
    spec = PLAIN.model_copy(update={"reranker": PackedConfig(depth=5, tune_users=20)})
    fit(world, spec, weights_settings, seed=0, lm=HashLM())
    whole = events(world.log)
    for name in ("FusionConfig", "ProfilesConfig"):
        early, final = seen.logs[name]
        assert final == whole
        assert len(whole - early) == world.log.frame["user_id"].n_unique()
    assert seen.logs["PackedConfig"] == [seen.logs["FusionConfig"][0]]


def test_no_history_reaches_its_own_answer_or_beyond(found, world):
    order = {(u, t, i): n for n, (u, t, i) in enumerate(world.log.frame.select("user_id", "ts", "item_id").iter_rows())}
    rows = found.questions.queries.frame.join(found.questions.truth.frame, on="query_id")
    for row in rows.iter_rows(named=True):
        answer = order[row["user_id"], row["at"], row["item_id"]]
        last = order[row["user_id"], row["times"][-1], row["history"][-1]]
        assert last == answer - 1


@pytest.mark.parametrize("depth", [7, 300])
def test_a_reranker_that_does_nothing_changes_nothing_at_any_depth(world, weights_settings, depth):
    spec = PLAIN.model_copy(update={"depth": depth, "generator": PopularConfig()})
    found = evaluate(world, spec, weights_settings, sample_users=60)
    assert found.per_query["candidates"].equals(found.per_query["reranked"])
    served = found.fitted.recommender.recommend(found.questions.queries, 10)
    assert found.slates.frame.equals(served.frame)


def test_a_line_that_asks_no_model_loads_none(world, settings):
    spec = Spec(generator=PopularConfig(), lm=LMConfig(kind="local"))
    assert "load language model" not in fit(world, spec, settings, seed=0).seconds


def test_users_with_two_or_three_events_are_enough(weights_settings):
    for n in (2, 3):
        rows = [(u, (u + t) % 12, 86_400 * t) for u in range(40) for t in range(n)]
        log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        items = pl.DataFrame({"item_id": range(12), "title": [f"Item {i}" for i in range(12)]})
        dataset = dataset_from_frames("short", log, items)
        spec = PLAIN.model_copy(update={"reranker": PackedConfig(depth=5)})
        found = evaluate(dataset, spec, weights_settings, lm=HashLM())
        assert found.metrics["data"]["queries"] == 40
        assert len(fit(dataset, spec, weights_settings, seed=0, lm=HashLM()).recommender.catalog) == 12


@pytest.mark.parametrize("told", [True, False])
def test_a_language_model_is_weighed_by_requests_too_where_it_is_told_of_them(world, weights_settings, told):
    """They are true of the answers, so a model that looks for what is asked has a weight of its own for them."""

    class Listening(HashLM):
        def one(self, prompt, answer):
            asked = re.search(r'Asked for "([^"]*)"', prompt)
            heard.append(asked is not None)
            carries = asked and any(word in answer.lower() for word in re.findall(r"[a-z]{5,}", asked[1].lower()))
            score = super().one(prompt, answer)
            return Score((0.0 if carries else -9.0) * score.tokens, score.tokens)

    heard = []
    conditions = ("request", "recent") if told else ("recent",)
    config = PackedConfig(depth=60, tune_users=100, conditions=conditions, candidate="text")
    spec = PLAIN.model_copy(update={"reranker": config, "generator": PopularConfig()})
    report = fit(world, spec, weights_settings, seed=0, lm=Listening()).tuning["reranker"]
    assert any(heard) == told
    if told:
        assert report["regimes"]["request"]["weights"]["lm"] > 0
        assert report["regimes"]["request"]["gain"] > 0
    else:
        assert "request" not in report.get("regimes", {})


def test_training_keeps_the_past_apart_from_the_questions(world, world_split):
    training = Training.of_split(world_split)
    assert len(training.before) == len(world_split.fit)
    assert len(training.known) == len(world_split.fit) + len(world_split.tune)
    whole = Training.of_log(world.log)
    assert len(whole.known) == len(world.log)
    assert len(whole.before) + len(whole.tune) == len(world.log)


def test_a_reranker_that_reads_noise_is_not_trusted(world, weights_settings):
    vectors = replace(world, catalog=with_word_vectors(world.catalog))
    spec = PLAIN.model_copy(update={"reranker": PackedConfig(depth=10, tune_users=100)})
    found = evaluate(vectors, spec, weights_settings, sample_users=150, lm=HashLM())
    lift = found.metrics["lift"]["ndcg@10"]
    assert lift["ci95"][1] > -0.02
    assert abs(lift["delta"]) < 0.03
    assert set(found.slates.frame["served_by"]) == {"reranker"}


def test_a_time_split_asks_only_about_the_last_days(world, weights_settings):
    found = evaluate(world, PLAIN, weights_settings, split="time", sample_users=40)
    assert found.known.frame["ts"].max() < found.questions.queries.frame["at"].min()
    first = datetime.fromisoformat(found.metrics["data"]["test_from"]).timestamp()
    assert found.known.frame["ts"].max() - 60 < first <= found.questions.queries.frame["at"].min()


def repeating(n_users: int = 60) -> pl.DataFrame:
    """Everybody comes back to one item of their own, and at times meets something new."""
    rows = [(u, 20 + (u + t) % 10 if t in (1, 3, 5) else u % 20, 86_400 * t) for u in range(n_users) for t in range(9)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def test_repeats_are_found_only_where_seen_items_may_come_again(weights_settings, caplog):
    items = pl.DataFrame({"item_id": range(30), "title": [f"Item {i}" for i in range(30)]})
    dataset = dataset_from_frames("repeats", repeating(), items)
    found = evaluate(dataset, PLAIN, weights_settings)
    assert found.metrics["data"]["answers_already_met"] == 1.0
    assert found.metrics["stages"]["candidates"]["recall@100"] == 0.0
    assert "generator.exclude_seen = false" in caplog.text
    assert found.metrics["data"]["answers_within_reach"] == 0.0
    again = PLAIN.model_copy(update={"generator": PLAIN.generator.model_copy(update={"exclude_seen": False})})
    repeated = evaluate(dataset, again, weights_settings).metrics
    assert repeated["stages"]["candidates"]["ndcg@10"] > 0.4
    assert repeated["stages"]["popular"]["recall@100"] == 1.0
    assert repeated["data"]["answers_within_reach"] == 1.0
    assert {row["recall@100"] for row in repeated["sources"]} == {1.0}


def test_results_are_written_whole_or_not_at_all(found, tmp_path):
    write_results(found, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"metrics.json", "per_query.parquet", "slates.parquet"}
    assert pl.read_parquet(tmp_path / "out" / "per_query.parquet").equals(found.per_query)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_results(found, tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depht = 3", "depht: Extra inputs are not permitted"),
        ("depth = 0", "depth: Input should be greater than or equal to 1"),
        ('[generator]\nkind = "magic"', "generator: Input tag 'magic'"),
        ('[reranker]\nkind = "packed"\ndepth = "deep"', "reranker.packed.depth"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_spec_names_the_file_and_the_field(tmp_path, text, message):
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        load_spec(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_missing_spec_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"nowhere\.toml"):
        load_spec(tmp_path / "nowhere.toml")


def test_a_reranker_without_a_model_says_what_to_set(world, weights_settings):
    spec = PLAIN.model_copy(update={"reranker": PackedConfig()})
    with pytest.raises(SpecError, match=r"lm\.kind"):
        evaluate(world, spec, weights_settings)
