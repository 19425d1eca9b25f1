"""Two towers: what they make of items without events, what they are trained on, and when they stop."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from checks import with_word_vectors
from recsys.candidates import TwoTowerConfig
from recsys.candidates.towers import Towers, principal_directions
from recsys.candidates.trainable import HeadStart
from recsys.candidates.twotower import Asked, Events, TwoTower, heldout_quality, hold_out_items, item_features
from recsys.data.split import Questions
from recsys.data.vocab import Histories, Vocab
from recsys.errors import SpecError
from recsys.networks.items import attribute_vectors
from recsys.tables import Catalog, InteractionLog, Queries, Truth, adhoc_query

SMALL = TwoTowerConfig(dim=16, hidden=16, length=10, batch=64, epochs=4, events=2000, rate=3e-3, finish=1)
# Items 0 to 39: the even ones are of one kind, the odd ones of another; 36 to 39 are never met.
COLD = (36, 37, 38, 39)


def log_of(rows: list[tuple[int, int, int]]) -> InteractionLog:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "ts"], orient="row")
    return InteractionLog.of(frame.with_columns(event=pl.lit("interaction"), weight=pl.lit(1.0)))


def two_camps(n_users: int = 80) -> InteractionLog:
    """Each user meets ten items of one kind."""
    rng = np.random.default_rng(0)
    camps = [(user, 2 * rng.permutation(18)[:10] + user % 2) for user in range(n_users)]
    return log_of([(user, int(item), t) for user, items in camps for t, item in enumerate(items)])


def catalog_of(n: int = 40, *, telling: bool = True) -> Catalog:
    """Texts name the item and, if `telling`, its kind."""
    kinds = ["harbour", "desert"] if telling else ["", ""]
    text = [f"w{i} {kinds[i % 2]}" for i in range(n)]
    return with_word_vectors(Catalog(pl.DataFrame({"item_id": range(n), "title": text, "text": text})))


def with_kinds(catalog: Catalog) -> Catalog:
    kinds = [["sea"] if i % 2 == 0 else ["sand", "heat"] for i in range(len(catalog))]
    return Catalog(catalog.frame.with_columns(kind=pl.Series(kinds)))


def ask(history: list[int]) -> Queries:
    return adhoc_query(history, at=100, dtype=pl.Int64)


def items(generator: Any, history: list[int], n: int = 10) -> list[int]:
    return generator.generate(ask(history), n).frame["item_id"].to_list()


def histories_of(*rows: list[int]) -> Histories:
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    codes = np.array([item for row in rows for item in row], dtype=np.int32)
    return Histories(indptr, codes, np.ones(len(codes), dtype=np.float32), np.zeros(len(codes), dtype=np.int64))


@pytest.fixture(scope="module")
def fitted() -> TwoTower:
    return SMALL.fit(two_camps(), catalog_of(), seed=0)


@pytest.mark.parametrize("told_by", ["text", "attribute"])
def test_items_that_nobody_met_stand_with_their_kind(told_by: str, fitted: TwoTower) -> None:
    if told_by == "attribute":
        fitted = SMALL.fit(two_camps(), with_kinds(catalog_of(telling=False)), seed=0)
    for kind in (0, 1):
        found = items(fitted, [kind + 2 * i for i in range(5)], 40)
        place = {item: found.index(item) for item in found}
        own, other = ([place[item] for item in COLD if item % 2 == k] for k in (kind, 1 - kind))
        assert max(own) < min(other)
        assert max(own) < 20


def test_an_item_is_what_its_features_say_whether_anybody_met_it_or_not() -> None:
    frame = catalog_of().frame
    same = frame.with_columns(
        embedding=pl.when(pl.col("item_id") == 38).then(pl.col("embedding").get(4)).otherwise("embedding")
    )
    fitted = SMALL.fit(two_camps(), Catalog(same), seed=0)
    assert np.array_equal(fitted.vectors[38], fitted.vectors[4])
    assert not np.allclose(fitted.vectors[36], fitted.vectors[4])


def test_training_beats_the_features_that_it_starts_from() -> None:
    """Who meets an even item meets odd ones next: words alone say the opposite."""
    rng = np.random.default_rng(1)
    rows = [(u, int(2 * rng.integers(18) + (u + t) % 2), t) for u in range(100) for t in range(10)]
    config = SMALL.model_copy(update={"epochs": 15, "patience": 15, "decay": 3.0, "rate": 1e-2, "heldout": 0.2})
    fitted = config.fit(log_of(rows), catalog_of(), seed=0)
    assert sum(item % 2 for item in items(fitted, [0, 1, 2, 3, 4], 10)) >= 9
    assert max(fitted.trained["heldout_ndcg"]) > 1.2 * fitted.trained["heldout_ndcg"][0]


def test_numpy_serves_what_torch_learned(fitted: TwoTower) -> None:
    histories = histories_of([0, 2, 4], [], [1, 3, 5, 7])
    network = fitted.explored
    assert network is not None
    served = TwoTower.of(fitted.vocab, fitted.config, network, {}, network)
    with torch.inference_mode():
        vectors = network.items()
        weights = (1.0 + torch.arange(4)) ** -fitted.config.decay
        rows = ([4, 2, 0], [], [7, 5, 3, 1])
        met = torch.stack([(vectors[row] * weights[: len(row), None]).sum(dim=0) for row in rows])
        expected = network.users(met) @ vectors.T
    found = served.scores(histories, np.zeros(3, dtype=np.int64))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def towers(n: int = 6, **changes: Any) -> Towers:
    rng = np.random.default_rng(0)
    sizes: dict[str, Any] = {"dim": 4, "hidden": 8, "dropout": 0.0, "noise": 0.0, "temperature": 0.5, "correction": 1.0}
    return Towers(rng.standard_normal((n, 5)).astype(np.float32), **{**sizes, **changes})


@pytest.mark.parametrize("correction", [0.0, 0.5, 1.0])
def test_the_loss_is_the_softmax_over_the_batch_corrected_for_frequency(correction: float) -> None:
    network = towers(correction=correction)
    network.expect(np.array([1, 2, 3, 4, 0, 10]))
    targets, history = np.array([3, 5, 3]), np.array([[0, 1], [2, 0], [4, 0]])
    weights = np.array([[1, 0.5], [1, 0], [1, 0]], dtype=np.float32)
    with torch.inference_mode():
        vectors = network.items().numpy()
        met = np.einsum("bl,bld->bd", weights, vectors[history])
        logits = (network.users(torch.from_numpy(met)).numpy() @ vectors[targets].T) / 0.5
        batch = {"items": history, "weights": weights, "targets": targets}
        loss = float(network({name: torch.from_numpy(value) for name, value in batch.items()}))
    logits -= correction * np.log(np.array([1, 2, 3, 4, 1, 10]) / 20)[targets]
    logits[0, 2] = logits[2, 0] = -np.inf  # the same answer is no negative
    expected = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
    assert loss == pytest.approx(expected.mean(), rel=1e-5)


def test_the_directions_are_the_principal_ones() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 6)).astype(np.float32) * np.array([1, 5, 1, 3, 1, 1], dtype=np.float32)
    found = principal_directions(torch.from_numpy(vectors), 8).numpy()
    assert np.abs(found[:2]).argmax(axis=1).tolist() == [1, 3]
    np.testing.assert_allclose(found[:6] @ found[:6].T, np.eye(6), atol=1e-5)
    assert not found[6:].any()


def test_each_event_is_asked_once_with_what_came_before_it() -> None:
    rows = [[3, 1, 4, 1, 5], [9], [], [2, 6, 5]]
    expected = [(item, tuple(row[max(0, i - 3) : i][::-1])) for row in rows for i, item in enumerate(row)]
    found = []
    for batch in Events(histories_of(*rows), SMALL.model_copy(update={"length": 3, "batch": 4}), rng(0)):
        for items, weights, target in zip(batch["items"], batch["weights"], batch["targets"], strict=True):
            found.append((int(target), tuple(items[weights > 0].tolist())))
            assert weights[weights > 0].tolist() == pytest.approx([(1 + k) ** -0.7 for k in range(len(found[-1][1]))])
    assert sorted(found) == sorted(expected)


def test_an_epoch_is_a_sample_of_a_large_log() -> None:
    config = SMALL.model_copy(update={"events": 7, "batch": 4})
    assert [len(batch["targets"]) for batch in Events(histories_of(list(range(30))), config, rng(0))] == [4, 3]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_held_out_items_are_gone_with_all_their_events_and_each_users_last_of_them_is_asked_about() -> None:
    rows = [rng(seed).integers(0, 40, 100).tolist() for seed in range(3)]
    histories = histories_of(*rows, [], [7])
    config = SMALL.model_copy(update={"heldout": 0.25, "length": 5})
    learned, asked = hold_out_items(histories, config, seed=0)
    held = set(range(40)) - set(learned.items.tolist())
    assert len(held) == 10
    assert learned.items.tolist() == [item for item in histories.items if item not in held]
    expected = []
    for row in [*rows, [], [7]]:
        places = [place for place, item in enumerate(row) if item in held]
        if places:
            left = [before for before in row[: places[-1]] if before not in held]
            expected.append((row[places[-1]], left[-5:]))
    found = [(int(answer), asked.histories.slice(i, i + 1).items.tolist()) for i, answer in enumerate(asked.answers)]
    assert sorted(found) == sorted(expected)


def test_the_quality_is_the_gain_of_the_place_among_unmet_items() -> None:
    network = towers().eval()
    with torch.inference_mode():
        vectors = network.items()
        order = (network.users(vectors[[2]]) @ vectors.T)[0].argsort(descending=True).tolist()
    unmet = [item for item in order if item != 2]
    histories, answers = histories_of([2], [2]), np.array([unmet[0], unmet[3]])
    found = heldout_quality(network, Asked(histories, answers), SMALL)
    assert found == pytest.approx((1 + 1 / np.log2(5)) / 2)


def test_a_head_start_goes_on_from_what_was_explored(fitted: TwoTower) -> None:
    before = fitted.explored
    assert before is not None
    kept = {name: value.clone() for name, value in before.state_dict().items()}
    start = HeadStart(
        fitted,
        Questions(
            Queries(ask([0]).frame.clear()),
            Truth(ask([0]).frame.clear().select("query_id", item_id=pl.lit(0, dtype=pl.Int64))),
        ),
    )
    again = SMALL.train(two_camps(), catalog_of(), seed=0, start=start)
    assert again.trained == fitted.trained
    np.testing.assert_array_equal(again.vectors, fitted.vectors)
    assert all(torch.equal(value, kept[name]) for name, value in before.state_dict().items())


def test_a_log_without_known_items_leaves_the_features_to_speak() -> None:
    fitted = SMALL.fit(log_of([(1, 777, 0), (2, 778, 0)]), catalog_of(), seed=0)
    assert {item % 2 for item in items(fitted, [0, 2, 4, 6], 5)} == {0}


def test_a_catalog_of_one_item_and_a_user_without_history() -> None:
    assert items(SMALL.fit(log_of([(1, 0, 0), (2, 0, 0)]), catalog_of(1), seed=0), [], 5) == [0]


def test_without_text_vectors_it_says_what_to_set() -> None:
    plain = Catalog(catalog_of().frame.drop("embedding"))
    with pytest.raises(SpecError, match=r"\[encoder\]"):
        SMALL.fit(two_camps(), plain, seed=0)


def test_a_gpu_that_is_not_there_is_an_error(settings: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SpecError, match="cuda"):
        SMALL.train(two_camps(), catalog_of(), seed=0, settings=settings.model_copy(update={"device": "cuda"}))


def test_attributes_are_values_that_items_share_and_bands_of_numbers() -> None:
    n = 40
    frame = pl.DataFrame({"item_id": range(n), "title": ["t"] * n, "text": ["t"] * n}).with_columns(
        maker=pl.Series(["a", "b", None, "a"] * 10),
        serial=pl.Series([f"no {i}" for i in range(n)]),
        tags=pl.Series([["x", "y"], ["x"], [], None] * 10),
        price=pl.Series([float(i) for i in range(n - 1)] + [None]),
        same=pl.lit(3),
    )
    catalog = Catalog(frame)
    found = attribute_vectors(catalog, Vocab.of_items(catalog))
    assert found.shape == (n, 2 + 0 + 2 + 10 + 1)
    assert found[0, :4].tolist() == [1, 0, 1, 1]
    assert found[1, :4].tolist() == [0, 1, 1, 0]
    assert found[2, :4].tolist() == found[38, :4].tolist() == [0, 0, 0, 0]
    bands, number = found[:, 4:14], found[:-1, 14]
    assert bands.sum(axis=1).tolist() == [1] * (n - 1) + [0]
    assert set(bands.sum(axis=0)) <= {3, 4, 5}
    assert number.mean() == pytest.approx(0, abs=1e-5)
    assert number.std() == pytest.approx(1, abs=1e-5)


def test_where_attributes_say_nothing_the_text_is_all_there_is() -> None:
    catalog = Catalog(catalog_of().frame.with_columns(same=pl.lit("thing"), serial=pl.int_range(pl.len())))
    vocab = Vocab.of_items(catalog)
    bare = item_features(catalog_of(), vocab)
    assert bare.shape == (40, 64)
    lengths = np.linalg.norm(item_features(with_kinds(catalog_of()), vocab), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
