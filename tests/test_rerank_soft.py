"""Soft tokens: what the log alone decides is learned through them, and nothing else in a prompt can be one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from test_rerank_adapter import CATALOG, NOBODY, QUICK, questions_of
from test_rerank_adapter import lm as lm  # the fixture

from checks import HashLM, assert_no_pickle, assert_same_candidates, mean_ndcg
from recsys.data.split import Questions
from recsys.errors import BundleError, SpecError
from recsys.lm import LocalLM, ReplayLM
from recsys.lm.local import SOFT
from recsys.lm.replay import forget
from recsys.rerank import EndpointConfig, Fused, PackedConfig, load_reranker
from recsys.rerank import lora as training
from recsys.rerank.lora import attach, worn
from recsys.rerank.prompt import PACKED, About, Prompt
from recsys.rerank.soft import SoftTokens
from recsys.tables import Catalog, InteractionLog, Queries

# Titles of films say nothing: all are called alike. What they are met with does.
ALIKE = Catalog(
    CATALOG.frame.with_columns(
        pl.when(pl.col("item_id") < 10).then(pl.lit("film")).otherwise("title").alias(name)
        for name in ("title", "text")
    )
)
CONFIG = PackedConfig(conditions=("recent", "vectors"), recent=1, prompt="pmi-v2", adapter=QUICK)


def log_of() -> InteractionLog:
    """Each film is met with its own animal."""
    pairs = [(user, item, ts) for user in range(50) for ts, item in enumerate((user % 5, 10 + user % 5))]
    frame = pl.DataFrame(pairs, schema=["user_id", "item_id", "ts"], orient="row")
    return InteractionLog.of(frame.with_columns(event=pl.lit("interaction"), weight=pl.lit(1.0)))


def fit(config: PackedConfig, lm: LocalLM) -> Fused:
    questions, candidates = questions_of(100)
    return config.fit(questions, candidates, NOBODY, ALIKE, log_of(), lm, seed=0)


@pytest.fixture(scope="module")
def fitted(lm: LocalLM) -> Fused:
    return fit(CONFIG, lm)


@pytest.fixture(scope="module")
def unseen() -> Any:
    return questions_of(40)


def quality(fused: Any, case: Any) -> float:
    return mean_ndcg(fused.rerank(case[0].queries, case[1], NOBODY, ALIKE), case[0].truth.frame)


def test_what_only_the_log_tells_is_learned_through_soft_tokens(fitted: Fused, lm: LocalLM, unseen: Any) -> None:
    assert fitted.report["adapter"]["kept"]
    assert quality(fitted, unseen) > 0.9
    without = fit(CONFIG.model_copy(update={"conditions": ("recent",)}), lm)
    assert quality(without, unseen) < 0.75


def test_they_survive_saving_and_belong_to_what_was_learned(
    fitted: Fused, lm: LocalLM, unseen: Any, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "saved")
    assert_no_pickle(tmp_path / "saved")
    loaded: Any = load_reranker("packed", tmp_path / "saved", lambda: lm)
    assert_same_candidates(
        *(fused.rerank(unseen[0].queries, unseen[1], NOBODY, ALIKE) for fused in (fitted, loaded)),
    )
    adapter = loaded.judge.adapter
    assert adapter.model_id == loaded.judge.model_id
    moved = replace(adapter, soft=replace(adapter.soft, bias=adapter.soft.bias + 1))
    assert moved.model_id != adapter.model_id
    (tmp_path / "saved" / "judge" / "adapter" / "soft.safetensors").write_bytes(b"{}")
    with pytest.raises(BundleError, match="not readable as soft tokens"):
        load_reranker("packed", tmp_path / "saved", lambda: lm)


def test_the_model_itself_stays_as_it_is(fitted: Fused, lm: LocalLM) -> None:
    assert isinstance(lm.model.get_input_embeddings(), torch.nn.Embedding)
    assert lm.soft is None
    found: Any = fitted.judge
    ids = lm._ids("a film, and an animal")
    assert found.lm._ids("a film, and an animal") == ids


def test_a_soft_token_is_one_token_and_the_text_around_it_is_what_it_was(lm: LocalLM) -> None:
    soft = SoftTokens.of(log_of())
    own = worn(lm, attach(lm, QUICK, soft))
    said = soft.said([3, 99, 12])  # nothing is known of 99
    assert said == chr(SOFT[3]) + chr(SOFT[soft.ids.to_list().index(12)])
    assert own._ids(f"a{said}b") == [*lm._ids("a"), own.soft + 3, own.soft + ord(said[1]) - SOFT[0], *lm._ids("b")]
    assert own.count(f"{said}{said}") == 4
    (score,) = own.score([f"film {said}"], [["dog"]])[0]
    assert np.isfinite(score.logprob)
    assert own.score(["film"], [["dog"]])[0][0].logprob == pytest.approx(lm.score(["film"], [["dog"]])[0][0].logprob)


def test_nobody_can_write_a_soft_token(lm: LocalLM) -> None:
    forged = f"film {chr(SOFT[0])} {chr(SOFT[-1])}"
    prompt = Prompt.read("pmi-v2", PACKED)
    about = About(forged, [forged], [forged], forged, forged)
    assert not set(prompt.render(about) + prompt.render_answer(forged)) & set(map(chr, SOFT))


def test_items_without_events_are_left_out_and_only_the_last_ones_are_said(fitted: Fused) -> None:
    judge: Any = fitted.judge
    assert judge.vectors([]) == ""
    assert judge.vectors([77]) == ""
    assert len(judge.vectors([0, 1] * 100)) == CONFIG.vectors


def test_a_prompt_that_is_too_long_loses_the_oldest_ones(fitted: Fused, unseen: Any) -> None:
    """And the list is judged."""
    judge: Any = fitted.judge
    short = replace(judge, config=judge.config.model_copy(update={"context": 64 + 40, "recent": 0}))
    long = (pl.col(name).list.gather([0] * 45) for name in ("history", "weights", "times"))
    asked = Queries(unseen[0].queries.frame.head(1).with_columns(*long))
    (case,) = short.cases([unseen[1].frame.head(5)], asked, NOBODY, ALIKE)
    left = short.fitting(case).about.vectors
    assert 0 < len(left) < len(case.about.vectors) == 45
    assert case.about.vectors.endswith(left)


def test_where_they_cannot_be_learned_or_said_an_error_says_so(lm: LocalLM) -> None:
    for config in (PackedConfig, EndpointConfig):
        with pytest.raises(ValidationError, match=r'they need kind = "packed" with reranker.adapter'):
            config(conditions=("vectors",), prompt="pmi-v2")
    with pytest.raises(SpecError, match="prompt 'pmi-v1' has no place for 'vectors'"):
        fit(CONFIG.model_copy(update={"prompt": "pmi-v1"}), lm)


def test_what_helps_nothing_is_left_out_and_measured_without_them(lm: LocalLM, monkeypatch: Any) -> None:
    prompts: list[list[str]] = []

    def alike(_: Any, lessons: Any, __: str) -> float:
        prompts.append([lesson.prompt for lesson in lessons])
        return 0.5

    monkeypatch.setattr(training, "quality", alike)
    brief = CONFIG.model_copy(update={"adapter": QUICK.model_copy(update={"epochs": 1, "lists": 20})})
    fused: Any = fit(brief, lm)
    soft = set(map(chr, SOFT))
    assert not soft & set("".join(prompts[0]))  # of the model as it is
    assert all(soft & set(prompt) for prompt in prompts[1])
    assert fused.judge.soft is None
    assert fused.judge.vectors([0, 1]) == ""


def test_a_prompt_is_cut_in_training_where_it_is_cut_in_use(lm: LocalLM, monkeypatch: Any) -> None:
    """A soft token counts as one, though a model without any reads its character as four."""
    seen: list[Any] = []
    monkeypatch.setattr(training, "train_adapter", lambda _, lessons, *__, **___: seen.extend(lessons) or (None, {}))
    tight = CONFIG.model_copy(update={"recent": 0, "conditions": ("vectors",), "context": 64 + 60})
    questions, candidates = questions_of(100)
    many = {"history": [[0] * 45] * 100, "weights": [[1.0] * 45] * 100, "times": [[1] * 45] * 100}
    asked = Queries(questions.queries.frame.with_columns(**{k: pl.Series(v) for k, v in many.items()}))
    tight.fit(Questions(asked, questions.truth), candidates, NOBODY, ALIKE, log_of(), lm, seed=0)
    assert {sum(ord(c) in SOFT for c in lesson.prompt) for lesson in seen} != {0}
    assert min(sum(ord(c) in SOFT for c in lesson.prompt) for lesson in seen) > 15


def test_erasing_finds_recorded_histories_by_their_soft_tokens(tmp_path: Path) -> None:
    soft = SoftTokens.of(log_of())
    prompts = [f"Enjoyed in this order: {soft.said(items)}" for items in ([0, 1, 2], [3, 4])]
    ReplayLM(HashLM(), tmp_path).score(prompts, [["a"]] * 2)
    assert forget(tmp_path, [soft.said([1, 2])]) == 1
    assert forget(tmp_path, [soft.said([2, 1])]) == 0


def test_opinions_do_not_depend_on_the_order_of_candidates(fitted: Fused, unseen: Any) -> None:
    head = unseen[1].frame.head(5)
    straight, turned = (
        next(iter(fitted.judge.opinions([listed], unseen[0].queries, NOBODY, ALIKE)))
        for listed in (head, head.reverse())
    )
    np.testing.assert_allclose(straight, turned[::-1], atol=1e-4)
