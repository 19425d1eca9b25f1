"""What the sequence reranker makes of items and users that no log knows: there words are all there is.

A tenth of the items that test asks about, and a fifth of the users, leave the log before anything is trained. Then
- the hidden items are ranked among themselves for the users who took them next, beside the content source;
- the users who left are known by a profile in words alone, written from the first half of their history; right is the
  second half. Beside it: popularity, the likeness of profile and item texts, their tuned mixture, another's profile.

BENCH_SEEDS=0,1,2 draws anew; BENCH_RERANKER='{"epochs": 4}' changes the recipe.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from recsys.candidates import ContentConfig
from recsys.data.split import Questions, Split, ask, k_core, split_log
from recsys.data.vocab import Vocab
from recsys.metrics import ndcg, paired
from recsys.profiles import ProfilesConfig
from recsys.rerank import SequenceConfig
from recsys.rerank.train import Course, School
from recsys.tables import InteractionLog, Profiles, Queries, query_histories

SEEDS = [int(seed) for seed in os.environ.get("BENCH_SEEDS", "0").split(",")]
RECIPE = json.loads(os.environ.get("BENCH_RERANKER", "{}"))
ITEMS, USERS = 0.1, 0.2
FEWEST = 10  # events of a user whose profile is asked for
MIXTURES = np.linspace(0, 1, 21)

Floats = npt.NDArray[np.float64]


def leave(split: Split, seed: int) -> tuple[InteractionLog, Questions, pl.Series, InteractionLog]:
    """What is left to learn from; the questions whose answer is hidden; the hidden items; the log of who left."""
    rng = np.random.default_rng(seed)
    asked = split.test.frame["item_id"].unique().sort()
    hidden = asked.gather(np.sort(rng.choice(len(asked), round(ITEMS * len(asked)), replace=False)))
    users = split.known.frame["user_id"].unique().sort()
    gone = users.gather(np.sort(rng.choice(len(users), round(USERS * len(users)), replace=False)))
    is_hidden, is_gone = pl.col("item_id").is_in(hidden.implode()), pl.col("user_id").is_in(gone.implode())
    known = InteractionLog(split.known.frame.filter(~is_hidden & ~is_gone))
    answers = InteractionLog(split.test.frame.filter(is_hidden & ~is_gone))
    cold = ask(InteractionLog.of(pl.concat([known.frame, answers.frame])), answers)
    return known, cold, hidden, InteractionLog(split.known.frame.filter(is_gone & ~is_hidden))


def standardised(scores: npt.NDArray[Any]) -> Floats:
    return np.asarray((scores - scores.mean(axis=1, keepdims=True)) / (scores.std(axis=1, keepdims=True) + 1e-9))


def answered(scores: npt.NDArray[Any], answers: npt.NDArray[np.integer]) -> Floats:
    """NDCG@10 of one answer each; ties at their expected rank."""
    own = scores[np.arange(len(answers)), answers][:, None]
    return ndcg(pl.Series(1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2), 10)


def halves(log: InteractionLog) -> tuple[Queries, list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    """Each user as after the first half of their history; the items of both halves."""
    frame = query_histories(log).frame.filter(pl.col("history").list.len() >= FEWEST)
    half = pl.col("history").list.len() // 2
    first = frame.with_columns(pl.col(c).list.head(half) for c in ("history", "weights", "times"))
    second = frame.select(pl.col("history").list.slice(half))["history"]
    queries = Queries(first.with_columns(at=pl.col("times").list.last()))
    return queries, [s.to_numpy() for s in queries.frame["history"]], [s.to_numpy() for s in second]


def many(scores: Floats, vocab: Vocab, first: list[Any], second: list[Any]) -> Floats:
    """NDCG@10 over the items of the second half; those of the first cannot be right and are left out."""
    discount = 1 / np.log2(np.arange(2, 12))
    found = []
    for row, seen, right in zip(scores, first, second, strict=True):
        left = row.copy()
        left[vocab.encode(pl.Series(seen))] = -np.inf
        top = np.argsort(-left, kind="stable")[:10]
        right = vocab.encode(pl.Series(right).unique())
        found.append(float(discount[np.isin(top, right)].sum() / discount[: len(right)].sum()))
    return np.array(found)


def withheld(queries: Queries) -> Queries:
    return Queries(queries.frame.with_columns(pl.col(c).list.head(0) for c in ("history", "weights", "times")))


@pytest.mark.weights
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", ["movietweetings-100k-5core", "ml-1m"])
def test_words_stand_in_for_a_past(
    name: str, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any
) -> None:
    from recsys.data.ingest import read_dataset
    from recsys.spec import with_vectors

    dataset = read_dataset(real_data(name))
    catalog = with_vectors(dataset.catalog, encoder, weights_settings.cache_dir)
    split = split_log(k_core(dataset.log, 5), "leave-last")
    gains: dict[str, list[Floats]] = {}
    for seed in SEEDS:
        known, cold, hidden, left = leave(split, seed)
        describe = ProfilesConfig().fit(known, catalog, rated=dataset.rated, seed=seed)
        school = School(known, known, catalog, describe, lambda _: None, encoder, weights_settings)  # type: ignore[arg-type,return-value]
        course = Course.of(SequenceConfig(**RECIPE), school, seed)
        judge = course.judge(course.finish(course.explore(), known))
        vocab = judge.vocab
        assert len(vocab) == len(catalog)

        codes = vocab.encode(hidden)
        answers = np.searchsorted(codes, vocab.encode(cold.truth.frame["item_id"]))
        nobody = describe.as_of(cold.queries)
        content = ContentConfig().fit(known, catalog, seed=seed)
        likeness = content.scores_at(vocab.histories(cold.queries), cold.queries.frame["at"].to_numpy(), codes)
        popular = np.log1p(np.bincount(vocab.encode(known.frame["item_id"]), minlength=len(vocab)))
        assert popular[codes].max() == 0
        for what, scores in (
            ("cold: reader", judge.scores(cold.queries, nobody)[:, codes]),
            ("cold: content", likeness),
        ):
            gains.setdefault(what, []).append(answered(scores, answers))

        queries, first, second = halves(left)
        told = describe.as_of(queries)
        order = np.random.default_rng(seed).permutation(len(told))
        others = np.empty_like(order)
        others[order] = np.roll(order, 1)
        mixed_up = Profiles(told.frame.with_columns(told.frame["text"].gather(others)))
        texts = np.stack(catalog.frame["embedding"].to_numpy())[vocab.encode(catalog.frame["item_id"]).argsort()]
        centre = texts.mean(axis=0)
        alike = (encoder.embed(told.frame["text"].to_list()) - centre) @ (texts - centre).T
        ranked = {
            "told: reader": judge.scores(withheld(queries), told),
            "told: reader, another's profile": judge.scores(withheld(queries), mixed_up),
            "told: reader, no profile": judge.scores(withheld(queries), Profiles(told.frame.clear())),
            "told: popular": np.tile(popular, (len(queries), 1)),
            "told: likeness": alike,
            "told: reader, history instead": judge.scores(queries, told),
        }
        for what, scores in ranked.items():
            gains.setdefault(what, []).append(many(scores, vocab, first, second))
        # Chosen on one half of the users, reported on the other, both ways round.
        mixtures = np.stack(
            [
                many(m * standardised(alike) + (1 - m) * standardised(ranked["told: popular"]), vocab, first, second)
                for m in MIXTURES
            ]
        )
        half = np.random.default_rng(seed).permutation(len(queries)) % 2
        best = [int(mixtures[:, half != h].mean(axis=1).argmax()) for h in (0, 1)]
        gains.setdefault("told: popular + likeness, tuned", []).append(
            np.where(half == 0, mixtures[best[0]], mixtures[best[1]])
        )
        print(f"\n{name}, seed {seed}: {len(cold)} questions on {len(hidden)} hidden items, {len(queries)} users told")
        print({"training": course.report})
    pooled = {what: np.concatenate(found) for what, found in gains.items()}
    rows = []
    for what, found in pooled.items():
        best_of = "cold: reader" if what.startswith("cold") else "told: reader"
        pair = paired(pooled[best_of], found, seed=0).row()
        low, high = pair["ci95"]
        rows.append(
            {
                "ranked by": what,
                "n": len(found),
                "ndcg@10": float(found.mean()),
                "reader minus it": "" if what == best_of else f"{pair['delta']:+.4f} [{low:+.4f}, {high:+.4f}]",
            }
        )
    with pl.Config(tbl_rows=-1, fmt_str_lengths=60, tbl_width_chars=140):
        print(pl.DataFrame(rows))
    for better, worse in (
        ("cold: reader", "cold: content"),
        ("told: reader", "told: popular"),
        ("told: reader", "told: likeness"),
        ("told: reader", "told: popular + likeness, tuned"),
        ("told: reader", "told: reader, another's profile"),
    ):
        assert paired(pooled[better], pooled[worse], seed=0).row()["ci95"][0] > 0, (better, worse)
