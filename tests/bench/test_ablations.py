"""Does the text matter? The sequence reranker on one split, less one thing at a time, or over an LM's layers.

As in `test_strangers`, a tenth of the items that test asks about and a fifth of the users leave the log before anything
is trained, so that one training answers for three kinds of question:
- warm: the last events of the users who stayed, by the reader's own opinion over all items that they have not met, and
  by the fused order of the candidates, whose generator is the same for every row;
- text: who left is known by a profile in words alone, written from the first half; right is the second half;
- cold: the hidden items are ranked among themselves for the users who took them next, by the reader's opinion.

Every row but the two of another reading ("profiles ...") is trained anew. Requests are left out: nobody asks. The rows
over a language model have fewer epochs where BENCH_BACKBONE says so; "own blocks as long" is trained as they are.

BENCH_DATA=ml-100k BENCH_SEED=0 BENCH_ROWS="no text" choose what stands beside full; BENCH_RERANKER='{"epochs": 4}'
changes every row, and BENCH_BACKBONE='{"epochs": 4, "layers": 4}' those over a language model (keys of either; `layers`
is the backbone's). BENCH_KEEP names a folder in which each row's figures stay, for the same choices only: an
interrupted run goes on there.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from test_strangers import answered, halves, leave, many, withheld

from recsys.data.split import Questions, Split, k_core, split_log
from recsys.metrics import ndcg, paired, target_ranks
from recsys.rerank import Fused, SequenceConfig
from recsys.rerank.sequence import SequenceJudge
from recsys.rerank.train import School, train_sequence
from recsys.tables import Candidates, InteractionLog, Profiles, Queries

SPEC = Path(__file__).parents[2] / "pipelines" / "specs" / "reranker.toml"
DATA = os.environ.get("BENCH_DATA", "ml-100k,movietweetings-100k-5core").split(",")
SEED = int(os.environ.get("BENCH_SEED", "0"))
COMMON = {"written": 0, **json.loads(os.environ.get("BENCH_RERANKER", "{}"))}
SHORT = json.loads(os.environ.get("BENCH_BACKBONE", "{}"))
LAYERS = int(SHORT.pop("layers", 4))
OVER = "over a language model: "
ROWS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "trained without profiles": {"told": 0},
    "no text": {"use_text": False},
    "no vectors of items' own": {"use_ids": False},
    "own blocks as long": SHORT,
    OVER + "frozen": {**SHORT, "backbone": {"weights": "frozen", "layers": LAYERS}},
    OVER + "LoRA": {**SHORT, "backbone": {"weights": "lora", "layers": LAYERS}},
    OVER + "random": {**SHORT, "backbone": {"weights": "random", "layers": LAYERS}},
}
KEEP = os.environ.get("BENCH_KEEP")
CHOSEN = os.environ.get("BENCH_ROWS", ",".join(name for name in ROWS if SHORT or name != "own blocks as long"))
COLUMNS = ("warm: reader", "warm: fused", "text", "cold")

Floats = npt.NDArray[np.float64]


def thinned(split: Split, hidden: pl.Series, gone: pl.Series) -> Split:
    """The split without some items and users."""
    stays = ~(pl.col("item_id").is_in(hidden.implode()) | pl.col("user_id").is_in(gone.implode()))
    fit, tune, test = (InteractionLog(part.frame.filter(stays)) for part in (split.fit, split.tune, split.test))
    return Split(split.kind, fit, tune, test)


def of_others(profiles: Profiles, seed: int) -> Profiles:
    """To each the profile of another."""
    order = np.random.default_rng(seed).permutation(len(profiles))
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)
    return Profiles(profiles.frame.with_columns(profiles.frame["text"].gather(others)))


def unmet(judge: SequenceJudge, questions: Questions, profiles: Profiles) -> Floats:
    """NDCG@10 of each answer among all items that the user has not met, by the reader's opinion."""
    scores = judge.scores(questions.queries, profiles)
    answers = judge.vocab.encode(questions.truth.frame["item_id"])
    own = scores[np.arange(len(answers)), answers]
    histories = judge.vocab.histories(questions.queries)
    scores[np.repeat(np.arange(len(answers)), np.diff(histories.indptr)), histories.items] = -np.inf
    scores[np.arange(len(answers)), answers] = own
    return answered(scores, answers)


