"""The sequential source and its training: what it learns, where it stops, how it goes on after an interruption."""

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from checks import with_word_vectors
from recsys.candidates import SequentialConfig
from recsys.candidates.nextitem import NextItem
from recsys.candidates.sequential import heldout_quality
from recsys.candidates.trainable import HeadStart
from recsys.data.vocab import Histories
from recsys.errors import SpecError, StorageError
from recsys.networks import pairs as pairs_module
from recsys.networks.attention import principal_directions
from recsys.networks.checkpoints import read_checkpoint, write_checkpoint
from recsys.networks.chunks import Chunks, hold_out
from recsys.networks.pairs import cooccurrence
from recsys.networks.training import workplace
from recsys.tables import Catalog, InteractionLog, Queries, adhoc_query

SMALL = SequentialConfig(
    dim=16, layers=1, heads=2, batch=8, epochs=4, finish=1, rate=1e-2, warmup=5, use_text=False, dropout=0.0
)


def log_of(rows: list[tuple[int, int, int]]) -> InteractionLog:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "ts"], orient="row")
    return InteractionLog.of(frame.with_columns(event=pl.lit("interaction"), weight=pl.lit(1.0)))


def ring(n_users: int = 60) -> InteractionLog:
    """Everybody walks a ring of 12 items from a start of their own: the next item is certain."""
    return log_of([(u, (u + step) % 12, step) for u in range(n_users) for step in range(8)])


def catalog_of(n: int) -> Catalog:
    return Catalog(pl.DataFrame({"item_id": range(n), "title": [f"Item {i}" for i in range(n)], "text": ["word"] * n}))


def ask(history: list[int]) -> Queries:
    return adhoc_query(history, at=100, dtype=pl.Int64)


def histories_of(*rows: list[int]) -> Histories:
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    return Histories(indptr, items, np.ones(len(items), dtype=np.float32), np.zeros(len(items), dtype=np.int64))


def items(generator: Any, history: list[int], n: int = 10) -> list[int]:
    return generator.generate(ask(history), n).frame["item_id"].to_list()


def test_it_learns_what_comes_next_in_either_direction() -> None:
    there = [(u, (u + step) % 12, step) for u in range(60) for step in range(8)]
    back = [(60 + u, (u - step) % 12, step) for u in range(60) for step in range(8)]
    config = SMALL.model_copy(update={"epochs": 15, "patience": 15, "finish": 3})
    generator = config.fit(log_of(there + back), catalog_of(12), seed=0)
    assert [items(generator, [i, (i + 1) % 12, (i + 2) % 12], 1) for i in range(12)] == [
        [(i + 3) % 12] for i in range(12)
    ]
    assert items(generator, [5, 4, 3], 1) == [2]
    assert generator.report["heldout_ndcg@10"][generator.report["best_epoch"] - 1] > 0.9


def test_every_pair_of_neighbours_is_learned_exactly_once_whatever_the_offset() -> None:
    rows = [list(range(i, i + n)) for i, n in enumerate((2, 3, 7, 8, 9, 40))]
    for epoch in range(5):
        chunks = Chunks(histories_of([0], *rows, []), 4, 3, rng(epoch))
        pairs = []
        for batch in chunks:
            asked = batch["targets"] >= 0
            assert (asked.sum(dim=1) <= 4).all()
            pairs += list(zip(batch["items"][asked].tolist(), batch["targets"][asked].tolist(), strict=True))
        assert sorted(pairs) == sorted((a, b) for row in rows for a, b in pairwise(row))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_what_is_held_out_is_each_chosen_users_last_event_and_nothing_else() -> None:
    histories = histories_of([1, 2, 3], [4], [5, 6], [], [7, 8, 9, 1])
    learned, held, answers = hold_out(histories, 10, seed=0)
    assert learned.indptr.tolist() == [0, 2, 3, 5, 5, 8]
    assert learned.items.tolist() == [1, 2, 4, 5, 6, 7, 8, 9]
    assert held.items.tolist() == [1, 2, 7, 8, 9]
    assert answers.tolist() == [3, 1]


