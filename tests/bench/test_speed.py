"""Times of the parts and of one request. Prints; the only limit is that nothing takes absurdly long."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from checks import one_by_one, with_word_vectors
from recsys.candidates import AlsConfig, ContentConfig, FusionConfig, PopularConfig, TransitionsConfig
from recsys.tables import Queries

SPEC = Path(__file__).parents[2] / "pipelines" / "specs" / "llm.toml"


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def test_generators() -> None:
    from recsys.data.split import split_log
    from recsys.data.synthetic import make_world

    dataset = make_world(n_users=2000, n_items=1500, n_events=100_000, seed=1).dataset
    catalog = with_word_vectors(dataset.catalog, 384)
    split = split_log(dataset.log, "leave-last")
    queries = split.questions("test").queries
    rows = []
    for config in (PopularConfig(), AlsConfig(), TransitionsConfig(), ContentConfig(), FusionConfig()):
        generator, fitting = timed(lambda config=config: config.fit(split.known, catalog, seed=0))  # type: ignore[misc]
        _, answering = timed(lambda generator=generator: generator.generate(queries, 100))  # type: ignore[misc]
        rows.append({"generator": config.kind, "fit s": fitting, "queries/s": len(queries) / answering})
        assert fitting + answering < 300
    print("\n2,000 users, 1,500 items, 100,000 events, 100 candidates each")
    print(pl.DataFrame(rows))


@pytest.mark.weights
def test_scoring(small_lm: Any) -> None:
    prompt = "You like quiet dramas and old crime films. Lately you watched: " + ", ".join(["The Third Man"] * 10)
    titles = [f"The Silent Harbor {n} (19{n:02d})" for n in range(30)]
    small_lm.score([prompt], [titles])
    _, took = timed(lambda: small_lm.score([prompt] * 5, [titles] * 5))
    print(f"\n{small_lm.model_id}: {5 / took:.2f} users/s with 30 titles each")
    assert took < 300


@pytest.mark.weights
def test_one_request_through_the_whole_line(tiny: Any, small_lm: Any, encoder: Any, weights_settings: Any) -> None:
    from recsys.rerank import Fallback
    from recsys.rerank.fusion import LinearFusion
    from recsys.spec import fit, load_spec
    from recsys.tables import query_histories

    spec = load_spec(SPEC)
    spec = spec.model_copy(update={"reranker": spec.reranker.model_copy(update={"tune_users": 10})})
    fitted: Any = fit(tiny, spec, weights_settings, seed=0, lm=small_lm).recommender
    # A fitted weight of zero would spare the LM the reading that is to be timed.
    outspoken = replace(fitted.reranker.primary, fusion=LinearFusion({"score": 1.0, "pmi": 1.0}))
    recommender = replace(fitted, reranker=Fallback(outspoken))
    some = one_by_one(Queries(query_histories(tiny.log).frame.head(20)))
    rows = []
    for name, line in (("with the LM", recommender), ("candidates only", recommender.candidates_only())):
        took = pl.Series([timed(lambda query=query, line=line: line.recommend(query, 10))[1] for query in some])  # type: ignore[misc]
        rows.append({"line": name, "p50 ms": took.median() * 1e3, "p95 ms": took.quantile(0.95) * 1e3})  # type: ignore[operator]
        assert took.max() < 60  # type: ignore[operator]
    print("\none user at a time, k = 10")
    print(pl.DataFrame(rows))
