"""A reader's blocks (`reader`) in plain numpy: what a student has of a teacher that reads histories by a network.

It expects exactly what the teacher's network expects. Of the last block only the last place is worked out, which is all
that ranking needs; without torch there is little else to pay for. Of single users the keys and values of attention are
kept, so that a new event costs one token (`follow`). A distilled block was tried instead, and lost a
twentieth of the teacher's NDCG, several times what a good reader adds to good candidates (notebooks/LOG.md).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.data.vocab import Codes, Histories
from recsys.protocols import Floats, Ints
from recsys.rerank.remembered import Follow, Kept, Remembering

if TYPE_CHECKING:
    from recsys.rerank.reader import Reader

# Histories that are read at once: the shares of attention of one block are `ROWS` * heads * length**2 floats.
ROWS = 32
WEIGHTS = ("tokens", "bias", "start", "places", "last.weight", "last.bias", "out.weight")
# As of `networks.attention.Block`, whose forward pass this is.
PARTS = ("before_attention", "qkv", "attended", "before_feed", "widen", "narrow")
_EPSILON = 1e-5  # torch's, in a layer norm
AT_ONCE = 16_384  # numbers that an activation is worked out for


@dataclass(frozen=True)
class PlainReader:
    """The weights, and how many blocks and heads there are.

    arrays : `WEIGHTS`, of which "tokens" (items, dim) and "bias" (items,) are the table; and of each block the weight
             and the bias of its parts, as "blocks.0.qkv.weight"
    """

    arrays: Mapping[str, Floats]
    blocks: int
    heads: int
    _states: Remembering = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of_blocks = [
            f"blocks.{k}.{part}.{of}" for k in range(self.blocks) for part in PARTS for of in ("weight", "bias")
        ]
        if missing := {*WEIGHTS, *of_blocks} - self.arrays.keys():
            raise ValueError(f"the reader lacks {min(missing)}")
        object.__setattr__(self, "_states", Remembering(self._read_all, len(self.arrays["places"]) - 1, self.goes_on))

    @classmethod
    def of(cls, reader: "Reader", tokens: Floats, bias: Floats) -> "PlainReader | None":
        """None where layers of a language model read the history. tokens, bias : the reader's table."""
        if reader.base:
            return None
        own = {k: v for k, v in reader.state_dict().items() if k in WEIGHTS[2:] or k.startswith("blocks.")}
        arrays = {name: np.ascontiguousarray(value.float().cpu().numpy()) for name, value in own.items()}
        return cls({**arrays, "tokens": tokens, "bias": bias}, reader.size.layers, reader.size.heads)

    def expects(self, histories: Histories) -> Floats:
        """(histories, dim) what each history expects next, to be multiplied with tokens."""
        return np.asarray(self._norm(self._states(histories), "last") @ self.arrays["out.weight"].T, dtype=np.float32)

    @property
    def goes_on(self) -> Follow | None:
        """`follow`; None where there are no blocks, and so nothing to go on from."""
        return self.follow if self.blocks else None

    def follow(self, kept: Kept | None, items: Codes) -> tuple[Floats, Kept]:
        """See `remembered.Follow`. What is kept are the keys and values of each block: (1, events + 1, 2 * dim)."""
        a = self.arrays
        x = self._met(items[None])
        if kept is None:
            x = np.concatenate([a["start"][None], x], axis=1)
        begun = 0 if kept is None else kept[0].shape[1]
        x += a["places"][begun : begun + x.shape[1]]
        with one_thread():
            x, kept = self._blocks(x, np.array([x.shape[1] - 1]), kept)
        return x[:, 0], kept

    def _read_all(self, histories: Histories) -> Floats:
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
        """The states after the last `sizes` items of some histories."""
        a, n = self.arrays, len(rows)
        place = (histories.indptr[rows + 1] - sizes)[:, None] + np.arange(sizes.max(initial=0))
        inside = np.arange(place.shape[1]) < sizes[:, None]
        items = histories.items[np.where(inside, place, 0)] if len(histories.items) else np.zeros(place.shape, int)
        x = np.concatenate([np.broadcast_to(a["start"], (n, *a["start"].shape)), self._met(items)], axis=1)
        x += a["places"][: x.shape[1]]
        x, _ = self._blocks(x, sizes)
        return x[:, 0]

    def _met(self, items: Ints | Codes) -> Floats:
        tokens = self.arrays["tokens"]
        return np.asarray(tokens[items] * np.float32(tokens.shape[1] ** 0.5))

    def _blocks(self, x: Floats, ends: Ints, kept: Kept | None = None) -> tuple[Floats, Kept]:
        """x : (n, time, dim), what is new; what stands at the places `ends` (n,) of it after all blocks: (n, 1, dim);
        and what to keep. kept : of what came before."""
        found = []
        for block in range(self.blocks):
            before = None if kept is None else kept[block]
            x, both = self._block(x, f"blocks.{block}.", ends if block == self.blocks - 1 else None, before)
            found.append(both)
        return (x if self.blocks else x[np.arange(len(x)), ends][:, None]), tuple(found)

    def _block(self, x: Floats, name: str, ends: Ints | None, before: Floats | None) -> tuple[Floats, Floats]:
        """(n, time, dim) after a block; with `ends` (n,) only what stands there: (n, 1, dim). Beside it the keys and
        values (n, begun + time, 2 * dim), of which `before` (n, begun, 2 * dim) were known."""
        n, time, dim = x.shape
        held = self._norm(x, name + "before_attention")
        asking = held if ends is None else held[np.arange(n), ends][:, None]
        weight, bias = self.arrays[name + "qkv.weight"], self.arrays[name + "qkv.bias"]
        queries = self._heads(asking @ weight[:dim].T + bias[:dim])
        both = held @ weight[dim:].T + bias[dim:]
        begun = 0 if before is None else before.shape[1]
        if before is not None:
            both = np.concatenate([before, both], axis=1)
        keys, values = (self._heads(part) for part in np.split(both, 2, axis=2))
        logits = queries @ keys.transpose(0, 1, 3, 2)
        logits /= np.float32((dim // self.heads) ** 0.5)
        last = begun + (np.arange(time)[:, None] if ends is None else ends[:, None, None, None])
        np.copyto(logits, np.float32(-np.inf), where=np.arange(begun + time) > last)
        logits -= logits.max(axis=3, keepdims=True)
        shares = np.exp(logits, out=logits)
        shares /= shares.sum(axis=3, keepdims=True)
        z = (shares @ values).transpose(0, 2, 1, 3).reshape(n, -1, dim)
        x = (x if ends is None else x[np.arange(n), ends][:, None]) + self._linear(z, name + "attended")
        z = self._linear(self._norm(x, name + "before_feed"), name + "widen")
        return x + self._linear(_gelu(z), name + "narrow"), both

    def _heads(self, x: Floats) -> Floats:
        """(n, time, dim) to (n, heads, time, dim / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

    def _linear(self, x: Floats, part: str) -> Floats:
        found: Floats = x @ self.arrays[f"{part}.weight"].T
        found += self.arrays[f"{part}.bias"]
        return found

    def _norm(self, x: Floats, part: str) -> Floats:
        share = np.float32(1 / x.shape[-1])
        centred = x - share * np.add.reduce(x, axis=-1, keepdims=True)
        scale = 1 / np.sqrt(share * np.add.reduce(centred * centred, axis=-1, keepdims=True) + np.float32(_EPSILON))
        centred *= scale
        centred *= self.arrays[f"{part}.weight"]
        centred += self.arrays[f"{part}.bias"]
        return np.asarray(centred)


def one_thread() -> AbstractContextManager[Any]:
    """Products of a request are so small that a second thread costs more than it saves."""
    limited: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> Any:
    """What computes products, looked up once: that takes longer than a request."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _gelu(x: Floats) -> Floats:
    """x * Phi(x), as max(x, 0) - |x| * Phi(-|x|); Phi from the error function to 1.5e-7 by Abramowitz and Stegun's
    formula 7.1.26, since scipy's took twice as long.

    Some at a time and in place: for large arrays each step asks the system for memory, and waits longer for it than it
    takes.
    """
    found = np.maximum(x, 0)
    flat, into = x.reshape(-1), found.reshape(-1)
    for at in range(0, len(flat), AT_ONCE):
        away = np.abs(flat[at : at + AT_ONCE])
        t = away * np.float32(0.3275911 * 0.5**0.5)
        t += 1
        np.reciprocal(t, out=t)
        tail = t * np.float32(1.061405429 / 2)
        for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            tail += np.float32(coefficient / 2)
            tail *= t
        tail *= away
        away *= away
        away *= np.float32(-0.5)
        tail *= np.exp(away, out=away)
        into[at : at + AT_ONCE] -= tail
    return found
