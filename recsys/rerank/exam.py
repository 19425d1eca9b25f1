"""When the reader of histories has learned enough: how well it guesses what held-out users chose next."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.data.vocab import Codes, Histories
from recsys.errors import SpecError
from recsys.networks.chunks import answer_gains
from recsys.protocols import Floats
from recsys.rerank.hearing import Asked
from recsys.rerank.lessons import Told, padded

if TYPE_CHECKING:
    from torch import Tensor

    from recsys.rerank.reader import Reader

log = logging.getLogger(__name__)

DIVERGED = "reranker: the training diverged, its numbers are not finite: lower reranker.rate"
# Questions that are read at once.
ROWS = 256
PLACES = 10


@dataclass(frozen=True)
class Exam:
    """Questions that the network does not learn from.

    histories, answers : of users whose next event is asked for
    asked, fits        : a request of each of them, and (answers, items) as of `Ear.fits`; None where none is read
    told               : profiles whose users' later events are asked for; None where none is read
    """

    histories: Histories
    answers: Codes
    asked: Asked | None
    fits: Floats | None
    told: Told | None

    def quality(self, network: "Reader") -> float:
        """The mean NDCG@10 over what is asked: by the history alone, with a request, by a profile alone.

        Errors: `SpecError` for numbers that are not finite.
        """
        import torch

        from recsys.rerank.reader import states_after

        found = {}
        with torch.inference_mode():
            tokens, bias = network.table()
            states = states_after(network, self.histories, tokens)
            found["history"] = self._next(network, states, tokens, bias, None)
            if self.asked is not None:
                found["request"] = self._next(network, states, tokens, bias, self.asked)
            if self.told is not None and len(self.told):
                found["profile"] = _later(network, self.told, tokens, bias)
        log.info("held out, NDCG@10: %s", ", ".join(f"{part} {gain:.4f}" for part, gain in found.items()))
        return float(np.mean(list(found.values())))

    def _next(
        self,
        network: "Reader",
        states: "Tensor",
        tokens: "Tensor",
        bias: "Tensor",
        asked: Asked | None,
    ) -> float:
        import torch

        gains = []
        for start in range(0, len(self.answers), ROWS):
            rows = np.arange(start, min(start + ROWS, len(self.answers)))
            text = {"like": torch.from_numpy(asked.like[rows]).to(tokens.device)} if asked is not None else None
            scores = _finite(network.read(states[rows], tokens, text) @ tokens.T + bias)
            if asked is not None and self.fits is not None:
                scores = scores + self.fits[rows]
            gains.append(answer_gains(scores, self.histories.slice(rows[0], rows[-1] + 1), self.answers[rows]))
        return float(np.concatenate(gains).mean())


def _later(network: "Reader", told: Told, tokens: "Tensor", bias: "Tensor") -> float:
    """Of each profile, how many of the first places among all items hold what came after it."""
    import torch

    discount = 1 / np.log2(np.arange(2, PLACES + 2))
    gains = []
    for start in range(0, len(told), ROWS):
        some = told.take(np.arange(start, min(start + ROWS, len(told))))
        texts = {**some.sentences.take(np.arange(len(some))), **padded(some.named)}
        batch = {name: value.to(tokens.device) for name, value in texts.items()}
        states = network.states(batch["named"], tokens)[torch.arange(len(some)), batch["named_sizes"]]
        scores = _finite(network.read(states, tokens, batch) @ tokens.T + bias)
        for row, best in enumerate(np.argsort(-scores, axis=1, kind="stable")[:, :PLACES]):
            right = np.unique(some.items[some.indptr[row] : some.indptr[row + 1]])
            held = np.isin(best, right)
            gains.append(discount[: len(best)][held].sum() / discount[: len(right)].sum())
    return float(np.mean(gains))


def _finite(scores: "Tensor") -> Floats:
    found: Floats = scores.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise SpecError(DIVERGED)
    return found
