"""What 100 candidates cost, in one run on one machine: sequence reranker, its student, packed text, a prompt for each.

Speed does not depend on what was learned, so the sequence reranker is trained for one epoch on 300 users of ml-1m, with
the whole catalog, and is told to listen to its network; so is the student. Nothing is known from query to query, but
where it says "again": there everybody asked before, and nothing has happened since, or one event, of users whose
history is not longer than what is read. Bars hold for CPU time where they compare: it depends less on who else uses the
machine; a request waits wall time. The student's bar is a few milliseconds, so its first requests are asked in rounds,
by copies that remember nobody, and the fastest round counts: what this machine can do when it is left alone.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from checks import one_by_one
from recsys.candidates import PopularConfig
from recsys.data.split import split_log
from recsys.profiles import ProfilesConfig
from recsys.rerank import Fallback, Fused, PackedConfig, SequenceConfig, StudentConfig
from recsys.rerank.distil import train_student
from recsys.rerank.fusion import LinearFusion
from recsys.rerank.packed import PackedJudge
from recsys.rerank.prompt import Prompt
from recsys.rerank.train import School, train_sequence
from recsys.tables import Candidates, Catalog, InteractionLog, Profiles, Queries

DEPTH = 100
QUICK = SequenceConfig(epochs=1, finish=0, exercises=1, written=2000, heldout=50)
QUICK_STUDENT = StudentConfig(lists=300, epochs=1, requests=0.1, told=0)
LISTENING = LinearFusion({"score": 1.0, "log_rank": 0.1, "lm": 1.0, "log_popularity": 0.1})
SINGLE, PACKED, PROMPTED = 220, 4, 2  # users
SOME = 10  # of the candidates, where each has a prompt of its own: the time is scaled to all of them
WARM_UP = 20
ROUNDS = 5
FASTER_THAN_PROMPTS, FASTER_THAN_PACKED, P50_MS, STUDENT_MS, PEAK_GB = 20, 8, 150, 5, 5


class Case(NamedTuple):
    queries: Queries
    candidates: Candidates
    profiles: Profiles
    catalog: Catalog


def cost(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall-clock seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def row(name: str, costs: Sequence[tuple[float, float]], scale: float = 1.0) -> dict[str, Any]:
    cpu, wall = 1e3 * scale * np.array(costs).T
    return {
        "reranker": name,
        "users": len(costs),
        "CPU ms": cpu.mean(),
        "p50 CPU ms": np.median(cpu),
        "wall ms": wall.mean(),
        "p50 ms": np.median(wall),
        "p99 ms": np.quantile(wall, 0.99) if len(costs) >= 100 else None,
    }


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def singles(case: Case, n: int) -> list[Case]:
    found = []
    for query in one_by_one(Queries(case.queries.frame.head(n))):
        one = pl.col("query_id") == query.frame["query_id"][0]
        own = Candidates(case.candidates.frame.filter(one))
        found.append(Case(query, own, Profiles(case.profiles.frame.filter(one)), case.catalog))
    return found


def grown(reranker: Fused, earlier: Case, later: Case) -> tuple[float, float]:
    """What a request costs after another before the last event."""
    reranker.rerank(*earlier)
    return cost(lambda: reranker.rerank(*later))


def asked(reranker: Fused, case: Case) -> list[tuple[float, float]]:
    """What each of the first users' requests costs."""
    return [cost(lambda single=single: reranker.rerank(*single)) for single in singles(case, SINGLE)]  # type: ignore[misc]


def forgetful(fused: Fused) -> Fused:
    """The same, to whom nobody is known: a sequence judge remembers by itself, a student by its reader."""
    judge: Any = fused.judge
    own = {"reader": replace(judge.reader)} if judge.kind == "student" else {}
    return replace(fused, judge=replace(judge, **own))


@pytest.fixture(scope="module")
def trained(real_data: Callable[[str], Path], encoder: Any, weights_settings: Any) -> tuple[Fused, Fused, Case]:
    from recsys.data.ingest import read_dataset
    from recsys.spec import with_vectors

    dataset = read_dataset(real_data("ml-1m"))
    catalog = with_vectors(dataset.catalog, encoder, weights_settings.cache_dir)
    split = split_log(dataset.log, "leave-last")
    few = split.fit.frame["user_id"].unique().sort().head(300).implode()
    fit, known = (InteractionLog(log.frame.filter(pl.col("user_id").is_in(few))) for log in (split.fit, split.known))
    popular = PopularConfig().fit(split.fit, catalog, seed=0)
    described = ProfilesConfig().fit(split.fit, catalog, rated=dataset.rated, seed=0)

    def generate(queries: Queries) -> Candidates:
        return popular.generate(queries, DEPTH)

    school = School(fit, known, catalog, described, generate, encoder, weights_settings)
    questions = split.questions("tune").sample(300, 0)
    fused = train_sequence(QUICK, school, questions, described.as_of(questions.queries), seed=0)
    fused = replace(fused, fusions={"plain": LISTENING})
    student = train_student(QUICK_STUDENT, school, fused, questions, seed=0)
    queries = split.questions("test").queries
    case = Case(queries, generate(queries), described.as_of(queries), catalog)
    return fused, replace(student, fusions={"plain": LISTENING}), case


