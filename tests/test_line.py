"""The whole line on the small world with the real small LM: evaluate, bundle, load, recommend, batch, the README."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from checks import assert_no_pickle, backwards, one_by_one
from recsys import bundle
from recsys.tables import Queries

pytestmark = pytest.mark.weights

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4


def assert_same_rows(left: pl.DataFrame, right: pl.DataFrame) -> None:
    """The same items in the same order, with the same reasons; scores to the last bits of a float32."""
    assert_frame_equal(left, right, abs_tol=TOLERANCE, rel_tol=TOLERANCE)


@pytest.fixture(scope="module")
def spec() -> Any:
    """The default recipe; its numbers are small because the LM reads on a CPU."""
    from recsys.spec import load_spec

    llm = load_spec(ROOT / "pipelines" / "specs" / "llm.toml")
    reranker = llm.reranker.model_copy(update={"depth": 8, "tune_users": 12})
    profiles = llm.profiles.model_copy(update={"lm_users": 2})
    return llm.model_copy(update={"depth": 40, "reranker": reranker, "profiles": profiles})


@pytest.fixture(scope="module")
def evaluated(tiny: Any, spec: Any, small_lm: Any, encoder: Any, weights_settings: Any) -> Any:
    from recsys.evaluate import evaluate

    return evaluate(tiny, spec, weights_settings, sample_users=12, seed=0, lm=small_lm)


@pytest.fixture(scope="module")
def written(evaluated: Any, spec: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluated line as a bundle, but with a fixed weight on what the LM says.

    On so small a world the fitted weight may be zero, and a line that never asks the model would prove nothing.
    """
    from recsys.rerank import Fallback
    from recsys.rerank.fusion import LinearFusion

    line = evaluated.fitted.recommender
    outspoken = replace(line.reranker.primary, fusions={"plain": LinearFusion({"score": 1.0, "lm": 1.0})})
    folder = tmp_path_factory.mktemp("line") / "bundle"
    return bundle.write(folder, replace(line, reranker=Fallback(outspoken)), tiny, spec=spec, known=evaluated.known)


@pytest.fixture(scope="module")
def loaded(written: Path, weights_settings: Any, small_lm: Any) -> Any:
    return bundle.load(written, weights_settings, lm=small_lm)


def test_a_loaded_bundle_gives_the_slates_of_the_evaluation(
    evaluated: Any, spec: Any, tiny: Any, small_lm: Any, weights_settings: Any, tmp_path: Path
) -> None:
    line = evaluated.fitted.recommender
    folder = bundle.write(tmp_path / "bundle", line, tiny, spec=spec, known=evaluated.known)
    assert_no_pickle(folder)
    again = bundle.load(folder, weights_settings, lm=small_lm).recommender
    assert_same_rows(again.recommend(evaluated.questions.queries, 10).frame, evaluated.slates.frame)


def test_the_language_model_orders_what_is_shown_and_the_rest_stays(loaded: Any) -> None:
    queries = Queries(loaded.queries().frame.head(4))
    candidates = loaded.recommender.candidates_only().recommend(queries, 20).frame
    reranked = loaded.recommender.recommend(queries, 20).frame
    first, behind = pl.col("rank") <= 8, pl.col("rank") > 8
    assert reranked.filter(first)["item_id"].to_list() != candidates.filter(first)["item_id"].to_list()
    assert reranked.filter(behind)["item_id"].to_list() == candidates.filter(behind)["item_id"].to_list()
    assert reranked.filter(first)["served_by"].unique().to_list() == ["reranker"]
    assert reranked.filter(behind)["served_by"].unique().to_list() == ["candidates"]
    key = ["query_id", "item_id"]
    assert reranked.select(key).sort(key).equals(candidates.select(key).sort(key))
    assert (reranked["reason"].str.len_chars() > 0).all()


def test_a_batch_equals_singles_whatever_its_order(loaded: Any) -> None:
    queries = Queries(loaded.queries().frame.head(5))
    together = loaded.recommender.recommend(queries, 10).frame
    singles = pl.concat([loaded.recommender.recommend(query, 10).frame for query in one_by_one(queries)])
    turned = loaded.recommender.recommend(backwards(queries), 10).frame
    assert_same_rows(singles, together)
    key = ["query_id", "rank"]
    assert_same_rows(turned.sort(key), together.sort(key))


def test_batch_writes_what_recommend_says(loaded: Any, tmp_path: Path) -> None:
    from recsys.batch import run_batch

    users = loaded.log.frame["user_id"].unique().sort().head(5).to_list()
    run_batch(loaded, users, k=5, out=tmp_path / "out", shard_size=3, progress=False)
    rows = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    slates = loaded.recommender.recommend(loaded.queries(users), 5).frame
    assert rows.columns == ["user_id", "item_id", "rank", "score", "propensity", "served_by", "reason"]
    assert_same_rows(rows, slates.rename({"query_id": "user_id"}).select(rows.columns))


def test_the_stages_answer_the_same_questions_and_reranking_loses_no_answer(evaluated: Any) -> None:
    assert list(evaluated.metrics["stages"]) == ["popular", "candidates", "reranked"]
    assert len(evaluated.per_query) == 12
    missing = evaluated.per_query.select(pl.col("candidates", "reranked").is_null())
    assert missing["candidates"].to_list() == missing["reranked"].to_list()
    assert evaluated.metrics["tuning"]["reranker"]["verdict"]


def test_what_the_model_wrote_and_what_it_cost_is_reported(evaluated: Any) -> None:
    found = evaluated.metrics["tuning"]["profiles"]
    assert (found["asked"], found["accepted"], found["claim_precision"]) == (2, 2, 1.0)
    assert found["false_texts"] == 0  # it chose among true sentences
    assert found["prompt_tokens"] > 100
    assert found["seconds"] > 0


def test_the_five_lines_of_the_readme_run(
    written: Path,
    weights_settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [sum(bool(line.strip()) for line in block.splitlines()) for block in code] == [5]
    (tmp_path / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo" / "bundle").symlink_to(written, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_CACHE_DIR", str(weights_settings.cache_dir))
    monkeypatch.setenv("RECSYS_OFFLINE", "1")
    exec(compile(code[0], "README.md", "exec"), {})
    assert "item_id" in capsys.readouterr().out
