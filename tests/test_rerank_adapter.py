"""The packed reranker with a LoRA adapter: it learns what the prompt decides, and never on the fusion's questions."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from test_docs import keys_of, part_of, tables
from test_lm_local import make_tiny_model

from checks import HashLM, assert_no_pickle, assert_same_candidates, mean_ndcg
from recsys.data.split import Questions
from recsys.errors import BundleError, SpecError
from recsys.lm import LMConfig, LocalLM, ReplayLM, load_lm
from recsys.rerank import Fused, PackedConfig, load_reranker
from recsys.rerank import lora as training
from recsys.rerank.adapter import AdapterConfig, Lesson, chosen
from recsys.rerank.features import Ranked
from recsys.rerank.packed import PackedJudge
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, InteractionLog, Profiles, Queries, Truth

FILMS, ANIMALS = "ABCDE", ("dog", "cat", "cow", "hen", "fox")
CATALOG = Catalog(
    pl.DataFrame(
        {
            "item_id": [*range(5), *range(10, 15)],
            "title": [*(f"film {name}" for name in FILMS), *ANIMALS],
            "text": [*(f"film {name}" for name in FILMS), *ANIMALS],
        }
    )
)
QUICK = AdapterConfig(rate=1e-2, warmup=3, batch=4, epochs=5, patience=5, negatives=3, temperature=0.5)
CONFIG = PackedConfig(conditions=("recent",), recent=1, adapter=QUICK)
BRIEF = CONFIG.model_copy(update={"adapter": QUICK.model_copy(update={"epochs": 2, "lists": 20})})


def questions_of(n: int) -> tuple[Questions, Candidates]:
    """`n` users who enjoyed a film, which decides the animal that is theirs; the candidates' order says nothing."""
    rng = np.random.default_rng(n)
    films = rng.integers(5, size=n)
    queries = pl.DataFrame(
        {
            "query_id": np.arange(n),
            "user_id": np.arange(n) + 1000,
            "at": [5] * n,
            "history": [[int(film)] for film in films],
            "weights": [[1.0]] * n,
            "times": [[1]] * n,
            "request": [""] * n,
        }
    )
    lists = np.concatenate([10 + rng.permutation(5) for _ in range(n)])
    candidates = pl.DataFrame(
        {
            "query_id": np.repeat(np.arange(n), 5),
            "item_id": lists,
            "score": np.tile(np.linspace(1, 0, 5), n),
            "rank": np.tile(np.arange(1, 6), n),
            "source": ["noise"] * 5 * n,
            "served_by": ["candidates"] * 5 * n,
        }
    )
    truth = pl.DataFrame({"query_id": np.arange(n), "item_id": films + 10})
    return Questions(Queries(queries), Truth(truth)), Candidates(candidates)


NOBODY = Profiles(
    pl.DataFrame(schema={name: kinds[0] for name, kinds in Profiles.COLUMNS.items()}).cast({"user_id": pl.Int64})
)
LOG = InteractionLog(pl.DataFrame(schema={name: kinds[0] for name, kinds in InteractionLog.COLUMNS.items()}))


def fit(config: PackedConfig, lm: Any, n: int = 100, settings: Settings | None = None) -> Fused:
    questions, candidates = questions_of(n)
    return config.fit(questions, candidates, NOBODY, CATALOG, LOG, lm, seed=0, settings=settings)


def lm_in(folder: Path) -> LocalLM:
    make_tiny_model(folder)
    found = load_lm(LMConfig(model=str(folder), dtype="float32"), Settings(device="cpu", threads=1))
    assert isinstance(found, LocalLM)
    return found


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LocalLM:
    return lm_in(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def fitted(lm: LocalLM) -> Fused:
    return fit(CONFIG, lm)


@pytest.fixture(scope="module")
def unseen() -> tuple[Questions, Candidates]:
    return questions_of(40)


def rerank(reranker: Any, case: tuple[Questions, Candidates]) -> Candidates:
    return reranker.rerank(case[0].queries, case[1], NOBODY, CATALOG)  # type: ignore[no-any-return]


def opinions(judge: Any, case: tuple[Questions, Candidates]) -> list[Any]:
    heads = Ranked.of(case[0].queries, case[1]).frames()
    return list(judge.opinions(heads, case[0].queries, NOBODY, CATALOG))


def test_what_the_prompt_decides_is_learned(fitted: Fused, lm: LocalLM, unseen: Any) -> None:
    told = fitted.report["adapter"]
    assert told["kept"]
    assert told["before"] < 0.75 < 0.9 < max(told["heldout_ndcg@10"])
    truth = unseen[0].truth.frame
    assert mean_ndcg(rerank(fitted, unseen), truth) > 0.9
    without = fit(CONFIG.model_copy(update={"adapter": None}), lm)
    assert mean_ndcg(rerank(without, unseen), truth) < 0.75
    assert "adapter" not in without.report


def test_the_model_that_others_share_stays_what_it_was(tmp_path: Path) -> None:
    lm = lm_in(tmp_path / "tiny-llama")
    names = [name for name, _ in lm.model.named_parameters()]
    before = lm.score(['Recently enjoyed: "film A",'], [[' "dog"', ' "cat"']])
    fused = fit(BRIEF, lm)
    assert lm.score(['Recently enjoyed: "film A",'], [[' "dog"', ' "cat"']]) == before
    assert [name for name, _ in lm.model.named_parameters()] == names
    judge: Any = fused.judge
    assert judge.lm.score(['Recently enjoyed: "film A",'], [[' "dog"', ' "cat"']]) != before
    held = {tensor.data_ptr() for tensor in judge.lm.model.parameters()}
    assert {tensor.data_ptr() for tensor in lm.model.parameters()} <= held  # no second copy of the weights


def test_save_load_rerank_equals_rerank(fitted: Fused, lm: LocalLM, unseen: Any, tmp_path: Path) -> None:
    fitted.save(tmp_path / "part")
    assert_no_pickle(tmp_path / "part")
    again: Any = load_reranker("packed", tmp_path / "part", lambda: lm)
    assert again.judge.model_id == fitted.judge.model_id
    assert_same_candidates(rerank(again, unseen), rerank(fitted, unseen))
    for one, other in zip(opinions(again.judge, unseen), opinions(fitted.judge, unseen), strict=True):
        np.testing.assert_array_equal(one, other)
    unasked = PackedJudge.load(tmp_path / "part" / "judge", None)
    unasked.save(tmp_path / "again")
    for file in (tmp_path / "again").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "part" / "judge" / file.relative_to(tmp_path / "again")).read_bytes()