def test_the_factors_put_items_side_by_side_that_stand_near_each_other() -> None:
    factors = cooccurrence(histories_of(*[[0, 1, 2]] * 5, *[[3, 4, 5]] * 5), 7, dim=4)
    likeness = factors @ factors.T
    assert likeness[0, 1] > 0.2
    assert abs(likeness[0, 4]) < 1e-5
    assert not factors[6].any()
    assert cooccurrence(histories_of([0, 0]), 1, dim=4).tolist() == [[0, 0, 0, 0]]


def test_factors_that_weigh_alike_are_the_same_twice() -> None:
    pairs = histories_of(*[[2 * k, 2 * k + 1] for k in range(100)] * 3)
    first = cooccurrence(pairs, 200, dim=64)
    assert np.linalg.matrix_rank(first) == 64
    np.testing.assert_array_equal(first, cooccurrence(pairs, 200, dim=64))


def test_a_dense_and_a_sparse_matrix_have_the_same_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    histories = histories_of(*[rng.integers(0, 40, 12).tolist() for _ in range(60)])
    dense = cooccurrence(histories, 40, dim=8)
    monkeypatch.setattr(pairs_module, "DENSE", 0)
    np.testing.assert_allclose(dense, cooccurrence(histories, 40, dim=8), atol=1e-4)


def test_tokens_start_from_the_texts_directions_of_largest_variance() -> None:
    wide = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    directions = principal_directions(wide, 5)
    assert directions.shape == (5, 3)
    assert directions[0].argmax() == 0
    assert directions[1].argmax() == 1
    assert not directions[3:].any()


def test_a_sampled_softmax_comes_near_the_whole_one() -> None:
    torch.manual_seed(0)
    network = NextItem(np.arange(300) % 9, dim=8, layers=1, heads=2, length=5, dropout=0.0, negatives=None)
    batch = {"items": torch.tensor([[1, 2, 3]]), "targets": torch.tensor([[2, 3, -1]])}
    whole = float(network(batch).detach())
    network.negatives = 64
    sampled = np.mean([float(network(batch).detach()) for _ in range(300)])
    assert sampled == pytest.approx(whole, rel=0.02)
    assert sampled != whole


def test_padding_and_later_events_change_nothing_before_them() -> None:
    torch.manual_seed(0)
    network = NextItem(np.ones(9, dtype=np.int64), dim=8, layers=2, heads=2, length=6, dropout=0.0, negatives=None)
    tokens = network.tokens()
    short, long = network.states(torch.tensor([[1, 2]]), tokens), network.states(torch.tensor([[1, 2, 7, 8]]), tokens)
    assert torch.allclose(short, long[:, :2], atol=1e-6)
    ends = network.states(torch.tensor([[1, 2, 7, 8], [1, 2, 0, 0]]), tokens, torch.tensor([3, 1]))
    assert torch.allclose(ends, torch.stack([long[0, 3], short[0, 1]]), atol=1e-6)


def test_an_item_that_nobody_met_is_reached_through_its_text() -> None:
    """Two kinds of items alternate by kind; the last of each kind has no event, only a text like the others'."""
    texts = ["space rocket stars"] * 5 + ["love wedding kiss"] * 5
    catalog = Catalog(pl.DataFrame({"item_id": range(10), "title": [f"Item {i}" for i in range(10)], "text": texts}))
    draw = rng(1)
    rows = [(u, int(draw.permutation(4)[step]) + 5 * (u % 2), step) for u in range(80) for step in range(3)]
    config = SMALL.model_copy(update={"use_text": True, "exclude_seen": True})
    generator = config.fit(log_of(sorted(set(rows))), with_word_vectors(catalog), seed=0)
    order = items(generator, [5, 6])
    assert order.index(9) < order.index(4)


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(
    settings: Any, monkeypatch: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "recsys")
    whole = SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)

    def stop_in_the_third_epoch(*args: Any) -> float:
        stop_in_the_third_epoch.calls += 1  # type: ignore[attr-defined]
        if stop_in_the_third_epoch.calls == 3:  # type: ignore[attr-defined]
            raise RuntimeError("the power is out")
        return heldout_quality(*args)

    stop_in_the_third_epoch.calls = 0  # type: ignore[attr-defined]
    training = settings.cache_dir / "training"
    assert not list(training.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("recsys.candidates.sequential.heldout_quality", stop_in_the_third_epoch)
        with pytest.raises(RuntimeError, match="power"):
            SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)
    assert len(list(training.iterdir())) == 1
    assert not [file for file in training.rglob("*") if file.suffix in {".pkl", ".pt", ".bin"}]
    assert "pass 1 of at most" in caplog.text, "where there is no bar, the log tells how far it is"
    assert "pass 2 of at most" in caplog.text
    caplog.clear()
    asked = []
    monkeypatch.setattr(
        "recsys.candidates.sequential.heldout_quality", lambda *args: asked.append(1) or heldout_quality(*args)
    )
    resumed = SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)
    assert len(asked) == len(resumed.report["heldout_ndcg@10"]) - 2  # also those that were no better than the first
    assert resumed.report == whole.report
    assert "sequential: pass 3 of" in caplog.text
    assert "sequential: pass 1 of" not in caplog.text
    for name, array in whole.arrays().items():
        assert np.array_equal(array, resumed.arrays()[name]), name
    assert not list(training.iterdir())