@pytest.mark.weights
@pytest.mark.timeout(3600)
def test_the_sequence_reranker_against_packed_text_and_separate_prompts(
    trained: tuple[Fused, Fused, Case], request: pytest.FixtureRequest
) -> None:
    import torch

    sequence, student, case = trained
    n = len(case.queries)
    batch = cost(lambda: Fallback(sequence).rerank(*case))
    batch_peak = peak_gb()
    one, again = asked(sequence, case), asked(sequence, case)
    rounds = [asked(forgetful(student), case) for _ in range(ROUNDS)]
    asked(student, case)
    pupil_again = asked(student, case)
    alone = [
        cost(lambda s=s: list(student.judge.opinions([s.candidates.frame], s.queries, s.profiles, s.catalog)))  # type: ignore[misc]
        for s in singles(case, SINGLE)
    ]
    shorter = pl.col("history").list.len().is_between(2, QUICK.length)
    growing = case._replace(queries=Queries(case.queries.frame.filter(shorter)))
    events = pl.col("history", "weights", "times")
    lacking = growing._replace(
        queries=Queries(growing.queries.frame.with_columns(events.list.head(pl.col("history").list.len() - 1)))
    )
    steps = list(zip(singles(lacking, SINGLE), singles(growing, SINGLE), strict=True))
    after = {
        name: [grown(reranker, *step) for step in steps]
        for name, reranker in (("sequence", forgetful(sequence)), ("student", forgetful(student)))
    }
    by_student = cost(lambda: Fallback(student).rerank(*case))
    said = pl.lit("a light comedy from the nineties, no horror")
    asking = case._replace(queries=Queries(case.queries.frame.with_columns(request=said)))
    told = asked(sequence, asking)

    lm = request.getfixturevalue("small_lm")
    config = PackedConfig(depth=DEPTH)
    judge = PackedJudge(config, Prompt.read(config.prompt), lm)
    packed = Fused(judge, DEPTH, {"plain": LISTENING}, sequence.counts)
    some = singles(case, PACKED + 1)
    judge.prepare([single.candidates.frame for single in some], Catalog(_listed(some)))
    packed.rerank(*some[0])
    text = [cost(lambda single=single: packed.rerank(*single)) for single in some[1:]]  # type: ignore[misc]
    prompts = [_prompts(judge, single) for single in some[1 : 1 + PROMPTED]]
    separate = [
        cost(lambda each=each: [lm.score([prompt], [[answer]]) for prompt, answer in each])  # type: ignore[misc]
        for each in prompts
    ]

    pupil = [row("student", costs[WARM_UP:]) for costs in rounds]
    rows = [
        row("sequence", one[WARM_UP:]),
        row("sequence, again", again[WARM_UP:]),
        row("sequence, again after an event", after["sequence"][WARM_UP:]),
        row("sequence, again with a request", told[WARM_UP:]),
        min(pupil, key=lambda found: found["p50 ms"]),
        row("student, again", pupil_again[WARM_UP:]),
        row("student, again after an event", after["student"][WARM_UP:]),
        row("student, its opinion alone, again", alone[WARM_UP:]),
        row("packed", text),
        row("separate prompts", separate, DEPTH / SOME),
    ]
    print(f"\nml-1m, {DEPTH} candidates, {torch.get_num_threads()} threads, {lm.model_id}; one query at a time")
    print(f"separate prompts: {SOME} candidates of {PROMPTED} users, times {DEPTH // SOME}")
    with pl.Config(tbl_width_chars=140):
        print(pl.DataFrame(rows))
    for what in ("p50 ms", "p50 CPU ms"):
        print(f"student, {what} of each round:", [round(float(found[what]), 2) for found in pupil])
    by_name = {found["reranker"]: found for found in rows}
    own, naive = (by_name[name]["CPU ms"] for name in ("sequence", "separate prompts"))
    times = {"separate prompts": naive / own, "packed": by_name["packed"]["CPU ms"] / own}
    print("times the CPU of sequence:", {name: round(found) for name, found in times.items()})
    print(
        f"batch: {n} users in {batch[1]:.1f} s ({batch[0]:.1f} CPU-s), {n / batch[1]:.0f} users/s, "
        f"{n / batch[0]:.0f} users per CPU-second, separate prompts {1e3 / naive:.3f}; "
        f"peak RSS {batch_peak:.2f} GB, training included, and {peak_gb():.2f} GB with the LM"
    )
    print(f"student, batch: {n / by_student[1]:.0f} users/s, {n / by_student[0]:.0f} users per CPU-second")
    assert times["separate prompts"] >= FASTER_THAN_PROMPTS
    assert times["packed"] >= FASTER_THAN_PACKED
    assert by_name["sequence"]["p50 ms"] <= P50_MS
    assert by_name["student"]["p50 ms"] <= STUDENT_MS
    assert n / batch[0] >= FASTER_THAN_PROMPTS * 1e3 / naive
    assert peak_gb() <= PEAK_GB


def _listed(some: Sequence[Case]) -> pl.DataFrame:
    items = pl.concat([single.candidates.frame["item_id"] for single in some]).unique()
    return some[0].catalog.frame.filter(pl.col("item_id").is_in(items.implode()))


def _prompts(judge: PackedJudge, single: Case) -> list[tuple[str, str]]:
    """The prompt that packed text has once, and a candidate, for some of them."""
    (found,) = judge.cases([single.candidates.frame], single.queries, single.profiles, single.catalog)
    prompt = judge.prompt.render(found.about)
    return [(prompt, judge.prompt.render_answer(title, judge.longest)) for title in found.items[:SOME]]
