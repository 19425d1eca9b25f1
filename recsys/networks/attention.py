"""Blocks of attention, causal to itself or to a memory, and how the vectors that stand for items start."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SPREAD = 0.02  # the usual standard deviation of initial weights (GPT-2)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each added to what came in."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.attended = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """x : (batch, time, dim), padded on the right: with a causal mask nothing ever looks at the padding.

        With `ends` (batch,), only what stands at these places is computed: (batch, 1, dim).
        """
        keys = self._heads(self.qkv(self.before_attention(x)))
        if ends is None:
            q, k, v = keys
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            rows = torch.arange(len(x), device=x.device)
            x, q = x[rows, ends][:, None], keys[0][rows, :, ends][:, :, None]
            seen = torch.arange(keys.shape[3], device=x.device) <= ends[:, None]
            z = functional.scaled_dot_product_attention(q, keys[1], keys[2], attn_mask=seen[:, None, None])
        z = self.attended(z.transpose(1, 2).flatten(2))
        x = x + functional.dropout(z, self.dropout, self.training)
        z = self.narrow(functional.gelu(self.widen(self.before_feed(x))))
        return x + functional.dropout(z, self.dropout, self.training)

    def _heads(self, qkv: Tensor) -> Tensor:
        """(batch, time, 3 * dim) to (3, batch, heads, time, dim / heads)."""
        return qkv.view(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)


class Attend(nn.Module):
    """Multi-head attention from `x` to a memory, and a feed-forward layer, each added to what came in."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before, self.before_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ask, self.offer, self.answer = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """x : (batch, n, dim); memory : (batch, m, dim), where mask (batch, m) says so."""
        q = self._heads(self.ask(self.before(x)))
        k, v = (self._heads(part) for part in self.offer(memory).chunk(2, dim=-1))
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        z = self.answer(z.transpose(1, 2).flatten(2))
        x = x + functional.dropout(z, self.dropout, self.training)
        z = self.narrow(functional.gelu(self.widen(self.before_feed(x))))
        return x + functional.dropout(z, self.dropout, self.training)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def spread_out(vectors: Tensor) -> Tensor:
    """Centred, with a standard deviation of 1 over all entries."""
    centred = vectors - vectors.mean(dim=0)
    spread = centred.std(correction=0)
    return centred / spread if spread > 0 else centred


def principal_directions(vectors: Tensor, dim: int) -> Tensor:
    """(dim, width) projection on the directions of largest variance, scaled so that tokens start as small as others.

    Where there are fewer directions than `dim`, the rest is zero.
    """
    _, _, directions = torch.linalg.svd(vectors, full_matrices=False)
    chosen = directions[:dim]
    # The sign of a singular vector is the library's whim: the largest entry is made positive.
    signs = torch.gather(chosen, 1, chosen.abs().argmax(dim=1, keepdim=True)).sign()
    chosen = chosen * signs
    spread = (vectors @ chosen.T).std(correction=0)
    scaled = chosen * (SPREAD / spread if spread > 0 else 0.0)
    return torch.cat([scaled, torch.zeros(dim - len(scaled), vectors.shape[1])])
