"""The training of a LoRA adapter: its gradients, its batches, where it stops, and how it goes on."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_rerank_adapter import ANIMALS, BRIEF, CONFIG, FILMS, QUICK, fit, questions_of
from test_rerank_adapter import lm as lm  # the fixture

from recsys.errors import ModelError, SpecError
from recsys.lm import LocalLM
from recsys.rerank import lora as training
from recsys.rerank.adapter import AdapterConfig, Lesson
from recsys.rerank.lora import Draws, Learner, attach, quality
from recsys.settings import Settings


def lessons_of(n: int) -> list[Lesson]:
    questions, _ = questions_of(n)
    films = questions.truth.frame["item_id"].to_numpy() - 10
    animals = [f' "{name}"' for name in ANIMALS]
    return [
        Lesson(f'Recently enjoyed: "film {FILMS[k]}",', animals[k], tuple(a for a in animals if a != animals[k]))
        for k in films
    ]


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(
    lm: LocalLM, settings: Settings, monkeypatch: Any
) -> None:
    whole = fit(BRIEF, lm, 60, settings)
    asked: list[float] = []

    def listening(*args: Any) -> float:
        asked.append(quality(*args))
        return asked[-1]

    def power_cut(*args: Any) -> float:
        if len(asked) == 2:  # before training, after the first epoch, and now
            raise RuntimeError("the power is out")
        return listening(*args)

    monkeypatch.setattr(training, "quality", power_cut)
    with pytest.raises(RuntimeError, match="power"):
        fit(BRIEF, lm, 60, settings)
    kept = list((settings.cache_dir / "training").rglob("*.ckpt"))
    assert kept
    assert all(file.stat().st_size < 1_000_000 for file in kept)  # what is learned, not the model
    monkeypatch.setattr(training, "quality", listening)
    asked.clear()
    resumed = fit(BRIEF, lm, 60, settings)
    assert len(asked) == 2
    assert resumed.report == whole.report
    assert resumed.judge.model_id == whole.judge.model_id
    assert not list((settings.cache_dir / "training").iterdir())


def test_an_adapter_that_helps_nothing_is_left_out(
    lm: LocalLM, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "quality", lambda *_: 0.5)
    with caplog.at_level(logging.WARNING):
        fused: Any = fit(BRIEF, lm, 60)
    assert "orders held-out lists no better" in caplog.text
    assert not fused.report["adapter"]["kept"]
    assert fused.judge.model_id == lm.model_id
    assert fused.judge.adapter is None


def test_a_training_that_diverges_and_one_without_memory_say_so(lm: LocalLM, monkeypatch: Any) -> None:
    wild = CONFIG.model_copy(update={"adapter": QUICK.model_copy(update={"rate": 1e30, "warmup": 0})})
    with pytest.raises(SpecError, match=r"diverged.*lower reranker\.adapter\.rate"):
        fit(wild, lm, 60)

    def tight(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LocalLM, "likelihoods", tight)
    with pytest.raises(ModelError, match=r"with 4 candidates of one list: lower reranker\.adapter\.negatives"):
        fit(CONFIG, lm, 60)


def test_accumulated_gradients_are_those_of_the_mean_loss(lm: LocalLM) -> None:
    """List by list, as training does it to save memory, and all lists in one graph."""
    torch.manual_seed(0)
    model = attach(lm, QUICK)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.1)
    learner = Learner(replace(lm, model=model.get_base_model()), lessons_of(6), "Recently enjoyed:", 0.5)
    batch = {"lists": torch.tensor([4, 0, 2]), "wrong": torch.tensor([[0, 1, 3], [2, 1, -1], [0, -1, -1]])}
    plain = torch.stack(
        [
            learner.loss(learner.lessons[i], [learner.lessons[i].wrong[j] for j in drawn])
            for i, drawn in ((4, [0, 1, 3]), (0, [2, 1]), (2, [0]))
        ]
    ).mean()
    expected = torch.autograd.grad(plain, list(learner.parameters()))
    found = learner(batch)
    assert float(found.detach()) == pytest.approx(float(plain.detach()), abs=1e-5)
    for one, other in zip(torch.autograd.grad(found, list(learner.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_epoch_goes_through_every_list_once_and_draws_among_its_own_wrong_answers() -> None:
    sizes = np.array([4, 1, 3, 4, 2])
    config = QUICK.model_copy(update={"batch": 2, "negatives": 3})
    batches = list(Draws(sizes, config, np.random.default_rng(0)))
    assert [len(batch["lists"]) for batch in batches] == [2, 2, 1]
    lists = torch.cat([batch["lists"] for batch in batches]).tolist()
    wrong = torch.cat([batch["wrong"] for batch in batches]).tolist()
    assert sorted(lists) == [0, 1, 2, 3, 4]
    for place, drawn in zip(lists, wrong, strict=True):
        some = [j for j in drawn if j >= 0]
        assert len(some) == len(set(some)) == min(3, sizes[place])
        assert all(j < sizes[place] for j in some)
    assert str(wrong) != str([d["wrong"].tolist() for d in Draws(sizes, config, np.random.default_rng(1))])


@pytest.mark.weights
def test_an_adapter_of_the_default_model_takes_less_than_15_megabytes(small_lm: Any) -> None:
    learned = [p for p in attach(small_lm, AdapterConfig()).parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in learned)
    assert 1_000_000 < sum(4 * p.numel() for p in learned) < 15_000_000
