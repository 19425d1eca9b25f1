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


def cpu_timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


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


def test_candidates_for_everybody_against_a_loop_over_implicit(real_data: Callable[[str], Path]) -> None:
    """100 candidates for every user of ml-1m at once, and implicit's own `recommend` user by user.

    implicit answers with codes and knows its users: the loop is timed with its stored factors, and with factors
    computed anew from each history, which is what a source does. CPU seconds, since they do not depend on who else
    uses the machine; all on one thread.
    """
    import numpy as np
    import scipy.sparse as sp
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    from recsys.candidates import Fusion
    from recsys.data.ingest import read_dataset
    from recsys.data.split import split_log

    dataset = read_dataset(real_data("ml-1m"))
    catalog, split = with_word_vectors(dataset.catalog, 384), split_log(dataset.log, "leave-last")
    queries = split.questions("test").queries
    configs = (PopularConfig(), PopularConfig(half_life=3.0), TransitionsConfig(), ContentConfig(), AlsConfig())
    sources = {source.name: source for source in (c.fit(split.known, catalog, seed=0) for c in configs)}
    generators = {
        **sources,
        "fusion": Fusion(FusionConfig(), sources, np.full(len(sources), 0.5), {}, np.zeros(0, dtype=np.intp)),
    }
    histories = sources["als"].vocab.histories(queries)
    shape = (len(histories), len(catalog))
    events = sp.csr_matrix((np.ones(len(histories.items), np.float32), histories.items, histories.indptr), shape=shape)
    with threadpool_limits(1):
        model = AlternatingLeastSquares(factors=64, alpha=5.0, iterations=1, num_threads=1)
        model.fit(events, show_progress=False)
        loop = {}
        for name, anew in (("stored factors", False), ("factors anew", True)):
            _, took = cpu_timed(
                lambda anew=anew: [  # type: ignore[misc]
                    model.recommend(user, events[user], N=100, recalculate_user=anew) for user in range(300)
                ]
            )
            loop[name] = took / 300
        rows = []
        for name, generator in generators.items():
            _, took = cpu_timed(lambda generator=generator: generator.generate(queries, 100))  # type: ignore[misc]
            each = took / len(queries)
            rows.append({"generator": name, "us a user": each * 1e6, **{f"x {k}": v / each for k, v in loop.items()}})
    print("\nimplicit's loop, us a user:", {name: round(took * 1e6) for name, took in loop.items()})
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
    outspoken = replace(fitted.reranker.primary, fusions={"plain": LinearFusion({"score": 1.0, "lm": 1.0})})
    recommender = replace(fitted, reranker=Fallback(outspoken))
    some = one_by_one(Queries(query_histories(tiny.log).frame.head(20)))
    rows = []
    for name, line in (("with the LM", recommender), ("candidates only", recommender.candidates_only())):
        took = pl.Series([timed(lambda query=query, line=line: line.recommend(query, 10))[1] for query in some])  # type: ignore[misc]
        rows.append({"line": name, "p50 ms": took.median() * 1e3, "p95 ms": took.quantile(0.95) * 1e3})  # type: ignore[operator]
        assert took.max() < 60  # type: ignore[operator]
    print("\none user at a time, k = 10")
    print(pl.DataFrame(rows))