@pytest.mark.weights
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", DATA)
def test_what_the_text_is_worth(
    name: str, real_data: Callable[[str], Path], encoder: Any, weights_settings: Any
) -> None:
    from recsys.candidates.trainable import HeadStart, fit_generator
    from recsys.data.ingest import read_dataset
    from recsys.errors import WeightsError
    from recsys.lm.weights import resolve
    from recsys.profiles import ProfilesConfig
    from recsys.spec import Training, load_spec, with_vectors

    dataset, spec = read_dataset(real_data(name)), load_spec(SPEC)
    catalog = with_vectors(dataset.catalog, encoder, weights_settings.cache_dir)
    whole = split_log(k_core(dataset.log, 5), "leave-last")
    _, cold, hidden, left = leave(whole, SEED)
    split = thinned(whole, hidden, left.frame["user_id"].unique())
    training = Training.of_split(split)
    early = fit_generator(spec.generator, training.before, catalog, seed=SEED, settings=weights_settings)
    late = fit_generator(
        spec.generator,
        training.known,
        catalog,
        seed=SEED,
        settings=weights_settings,
        start=HeadStart(early, training.tune),
    )
    before, after = (
        ProfilesConfig().fit(log, catalog, rated=dataset.rated, seed=SEED) for log in (training.before, training.known)
    )

    def generate(queries: Queries) -> Candidates:
        return Candidates(early.generate(queries, spec.depth).frame)

    school = School(training.before, training.known, catalog, before, generate, encoder, weights_settings)
    warm = split.questions("test")
    candidates = Candidates(late.generate(warm.queries, spec.depth).frame)
    queries, first, second = halves(left)
    print(f"\n{name}, seed {SEED}: {len(warm)} warm users, {len(queries)} by text, {len(cold)} questions on cold items")

    def gains(fused: Fused, of: Callable[[Profiles], Profiles]) -> dict[str, Floats]:
        judge = fused.judge
        assert isinstance(judge, SequenceJudge)
        profiles = of(after.as_of(warm.queries))
        ranked = fused.rerank(warm.queries, candidates, profiles, catalog)
        codes = judge.vocab.encode(hidden)
        places = np.searchsorted(codes, judge.vocab.encode(cold.truth.frame["item_id"]))
        told = judge.scores(withheld(queries), of(after.as_of(queries)))
        return {
            "warm: reader": unmet(judge, warm, profiles),
            "warm: fused": ndcg(target_ranks(ranked, warm.truth, by="score")["rank"], 10),
            "text": many(told, judge.vocab, first, second),
            "cold": answered(judge.scores(cold.queries, of(after.as_of(cold.queries)))[:, codes], places),
        }

    table: dict[str, dict[str, Floats]] = {
        "the candidates' order": {"warm: fused": ndcg(target_ranks(candidates, warm.truth, by="score")["rank"], 10)}
    }
    questions = training.tune.sample(3 * SequenceConfig().tune_users, SEED)
    described = before.as_of(questions.queries)
    for row in dict.fromkeys(["full", *CHOSEN.split(",")]):
        config = SequenceConfig.model_validate({**COMMON, **ROWS[row]})
        kept = Path(KEEP) / f"{name}-{row}.npz" if KEEP else None
        if kept and kept.exists():
            for key, found in np.load(kept).items():
                table.setdefault(key.partition("|")[0], {})[key.partition("|")[2]] = found
            continue
        if config.backbone:
            try:
                resolve(config.backbone.model, weights_settings)
            except WeightsError as error:
                print(f"{row}: left out: {error}")
                continue
        fused = train_sequence(config, school, questions, described, seed=SEED)
        print(row, json.dumps({"changed": {**COMMON, **ROWS[row]}, "training": fused.report["training"]}), flush=True)
        new = {row: gains(fused, lambda profiles: profiles)}
        if row == "full":
            new["profiles not read"] = gains(fused, lambda profiles: Profiles(profiles.frame.clear()))
            new["profiles of others"] = gains(fused, lambda profiles: of_others(profiles, SEED))
        if kept:
            np.savez(kept, **{f"{what}|{column}": found for what in new for column, found in new[what].items()})
        table |= new
        show(table)
    show(table)
    truth, others = table["full"]["text"], table["profiles of others"]["text"]
    assert paired(truth, others, seed=0).row()["ci95"][0] > 0


def show(table: Mapping[str, Mapping[str, Floats]]) -> None:
    """Print NDCG@10 of each row, and in brackets its difference to the full model's with a 95% interval."""
    rows = []
    for name, row in table.items():
        cells = {}
        for column in COLUMNS:
            full, own = table.get("full", {}).get(column), row.get(column)
            cells[column] = "" if own is None else f"{own.mean():.4f}"
            if own is not None and full is not None and name != "full":
                pair = paired(own, full, seed=0).row()
                low, high = pair["ci95"]
                cells[column] += f" ({pair['delta']:+.4f} [{low:+.4f}, {high:+.4f}])"
        rows.append({"row": name, **cells})
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=60, tbl_width_chars=220):
        print(pl.DataFrame(rows), flush=True)
