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

if TYPE_CHECKING:
    from torch import Tensor

    from recsys.rerank.reader import Reader

log = logging.getLogger(__name__)

DIVERGED = "reranker: the training diverged, its numbers are not finite: lower reranker.rate"
# Questions that are read at once.
ROWS = 256


@dataclass(frozen=True)
class Exam:
    """Questions that the network does not learn from.

    histories, answers : of users whose next event is asked for
    asked, fits        : a request of each of them, and (answers, items) as of `Ear.fits`; None where none is read
    """

    histories: Histories
    answers: Codes
    asked: Asked | None
    fits: Floats | None

    def quality(self, network: "Reader") -> float:
        """The mean NDCG@10 over what is asked: by the history alone, and with a request.

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


def _finite(scores: "Tensor") -> Floats:
    found: Floats = scores.float().cpu().numpy()
    if not np.isfinite(found).all():
        raise SpecError(DIVERGED)
    return found