def test_ctrl_c_stops_the_training_as_it_stops_everything_else(settings: Any, monkeypatch: Any, caplog: Any) -> None:
    def ctrl_c(*args: Any) -> float:
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("recsys.candidates.sequential.heldout_quality", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "the same command goes on" in caplog.text


def test_a_head_start_spares_the_search_for_where_to_stop(settings: Any) -> None:
    early = SMALL.train(ring(30), catalog_of(12), seed=0, settings=settings)
    before = {name: array.copy() for name, array in early.arrays().items()}
    later = SMALL.train(ring(60), catalog_of(12), seed=0, settings=settings, start=HeadStart(early, None))  # type: ignore[arg-type]
    assert later.report == early.report
    assert all(np.array_equal(array, early.arrays()[name]) for name, array in before.items())
    assert not np.array_equal(later.arrays()["own"], before["own"])


@pytest.mark.parametrize("late", [False, True])
def test_an_item_that_first_appears_in_what_was_held_out_is_learned_at_last(settings: Any, late: bool) -> None:
    """Everybody ends at item 29, which nobody met before: with a head start, and in one fit that holds it out."""
    walks = [(u, 5 + (u + step) % 15, step) for u in range(60) for step in range(5)]
    log = log_of(walks + [(u, 29, 9) for u in range(60)])
    config = SMALL.model_copy(update={"finish": 8})
    start = HeadStart(config.train(log_of(walks), catalog_of(30), seed=0, settings=settings), None) if late else None  # type: ignore[arg-type]
    generator = config.train(log, catalog_of(30), seed=0, settings=settings, start=start)
    first = [items(generator, [5 + (u + step) % 15 for step in range(5)], 1)[0] for u in range(15)]
    assert first.count(29) >= 12
    assert first.count(5) <= 1


def test_users_of_two_events_alone_are_enough_to_learn_from(settings: Any) -> None:
    rows = [(u, (u + step) % 12, step) for u in range(120) for step in range(2)]
    config = SMALL.model_copy(update={"epochs": 10, "patience": 10, "finish": 8})
    generator = config.train(log_of(rows), catalog_of(12), seed=0, settings=settings)
    assert [items(generator, [i], 1)[0] for i in range(12)] == [(i + 1) % 12 for i in range(12)]


def test_a_training_that_diverges_says_so(settings: Any) -> None:
    with pytest.raises(SpecError, match=r"lower generator\.rate"):
        SMALL.model_copy(update={"rate": 1e30}).train(ring(), catalog_of(12), seed=0, settings=settings)


def test_a_state_that_cannot_be_read_is_left_behind(settings: Any, monkeypatch: Any, caplog: Any) -> None:
    whole = SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr("recsys.candidates.sequential.deepcopy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)
    (state,) = settings.cache_dir.rglob("best.ckpt")
    state.write_bytes(b"not a state")
    again = SMALL.train(ring(), catalog_of(12), seed=1, settings=settings)
    assert "starts anew" in caplog.text
    assert all(np.array_equal(array, again.arrays()[name]) for name, array in whole.arrays().items())


def interrupt(*args: Any) -> Any:
    raise KeyboardInterrupt


def test_two_trainings_of_one_kind_at_once_do_not_meet(settings: Any) -> None:
    with workplace(settings, "same") as mine, workplace(settings, "same") as theirs:
        assert mine != theirs
        (theirs / "state").write_text("theirs")
        assert not (mine / "state").exists()
    assert not list((settings.cache_dir / "training").iterdir())


def test_a_cache_that_cannot_be_written_is_named(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = settings.model_copy(update={"cache_dir": tmp_path / "file"})
    with pytest.raises(StorageError, match="training"):
        SMALL.train(ring(), catalog_of(12), seed=0, settings=blocked)


def test_a_vector_that_is_no_number_is_named() -> None:
    broken = with_word_vectors(catalog_of(4)).frame.with_columns(
        embedding=pl.Series([[1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0], [1.0, 1.0]], dtype=pl.Array(pl.Float32, 2))
    )
    with pytest.raises(SpecError, match="item 2: its embedding"):
        SMALL.model_copy(update={"use_text": True}).fit(ring(), Catalog(broken), seed=0)


def test_a_head_start_on_another_catalog_is_not_taken(settings: Any) -> None:
    early = SMALL.train(ring(30), catalog_of(12), seed=0, settings=settings)
    later = SMALL.train(ring(60), catalog_of(13), seed=0, settings=settings, start=HeadStart(early, None))  # type: ignore[arg-type]
    assert 12 in items(later, [1, 2], 13)


@pytest.mark.parametrize("rows", [[(1, 0, 0), (2, 1, 0), (3, 1, 0)], [(1, 0, 0)]])
def test_where_nobody_has_two_events_the_popular_come_first(rows: list[tuple[int, int, int]]) -> None:
    generator = SMALL.fit(log_of(rows), catalog_of(3), seed=0)
    assert items(generator, [])[0] == rows[-1][1]


def test_a_catalog_of_one_item_is_enough() -> None:
    generator = SMALL.fit(log_of([(1, 0, 0), (1, 0, 1), (2, 0, 0)]), catalog_of(1), seed=0)
    assert items(generator, []) == [0]
    text = SMALL.model_copy(update={"use_text": True})
    assert items(text.fit(log_of([(1, 0, 0), (1, 0, 1)]), with_word_vectors(catalog_of(1)), seed=0), []) == [0]


def test_a_gpu_that_is_not_there_is_named(settings: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    asked = settings.model_copy(update={"device": "cuda"})
    with pytest.raises(SpecError, match="'cuda' cannot be used here"):
        SMALL.train(ring(), catalog_of(12), seed=0, settings=asked)


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ('[generator]\nkind = "sequential"\nheads = 3', r"generator\.sequential\.heads: 3 does not divide dim = 128"),
        ('[generator]\nkind = "sequential"\ndim = 9', r"generator\.sequential\.heads: 2 does not divide dim = 9"),
        ('[generator]\nkind = "sequential"\ndim = 0\nheads = 3', r"generator\.sequential\.dim: "),
        ('[reranker]\nkind = "sequence"\nheads = 3', r"reranker\.sequence\.heads: 3 does not divide dim = 128"),
        (
            '[reranker]\nkind = "student"\n[reranker.teacher]\nkind = "sequence"\nheads = 3',
            r"reranker\.student\.teacher\.sequence\.heads: 3 does not divide",
        ),
    ],
)
def test_heads_that_do_not_divide_the_size_are_refused_with_the_recipe(tmp_path: Path, part: str, where: str) -> None:
    from recsys.spec import load_spec

    (tmp_path / "spec.toml").write_text(part + "\n")
    with pytest.raises(SpecError, match=where):
        load_spec(tmp_path / "spec.toml")


def test_text_that_is_not_there_is_asked_for() -> None:
    with pytest.raises(SpecError, match=r"\[encoder\]"):
        SMALL.model_copy(update={"use_text": True}).fit(ring(), catalog_of(12), seed=0)


def test_a_checkpoint_holds_numbers_and_tensors_and_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"a": {0: torch.arange(3.0), 1: None}, "b": [1, 2.5, "x", True, {"t": torch.tensor(4)}], "c": float("inf")}
    write_checkpoint(state, tmp_path / "state.ckpt")
    found = read_checkpoint(tmp_path / "state.ckpt")
    assert found["a"][0].tolist() == [0, 1, 2]
    assert found["a"][1] is None
    assert found["b"][:4] == [1, 2.5, "x", True]
    assert found["b"][4]["t"].item() == 4
    assert found["c"] == float("inf")
