"""Profiles on real data: how long evidence takes, what profiles find by themselves, when they are written anew, and
which lies are caught. `recsys profile audit` measures the same for one bundle. BENCH_USERS sets how many users."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.audit.freshness import freshness
from recsys.audit.truth import truth
from recsys.audit.usefulness import Cut, Remembered, Retrieval, usefulness
from recsys.data.ingest import Dataset, read_dataset
from recsys.profiles import EvidenceProfiles, ProfilesConfig
from recsys.profiles.fresh import Living
from recsys.profiles.template import profile
from recsys.spec import with_vectors
from recsys.tables import InteractionLog, query_histories

USERS = int(os.environ.get("BENCH_USERS", "1000"))
NAMES = ["ml-100k", "movietweetings-100k-5core", "ml-1m"]


def fitted(data: Dataset, log: InteractionLog) -> EvidenceProfiles:
    return ProfilesConfig().fit(log, data.catalog, rated=data.rated, seed=0)


@pytest.mark.timeout(1800)
def test_every_user_of_ml_1m_is_described_within_a_minute(real_data: Callable[[str], Path]) -> None:
    """And a day's events cost what they are, not what the histories are."""
    data = read_dataset(real_data("ml-1m"))
    profiles, queries = fitted(data, data.log), query_histories(data.log)
    start = time.perf_counter()
    assert len(profiles.evidence(queries)) == 6040
    took = time.perf_counter() - start
    assert len(profiles.as_of(queries)) == 6040
    whole = time.perf_counter() - start
    print(f"\nml-1m, 6,040 users: evidence {took:.1f} s, profiles with it {whole - took:.1f} s")
    assert took < 60

    def write(evidence: Any) -> list[str]:
        return [profile(e, profiles.phrases)[0] for e in evidence]

    last = pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1
    frame = data.log.frame.with_columns(last=last)
    some = frame["user_id"].unique().sort().gather_every(100)
    known, bounds = profiles.known, profiles.bounds
    living = Living.of(InteractionLog(frame.filter(~pl.col("last")).drop("last")), known, bounds, write)
    day = InteractionLog(frame.filter(pl.col("last") & pl.col("user_id").is_in(some.implode())).drop("last"))
    start = time.perf_counter()
    living.update(day, known, bounds, write, refresh=0.0)
    update = time.perf_counter() - start
    start = time.perf_counter()
    Living.of(data.log, known, bounds, write)
    rebuild = time.perf_counter() - start
    print(f"one event of a hundredth of the users: update {update:.2f} s, rebuild {rebuild:.2f} s")
    assert rebuild > 5 * update


@pytest.mark.weights
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", NAMES)
def test_profiles_are_true_useful_and_fresh(
    name: str, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any
) -> None:
    data = read_dataset(real_data(name))
    catalog, vectors = with_vectors(data.catalog, encoder, weights_settings.cache_dir), Remembered(encoder)
    cut = Cut.of(data.log, USERS, 0)
    early = fitted(data, cut.before)
    texts = early.as_of(cut.queries).frame["text"].to_list()
    useful = usefulness(Retrieval.of(cut, catalog, vectors), texts, texts, seed=0)
    rows = [
        {
            "query": kind,
            "recall@100": f"{mean:.3f} [{low:.3f}, {high:.3f}]",
            "profile minus it": "-"
            if kind == "profile"
            else "{:+.3f} [{:+.3f}, {:+.3f}]".format(useful.over[kind].delta, *useful.over[kind].ci95),
        }
        for kind, (mean, (low, high)) in useful.recall.items()
        if kind != "template"  # nobody else wrote
    ]
    later = Cut.of(data.log, USERS, 0, share=0.8)
    fresh = freshness(later, Retrieval.of(later, catalog, vectors), fitted(data, later.before), seed=0)
    kept = [
        {
            "threshold": k.threshold,
            "skipped": f"{k.skipped:.3f}",
            "recall@100": f"{k.recall:.4f}",
            "against always": "{:+.4f} [{:+.4f}, {:+.4f}]".format(k.change.delta, *k.change.ci95),
        }
        for k in fresh.kept
    ]
    told = truth(early, early.evidence(cut.queries), texts, lies=200, seed=0)
    with pl.Config(tbl_rows=-1, fmt_str_lengths=60, tbl_width_chars=120):
        print(f"\n{name}, {useful.users} users\n{pl.DataFrame(rows)}\n{pl.DataFrame(kept)}")
    print(f"{told.claims} claims, {told.precision:.4f} supported, coverage {told.coverage:.3f}")
    print(f"lies caught {told.caught}")
    assert useful.over["stranger"].ci95[0] > 0
    assert told.precision == 1.0
    assert told.caught is not None
    assert told.caught["all"] >= 0.95
    assert fresh.equal == 1.0
