"""A history at a glance: one block of attention, asked at its last place only, in plain numpy.

It stands for a teacher's network that reads histories (`reader`), has that one's item tokens, and learned to expect
what that one expects (`glancing`). Of a history the keys and values are worked out, and one query: a tenth of what two
blocks take over all places.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.data.vocab import Histories
from recsys.protocols import Floats, Ints

# Histories that are read at once.
ROWS = 256
# As of the parts of `networks.attention.Block`, whose forward pass at the last place this is.
BLOCK = ("before_attention", "qkv", "attended", "before_feed", "widen", "narrow")
WEIGHTS = (
    *("tokens", "bias", "start", "places", "last.weight", "last.bias", "out.weight"),
    *(f"block.{part}.{side}" for part in BLOCK for side in ("weight", "bias")),
)
_EPSILON = 1e-5  # torch's, in a layer norm


@dataclass(frozen=True)
class Glance:
    """arrays : `WEIGHTS`; "tokens" (items, dim) and "bias" (items,) are the teacher's; heads : of the block."""

    arrays: Mapping[str, Floats]
    heads: int

    def expects(self, histories: Histories) -> Floats:
        """(histories, dim) what each history expects next, to be multiplied with tokens."""
        found = np.empty((len(histories), self.arrays["tokens"].shape[1]), dtype=np.float32)
        sizes = np.minimum(np.diff(histories.indptr), len(self.arrays["places"]) - 1)
        order = np.argsort(sizes, kind="stable")
        for at in range(0, len(order), ROWS):
            rows = order[at : at + ROWS]
            found[rows] = self._read(histories, rows, sizes[rows])
        return found

    def scores(self, expected: Floats, own: Ints, codes: Ints) -> Floats:
        """(rows,) logits of candidates. own : (rows,) the history of each; codes : (rows,) the item."""
        tokens, bias = self.arrays["tokens"][codes], self.arrays["bias"][codes]
        return np.asarray(np.einsum("rd,rd->r", expected[own], tokens) + bias, dtype=np.float32)

    def _read(self, histories: Histories, rows: Ints, sizes: Ints) -> Floats:
        """The block's output at the last of `sizes` items of some histories."""
        a, n = self.arrays, len(rows)
        dim = a["tokens"].shape[1]
        place = (histories.indptr[rows + 1] - sizes)[:, None] + np.arange(sizes.max(initial=0))
        inside = np.arange(place.shape[1]) < sizes[:, None]
        items = histories.items[np.where(inside, place, 0)] if len(histories.items) else np.zeros(place.shape, int)
        met = a["tokens"][items] * np.float32(dim**0.5)
        x = np.concatenate([np.broadcast_to(a["start"], (n, 1, dim)), met], axis=1)
        x = x + a["places"][: x.shape[1]]
        qkv, bias = a["block.qkv.weight"], a["block.qkv.bias"]
        held = self._norm(x, "block.before_attention")
        keys, values = np.split(held @ qkv[dim:].T + bias[dim:], 2, axis=2)
        last = np.arange(n)
        query = held[last, sizes] @ qkv[:dim].T + bias[:dim]
        split = (n, -1, self.heads, dim // self.heads)
        logits = np.einsum("nhd,nthd->nht", query.reshape(split)[:, 0], keys.reshape(split))
        logits = logits / np.float32((dim // self.heads) ** 0.5)
        seen = np.arange(x.shape[1]) <= sizes[:, None]
        logits = np.where(seen[:, None], logits, -np.inf)
        shares = np.exp(logits - logits.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        z = np.einsum("nht,nthd->nhd", shares, values.reshape(split)).reshape(n, dim)
        x = x[last, sizes] + z @ a["block.attended.weight"].T + a["block.attended.bias"]
        z = self._norm(x, "block.before_feed") @ a["block.widen.weight"].T + a["block.widen.bias"]
        x = x + _gelu(z) @ a["block.narrow.weight"].T + a["block.narrow.bias"]
        return np.asarray(self._norm(x, "last") @ a["out.weight"].T, dtype=np.float32)

    def _norm(self, x: Floats, part: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
        return np.asarray(centred * scale * self.arrays[f"{part}.weight"] + self.arrays[f"{part}.bias"])


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    return np.asarray(x * (0.5 + 0.5 * erf(x / np.float32(2**0.5))), dtype=np.float32)
