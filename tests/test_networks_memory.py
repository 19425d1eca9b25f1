"""Training where memory runs out: smaller batches, the same steps, and it is said."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from test_candidates_sequential import SMALL, catalog_of, ring

from recsys.candidates.nextitem import NextItem
from recsys.errors import SpecError
from recsys.networks.chunks import in_parts
from recsys.networks.training import Schedule, train
from recsys.rerank.reader import Items, Reader, Size


def full(*_: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def crowded(most: int, calls: list[int], free_until: int = 0) -> Any:
    """A network that has room for so many histories at once, after so many calls."""
    forward = NextItem.forward

    def scarce(self: NextItem, batch: Any) -> torch.Tensor:
        calls.append(len(batch["items"]))
        return full() if len(batch["items"]) > most and len(calls) > free_until else forward(self, batch)

    return scarce


# 60 histories in batches of 8: 8 steps in an epoch, the last of 4 histories; the fourth batch of the third epoch fails.
@pytest.mark.parametrize(("most", "free_until"), [(3, 0), (4, 20)], ids=["from the start on", "in the third epoch"])
def test_batches_that_are_too_large_are_halved_and_make_the_same_steps(
    settings: Any, monkeypatch: Any, caplog: Any, most: int, free_until: int
) -> None:
    exact = SMALL.model_copy(update={"patience": 9})
    with monkeypatch.context() as patch:
        patch.setattr("recsys.networks.training.auto_dtype", lambda _: "float32")
        whole = exact.train(ring(), catalog_of(12), seed=0, settings=settings)
        calls: list[int] = []
        patch.setattr(NextItem, "forward", crowded(most, calls, free_until))
        with caplog.at_level(logging.WARNING):
            halved = exact.train(ring(), catalog_of(12), seed=0, settings=settings)
    assert "sequential: out of memory in training with batches of 8: going on with 4 at once, 2 times" in caplog.text
    assert ("with batches of 4: going on with 2 at once, 4 times" in caplog.text) == (most < 4)
    if free_until:  # two epochs of 8 steps stay, and half of the third is made again
        assert len(calls) < free_until + 2 + 2 * 16 + 1 + 16
    for name, array in whole.arrays().items():
        # Weights move by some tenths. Biases of keys have no slope, and Adam makes steps of its rounding.
        np.testing.assert_allclose(halved.arrays()[name], array, atol=1e-2, err_msg=name)
    assert halved.report["heldout_ndcg@10"] == pytest.approx(whole.report["heldout_ndcg@10"], abs=1e-3)


def test_what_does_not_fit_at_all_says_what_to_do(settings: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(NextItem, "forward", full)
    with pytest.raises(SpecError, match=r"with batches of 1: make the network smaller, or .*RECSYS_DEVICE"):
        SMALL.train(ring(), catalog_of(12), seed=0, settings=settings)


def test_batches_that_cannot_be_cut_are_an_error_that_says_what_to_do(tmp_path: Any) -> None:
    class Full(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, _: Any) -> torch.Tensor:
            return full()

    with pytest.raises(
        SpecError, match=r"line: out of memory in training with batches of 32: halve `batch` and double"
    ):
        train(
            Full(),
            lambda _: [{"x": torch.zeros(2)}],
            None,
            Schedule(),
            seed=0,
            device="cpu",
            folder=tmp_path,
            title="line",
        )


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_the_shares_of_a_batchs_parts_make_its_loss(parts: int) -> None:
    rng = np.random.default_rng(0)
    size = Size(8, 1, 2, 6, 1, 0.0, 0.0, 0.0, None, True, True)
    items = Items(
        rng.normal(size=(12, 5)).astype(np.float32), np.zeros((12, 0), np.float32), np.zeros((12, 8), np.float32)
    )
    torch.manual_seed(0)
    reader = Reader(items, np.ones(12, dtype=np.int64), size).eval()
    targets = torch.randint(12, (5, 6))
    targets[3, 2:], targets[4, 1:] = -1, -1
    batch = {
        "items": torch.randint(12, (5, 6)),
        "targets": targets,
        "asked": torch.tensor([[0, 3], [2, 1], [2, 5], [4, 0]]),
        "like": torch.tensor([1, 2, 3, 4]),
    }
    found = in_parts(batch, parts)
    assert len(found) == parts
    assert sum(share for _, share in found) == pytest.approx(1)
    assert sum(len(part.get("like", ())) for part, share in found if share) == 4
    with torch.inference_mode():
        loss = sum(share * float(reader(part)) for part, share in found)
        assert loss == pytest.approx(float(reader(batch)), rel=1e-5)
