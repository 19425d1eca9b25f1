"""When the reader of histories has learned enough: how well it guesses what held-out users chose next."""

from typing import TYPE_CHECKING

import numpy as np

from recsys.data.vocab import Codes, Histories
from recsys.errors import SpecError
from recsys.networks.chunks import answer_gains

if TYPE_CHECKING:
    from recsys.rerank.reader import Reader

DIVERGED = "reranker: the training diverged, its numbers are not finite: lower reranker.rate"
# Questions that are read at once.
ROWS = 256


def heldout_quality(network: "Reader", histories: Histories, answers: Codes) -> float:
    """Mean NDCG@10 of the answers among the items not yet met. Errors: `SpecError` for numbers that are not finite."""
    import torch

    from recsys.rerank.reader import states_after

    gains = []
    with torch.inference_mode():
        tokens, bias = network.table()
        states = states_after(network, histories, tokens)
        for start in range(0, len(answers), ROWS):
            rows = slice(start, min(start + ROWS, len(answers)))
            scores = (network.read(states[rows], tokens) @ tokens.T + bias).float().cpu().numpy()
            if not np.isfinite(scores).all():
                raise SpecError(DIVERGED)
            gains.append(answer_gains(scores, histories.slice(rows.start, rows.stop), answers[rows]))
    return float(np.concatenate(gains).mean())