def test_an_adapter_of_another_base_model_is_refused(fitted: Fused, lm: LocalLM, tmp_path: Path) -> None:
    fitted.save(tmp_path / "part")
    other = replace(lm, model_id="tiny-llama@00000000:fp32")
    with pytest.raises(BundleError, match=r"was trained on .* 'tiny-llama@\w+:fp32', but 'tiny-llama@00000000:fp32'"):
        load_reranker("packed", tmp_path / "part", lambda: other)
    with pytest.raises(BundleError, match="but none is given"):
        load_reranker("packed", tmp_path / "part", lambda: None)
    adapter: Any = fitted.judge.adapter  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="do not fit the model"):
        replace(adapter, rank=4).on(lm)


def test_the_same_base_model_in_another_folder_will_do(fitted: Fused, unseen: Any, tmp_path: Path) -> None:
    fitted.save(tmp_path / "part")
    moved = lm_in(tmp_path / "other-llama")
    assert moved.model_id.startswith("other-llama@")
    again = load_reranker("packed", tmp_path / "part", lambda: moved)
    questions, candidates = unseen
    args = (questions.queries, candidates, NOBODY, CATALOG)
    assert_same_candidates(again.rerank(*args), fitted.rerank(*args))


@pytest.mark.parametrize("harm", ["weights", "config", "gone", "cut"])
def test_an_adapter_that_is_not_the_one_of_the_fit_is_refused(
    fitted: Fused, lm: LocalLM, tmp_path: Path, harm: str
) -> None:
    fitted.save(tmp_path / "part")
    folder = tmp_path / "part" / "judge" / "adapter"
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if harm == "weights":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif harm == "config":
        config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 17'))
    elif harm == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        for file in (weights, config):
            file.unlink()
        folder.rmdir()
    with pytest.raises(BundleError, match=r"was fitted with the language model|is not readable as a"):
        load_reranker("packed", tmp_path / "part", lambda: lm)


