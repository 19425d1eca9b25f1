"""Learning to read profiles: what a profile says beyond the titles that it names, on top of a reader that is finished.

The state after the titles that a profile names (`told`) attends to its sentences, and the loss is the cross-entropy of
all that its user chose afterwards. The rest of the reader stays as it is: learned together with histories, a few
thousand profiles are known by heart long before histories are understood (notebooks/LOG.md).
"""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.errors import SpecError
from recsys.networks.training import Batch, Schedule, Trained, fingerprint, train, workplace
from recsys.rerank.exam import DIVERGED
from recsys.rerank.reader import Reader, known_by_name
from recsys.rerank.told import Told
from recsys.settings import Settings

log = logging.getLogger(__name__)

# Share of a profile's sentences, and of the titles it names, that are left out, drawn anew each time: else profiles are
# learned by heart.
UNSAID = 0.3
PLACES = 10
SCHEDULE = Schedule(rate=1e-3, weight_decay=0.01, batch=32, epochs=30, patience=4)


def learn_profiles(reader: Reader, told: Told, settings: Settings, seed: int) -> Trained:
    """Train `reader.profile`, in place, until held-out profiles tell no better what came after them.

    Errors: `SpecError` where the training diverges.
    """
    learned, kept = told.split()
    learner = Learner(reader)

    def lessons(epoch: int) -> Lessons:
        return Lessons(reader, learner.tokens, learned, np.random.default_rng((seed, epoch)))

    state = reader.state_dict()
    names = sorted(name for name in state if not name.startswith("profile."))
    said = (told.sentences.vectors, told.sentences.places, told.named.items, told.named.indptr, told.items, told.indptr)
    key = fingerprint(SCHEDULE, seed, *said, learner.tokens.numpy(), *(state[n].numpy() for n in names))
    with workplace(settings, key) as folder:
        # On the CPU: it is small, and the states are worked out there.
        trained = train(
            learner,
            lessons,
            lambda: learner.quality(kept),
            SCHEDULE,
            seed=seed,
            device="cpu",
            folder=folder / "profiles",
            title="profiles",
        )
    log.info("profiles: held out, NDCG@10 %s", ", ".join(f"{gain:.4f}" for gain in trained.qualities))
    return trained


class Learner(nn.Module):
    """The part of a reader that reads profiles; `forward` is the loss of a batch, and the rest is no part of it."""

    tokens: Tensor
    bias: Tensor

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.profile = reader.profile
        with torch.inference_mode():
            tokens, bias = reader.eval().table()
        self.register_buffer("tokens", tokens.clone(), persistent=False)
        self.register_buffer("bias", bias.clone(), persistent=False)
        self._read = (reader,)  # not as a part

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(n, items): "states" and "plain" (n, dim), what they expect by themselves; "sentences" and their mask."""
        told = self.profile(batch["states"], batch["sentences"], batch["sentences_mask"])
        found: Tensor = (batch["plain"] + told) @ self.tokens.T + self.bias
        return found.float()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean over profiles of the cross-entropy of their answers: "row" and "item" of each, and its "share"."""
        chance = self.logits(batch).log_softmax(dim=1)
        return -(chance[batch["row"], batch["item"]] * batch["share"]).sum() / len(chance)

    def quality(self, kept: Told) -> float:
        """Mean NDCG@10 of what came after profiles among all items. Errors: `SpecError` for numbers that are not."""
        discount = 1 / np.log2(np.arange(2, PLACES + 2))
        gains = []
        with torch.inference_mode():
            for start in range(0, len(kept), SCHEDULE.batch):
                some = kept.take(np.arange(start, min(start + SCHEDULE.batch, len(kept))))
                scores = self.logits(batch_of(self._read[0], self.tokens, some)).numpy()
                if not np.isfinite(scores).all():
                    raise SpecError(DIVERGED)
                for row, best in enumerate(np.argsort(-scores, axis=1, kind="stable")[:, :PLACES]):
                    right = np.unique(some.items[some.indptr[row] : some.indptr[row + 1]])
                    gains.append(discount[: len(best)][np.isin(best, right)].sum() / discount[: len(right)].sum())
        return float(np.mean(gains)) if gains else 0.0


def batch_of(reader: Reader, tokens: Tensor, told: Told) -> dict[str, Tensor]:
    """What `Learner.logits` reads of some profiles."""
    with torch.inference_mode():
        states, plain = known_by_name(reader, told.named, tokens)
    return {**told.sentences.take(np.arange(len(told))), "states": states.clone(), "plain": plain.clone()}


class Lessons:
    """One epoch's batches of profiles, with some of their sentences and of the titles that they name."""

    def __init__(self, reader: Reader, tokens: Tensor, told: Told, rng: np.random.Generator) -> None:
        self._reader, self._tokens, self._told, self._rng = reader, tokens, told, rng
        self._order = rng.permutation(len(told))

    def __len__(self) -> int:
        return -(-len(self._order) // SCHEDULE.batch)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._order), SCHEDULE.batch):
            some = self._told.take(self._order[start : start + SCHEDULE.batch])
            batch = batch_of(self._reader, self._tokens, some.without(self._left_out(some.named.items)))
            said = batch["sentences_mask"]
            kept = said & ~torch.from_numpy(self._left_out(said))
            sizes = np.diff(some.indptr)
            yield {
                **batch,
                "sentences_mask": torch.where(kept.any(dim=1, keepdim=True), kept, said),
                "row": torch.from_numpy(np.repeat(np.arange(len(some)), sizes)),
                "item": torch.from_numpy(some.items.astype(np.int64)),
                "share": torch.from_numpy(np.repeat((1 / sizes).astype(np.float32), sizes)),
            }

    def _left_out(self, like: npt.NDArray[np.integer] | Tensor) -> npt.NDArray[np.bool_]:
        return self._rng.random(tuple(like.shape)) < UNSAID
