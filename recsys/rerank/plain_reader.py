"""A reader's blocks (`reader`) in plain numpy: what a student has of a teacher that reads histories by a network.

To rounding, it expects what the teacher's network expects. Of the last block only the last place is worked out, which
is all that ranking needs; without torch there is little else to pay for. Of single users the keys and values of
attention are kept, so that a new event costs one token (`follow`). A distilled block was tried instead, and lost a
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
# The parts of a `networks.attention.Block`, as its state names them.
PARTS = ("before_attention", "qkv", "attended", "before_feed", "widen", "narrow")
_EPSILON = 1e-5  # torch's, in a layer norm
AT_ONCE = 65_536  # numbers that an activation is worked out for: about those of one history


@dataclass(frozen=True)
class Linear:
    """Times a weight (inputs, outputs), plus a bias (outputs,)."""

    weight: Floats
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        found: Floats = x @ self.weight
        found += self.bias
        return found

    @classmethod
    def part(cls, arrays: Mapping[str, Floats], name: str, norm: str = "") -> "Linear":
        """As torch has it; behind a layer norm, whose own weight and bias are then in these."""
        weight, bias = np.ascontiguousarray(arrays[f"{name}.weight"].T), arrays[f"{name}.bias"]
        if norm:
            bias = arrays[f"{norm}.bias"] @ weight + bias
            weight = arrays[f"{norm}.weight"][:, None] * weight
        return cls(weight, bias)


@dataclass(frozen=True)
class PlainBlock:
    """One block (`networks.attention.Block`): what attention asks (a share of it, so that logits need no scale), its
    keys and values, what becomes of what it finds, and the layer that feeds forward."""

    queries: Linear
    both: Linear
    attended: Linear
    widen: Linear
    narrow: Linear

    @classmethod
    def of(cls, arrays: Mapping[str, Floats], name: str, heads: int) -> "PlainBlock":
        three = Linear.part(arrays, name + "qkv", name + "before_attention")
        weight, bias, dim = three.weight, three.bias, len(three.weight)
        scale = np.float32((dim // heads) ** -0.5)
        return cls(
            Linear(np.ascontiguousarray(weight[:, :dim] * scale), bias[:dim] * scale),
            Linear(np.ascontiguousarray(weight[:, dim:]), bias[dim:]),
            Linear.part(arrays, name + "attended"),
            Linear.part(arrays, name + "widen", name + "before_feed"),
            Linear.part(arrays, name + "narrow"),
        )


@dataclass(frozen=True)
class PlainReader:
    """The weights, and how many blocks and heads there are.

    arrays : `WEIGHTS`, of which "tokens" (items, dim) and "bias" (items,) are the table; and of each block the weight
             and the bias of its parts, as "blocks.0.qkv.weight"
    """

    arrays: Mapping[str, Floats]
    blocks: int
    heads: int
    _blocks: tuple[PlainBlock, ...] = field(init=False, repr=False, compare=False)
    _states: Remembering = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of_blocks = [
            f"blocks.{k}.{part}.{of}" for k in range(self.blocks) for part in PARTS for of in ("weight", "bias")
        ]
        if missing := {*WEIGHTS, *of_blocks} - self.arrays.keys():
            raise ValueError(f"the reader lacks {min(missing)}")
        dim = self.arrays["tokens"].shape[1]
        if self.blocks < 0 or self.heads < 1 or dim % self.heads:
            raise ValueError(f"{self.blocks} blocks of {self.heads} heads do not fit {dim} dimensions")
        blocks = tuple(PlainBlock.of(self.arrays, f"blocks.{k}.", self.heads) for k in range(self.blocks))
        object.__setattr__(self, "_blocks", blocks)
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
        a = self.arrays
        last = _normed(self._states(histories)) * a["last.weight"] + a["last.bias"]
        return np.asarray(last @ a["out.weight"].T, dtype=np.float32)

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
            x, kept = self._through(x, np.array([x.shape[1] - 1]), kept)
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
        x, _ = self._through(x, sizes)
        return x[:, 0]

    def _met(self, items: Ints | Codes) -> Floats:
        tokens = self.arrays["tokens"]
        return np.asarray(tokens[items] * np.float32(tokens.shape[1] ** 0.5))

    def _through(self, x: Floats, ends: Ints, kept: Kept | None = None) -> tuple[Floats, Kept]:
        """x : (n, time, dim), what is new; what stands at the places `ends` (n,) of it after all blocks: (n, 1, dim);
        and what to keep. kept : of what came before."""
        found = []
        for place, block in enumerate(self._blocks):
            before = None if kept is None else kept[place]
            x, both = self._block(x, block, ends if place == self.blocks - 1 else None, before)
            found.append(both)
        return (x if self.blocks else x[np.arange(len(x)), ends][:, None]), tuple(found)

    def _block(self, x: Floats, block: PlainBlock, ends: Ints | None, before: Floats | None) -> tuple[Floats, Floats]:
        """(n, time, dim) after a block; with `ends` (n,) only what stands there: (n, 1, dim). Beside it the keys and
        values (n, begun + time, 2 * dim), of which `before` (n, begun, 2 * dim) were known."""
        n, time, dim = x.shape
        held = _normed(x)
        both = block.both(held)
        if ends is not None:
            x, held = x[np.arange(n), ends][:, None], held[np.arange(n), ends][:, None]
        begun = 0 if before is None else before.shape[1]
        if before is not None:
            both = np.concatenate([before, both], axis=1)
        keys, values = self._heads(both[..., :dim]), self._heads(both[..., dim:])
        shares = self._heads(block.queries(held)) @ keys.transpose(0, 1, 3, 2)
        last = begun + (np.arange(time)[:, None] if ends is None else ends[:, None, None, None])
        np.copyto(shares, np.float32(-np.inf), where=np.arange(begun + time) > last)
        shares -= shares.max(axis=3, keepdims=True)
        np.exp(shares, out=shares)
        z = np.asarray(shares @ values, dtype=np.float32)
        z /= shares.sum(axis=3, keepdims=True)
        z = block.attended(z.transpose(0, 2, 1, 3).reshape(n, -1, dim))
        z += x
        found = block.narrow(_gelu(block.widen(_normed(z))))
        found += z
        return found, both

    def _heads(self, x: Floats) -> Floats:
        """(n, time, dim) to (n, heads, time, dim / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


def _normed(x: Floats) -> Floats:
    """A layer norm without weight and bias."""
    share = np.float32(1 / x.shape[-1])
    centred = x - share * np.add.reduce(x, axis=-1, keepdims=True)
    centred *= 1 / np.sqrt(share * np.add.reduce(centred * centred, axis=-1, keepdims=True) + np.float32(_EPSILON))
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

    Some at a time and in place, so that they stay in the processor's cache from step to step.
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