def test_peft_itself_reads_what_is_saved(fitted: Fused, lm: LocalLM, tmp_path: Path) -> None:
    import warnings
    from copy import deepcopy

    from peft import PeftModel

    judge: Any = fitted.judge
    judge.adapter.save(tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        other = PeftModel.from_pretrained(deepcopy(lm.model), str(tmp_path / "adapter"))
    ids = torch.tensor([lm._ids("Recently enjoyed:")])
    with torch.inference_mode():
        torch.testing.assert_close(other(input_ids=ids).logits, judge.lm.model(input_ids=ids).logits)
        assert not torch.allclose(other(input_ids=ids).logits, lm.model(input_ids=ids).logits, atol=1e-2)


def test_the_order_of_candidates_changes_no_opinion(fitted: Fused, unseen: Any) -> None:
    questions, candidates = unseen
    turned = Candidates(candidates.frame.with_columns(rank=6 - pl.col("rank")))
    forwards = opinions(fitted.judge, (questions, candidates))
    backwards = opinions(fitted.judge, (questions, turned))
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_allclose(one, other[::-1], atol=1e-4)


def test_priors_are_those_of_the_adapted_model(fitted: Fused, lm: LocalLM) -> None:
    judge: Any = fitted.judge
    titles = sorted(judge.priors)
    assert set(titles) >= {f' "{name}"' for name in ANIMALS}
    (own,), (plain,) = (model.score([judge.prompt.empty], [titles]) for model in (judge.lm, lm))
    found = [judge.priors[title] for title in titles]
    assert found == pytest.approx([score.mean for score in own], abs=1e-4)
    assert found != pytest.approx([score.mean for score in plain], abs=1e-2)


def test_no_question_teaches_both_the_adapter_and_the_fusion(lm: LocalLM, monkeypatch: Any) -> None:
    """The prompts of the one and the queries of the other, as they arrive there; each film is one user's."""
    n = 60
    films = [f"film {i}" for i in range(n)]
    own = pl.DataFrame({"item_id": range(100, 100 + n), "title": films, "text": films})
    catalog = Catalog(pl.concat([CATALOG.frame, own]))
    questions, candidates = questions_of(n)
    history = pl.Series([[100 + i] for i in range(n)])
    asked = Questions(Queries(questions.queries.frame.with_columns(history=history)), questions.truth)
    lessons: list[Lesson] = []
    fused: set[int] = set()

    def listen(config: Any, given: list[Lesson], *_: Any, **__: Any) -> Any:
        lessons.extend(given)
        return None, {"kept": False}

    def overhear(self: Any, heads: Any, *_: Any) -> Any:
        fused.update(head["query_id"][0] for head in heads)
        return [np.zeros(len(head)) for head in heads]

    monkeypatch.setattr(training, "train_adapter", listen)
    monkeypatch.setattr(PackedJudge, "opinions", overhear)
    CONFIG.fit(asked, candidates, NOBODY, catalog, LOG, lm, seed=0)
    learned = {i for i in range(n) if any(f'"film {i}"' in lesson.prompt for lesson in lessons)}
    assert len(learned) == len(lessons) == len(fused) == n // 2
    assert learned & fused == set()
    titles = dict(CATALOG.frame.select("item_id", "title").iter_rows())
    truth = {f'"film {query}"': f' "{titles[item]}"' for query, item in questions.truth.frame.iter_rows()}
    for lesson in lessons:
        (right,) = [answer for film, answer in truth.items() if film in lesson.prompt]
        assert lesson.right == right
        assert right not in lesson.wrong
        assert right not in lesson.prompt


def test_the_adapter_learns_from_whole_users_and_never_from_more_than_half() -> None:
    questions, _ = questions_of(90)
    users = pl.Series("user_id", [None if i >= 80 else i // 2 for i in range(90)])  # 40 users, 10 anonymous visitors
    queries = Queries(questions.queries.frame.with_columns(users))
    some = np.arange(0, 90, 3)  # the lists that hold their answer
    few, many, others = (chosen(queries, some, most, seed) for most, seed in ((5, 0), (1000, 0), (1000, 1)))
    for learns in (few, many, others):
        names = [set(queries.frame.filter(part)["user_id"].drop_nulls()) for part in (learns, ~learns)]
        assert names[0] & names[1] == set()
    assert 5 <= few[some].sum() <= 6
    assert queries.frame.filter(many)["user_id"].fill_null(-1).n_unique() <= 26
    assert 30 <= many.sum() <= 50
    assert not np.array_equal(many, others)


def test_the_order_of_questions_changes_nothing(lm: LocalLM) -> None:
    questions, candidates = questions_of(60)
    order = np.random.default_rng(0).permutation(60)
    turned = Questions(Queries(questions.queries.frame[order]), Truth(questions.truth.frame[order]))
    one, other = (BRIEF.fit(q, candidates, NOBODY, CATALOG, LOG, lm, seed=0) for q in (questions, turned))
    assert one.judge.model_id == other.judge.model_id
    assert one.report == other.report


def test_too_few_lists_leave_the_model_as_it_is(lm: LocalLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fused = fit(CONFIG, lm, 30)
    assert "15 lists with an answer are too few to learn from" in caplog.text
    assert fused.judge.model_id == lm.model_id
    assert fused.report["lists"] == 30


def test_the_models_that_cannot_be_adapted_are_named(lm: LocalLM) -> None:
    with pytest.raises(SpecError, match=r"reranker\.adapter: test/hash cannot be trained here.*lm\.kind = 'local'"):
        fit(CONFIG, HashLM())
    wrong = CONFIG.model_copy(update={"adapter": QUICK.model_copy(update={"modules": ("q_proj", "c_attn")})})
    with pytest.raises(SpecError, match=r"has no linear layer 'c_attn' \(it has: down_proj, .*v_proj"):
        fit(wrong, lm)


def test_a_store_of_answers_keeps_those_of_the_adapted_model_apart(
    fitted: Fused, lm: LocalLM, unseen: Any, tmp_path: Path
) -> None:
    judge: Any = fitted.judge
    stored = judge.adapter.on(ReplayLM(lm, tmp_path))
    assert isinstance(stored, ReplayLM)
    assert stored.model_id == judge.model_id
    for one, other in zip(opinions(replace(judge, lm=stored), unseen), opinions(judge, unseen), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_table_of_keys_is_documented() -> None:
    assert tables(part_of("`[reranker.adapter]`")) == [keys_of(AdapterConfig)]
