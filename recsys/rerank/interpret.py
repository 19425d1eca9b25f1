"""What a request in words means: which values it wants, which it refuses, and whether newer or older than a title.

The tokens of a request come from a frozen text encoder. A block or two read them together; then each value that the
catalog knows asks them, by the encoding of its own name, whether it is wanted, refused or not spoken of. Values are
read by their names, so one network serves any catalog, and its reading can be shown to who asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.networks.attention import SPREAD, Attend
from recsys.networks.training import Batch
from recsys.protocols import Floats, Ints, TextEncoder
from recsys.rerank.clauses import set_apart
from recsys.rerank.hearing import SURE
from recsys.rerank.requests import Request

# Tokens of a piece of a request that are read.
LONGEST = 40
# Probabilities are kept this far from 0 and 1, so that no value rules an item out beyond recall. What is more likely
# refused than not is held to whatever the odds, as who asked is told: it weighs as much as two values that are lacking.
DOUBT = 1e-4
STRICT = DOUBT**2
# How much it counts that an item has other values, too: 1 would be right if people named any of them alike; they name
# what tells most, and catalogs are uneven.
CHOSEN = 0.5
# Values asked about at once in training: those spoken of, and some that are not; half of these have names that are like
# that of one that is, unless they are so like it that they may mean the same.
ASKED, RIVALS, SAME_NAME = 10, 12, 0.85
NEITHER, WANTED, REFUSED = range(3)
SAME, NEWER, OLDER = range(3)


@dataclass(frozen=True)
class Words:
    """The tokens of some requests: states (tokens, dim) float32, request after request; indptr (requests + 1,)."""

    states: Floats
    indptr: Ints

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def of(cls, texts: Sequence[str], encoder: TextEncoder) -> "Words":
        """Encode requests."""
        return cls(*encoder.states(texts, LONGEST))

    @classmethod
    def of_requests(cls, requests: Sequence[Request], encoder: TextEncoder) -> "Words":
        """Encode requests that were written for training or a test. Users' own are put plainly, too (`clauses`)."""
        return cls.of([set_apart(request.text) for request in requests], encoder)

    def means(self) -> Floats:
        """(requests, dim) one vector of unit length for each."""
        sums = np.add.reduceat(self.states, self.indptr[:-1]) if len(self) else np.zeros((0, 1), dtype=np.float32)
        return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def take(self, rows: Ints) -> Batch:
        """ "words" (n, m, dim) and "words_mask" (n, m) of some requests."""
        sizes = np.diff(self.indptr)[rows]
        place = self.indptr[rows][:, None] + np.arange(max(1, int(sizes.max(initial=1))))
        mask = np.arange(place.shape[1]) < sizes[:, None]
        return {
            "words": torch.from_numpy(self.states[np.where(mask, place, 0)]),
            "words_mask": torch.from_numpy(mask),
        }


class Interpreter(nn.Module):
    """The network. `forward` is the loss of a batch, `interpret` the answer."""

    def __init__(self, width: int, dim: int = 128, layers: int = 2, dropout: float = 0.1) -> None:
        """width : of the encoder's states."""
        super().__init__()
        self.words, self.names = nn.Linear(width, dim), nn.Linear(width, dim)
        self.places = nn.Parameter(torch.randn(LONGEST, dim) * SPREAD)
        self.than = nn.Parameter(torch.randn(dim) * SPREAD)
        self.together = nn.ModuleList(Attend(dim, 4, dropout) for _ in range(layers))
        self.asking = nn.ModuleList(Attend(dim, 4, dropout) for _ in range(layers))
        self.last, self.said, self.said_than = nn.LayerNorm(dim), nn.Linear(dim, 3), nn.Linear(dim, 3)

    def interpret(self, batch: Mapping[str, Tensor], names: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, values, 3) of neither, wanted and refused, and (n, 3) of no comparison, newer and older.

        batch : "words" (n, m, width) and "words_mask" (n, m); names : (values, width) or (n, values, width)
        """
        mask = batch["words_mask"]
        words = self.words(batch["words"]) + self.places[: mask.shape[1]]
        for block in self.together:
            words = block(words, words, mask)
        values = self.names(names if names.ndim == 3 else names.expand(len(words), -1, -1))
        x = torch.cat([values, self.than.expand(len(words), 1, -1)], 1)
        for block in self.asking:
            x = block(x, words, mask)
        x = self.last(x)
        return self.said(x[:, :-1]), self.said_than(x[:, -1])

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of "said" (n, values) about "names" (n, values, width) and of "than" (n,)."""
        said, than = self.interpret(batch, batch["names"])
        spoken = functional.cross_entropy(said.flatten(0, 1).float(), batch["said"].flatten(), reduction="none")
        # Nearly all values are not spoken of: both sides count alike.
        silent = (batch["said"] == NEITHER).flatten()
        loss = spoken[~silent].sum() / (~silent).sum().clamp(min=1) + spoken[silent].sum() / silent.sum().clamp(min=1)
        return loss + functional.cross_entropy(than.float(), batch["than"])

    def meanings(self, words: Words, names: Floats, rows: int = 64) -> dict[str, Tensor]:
        """What requests mean, as probabilities: "wants" and "refuses" (requests, values) for the values named, "newer"
        and "older" (requests,)."""
        asked = torch.from_numpy(names)
        found: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            for start in range(0, len(words), rows):
                said, than = self.interpret(words.take(np.arange(start, min(len(words), start + rows))), asked)
                found.append((said.float().softmax(-1)[..., 1:].clone(), than.float().softmax(-1)))
        said = torch.cat([s for s, _ in found]) if found else torch.zeros(0, len(names), 2)
        than = torch.cat([t for _, t in found]) if found else torch.zeros(0, 3)
        return {
            "wants": said[..., WANTED - 1],
            "refuses": said[..., REFUSED - 1],
            "newer": than[:, NEWER],
            "older": than[:, OLDER],
        }


def log_fits(meanings: Mapping[str, Tensor], carried: Tensor, years: Tensor, eras: Tensor) -> Tensor:
    """(requests, items): the log probability that an item is what was asked for, taking values as independent; what is
    heard as refused is held to (`STRICT`).

    Who asks for an item by its values could have named others that it has: the more there are, the less likely is it
    meant (Frank & Goodman, "Predicting pragmatic reasoning in language games", Science 2012; see `CHOSEN`).

    meanings : as of `Interpreter.meanings`, with "like_years" (requests,), of the item that is named, NaN for none
    carried  : (items, values) 0 or 1; years : (items,) NaN where not known; eras : (values,) whether it is a decade, of
               which an item has one
    """
    gone = {name: torch.log1p(-meanings[name].clamp(max=1 - DOUBT)) for name in ("wants", "refuses", "newer", "older")}
    gone["refuses"][meanings["refuses"] > SURE] = float(np.log(STRICT))
    found = gone["wants"] @ (1 - carried).T + gone["refuses"] @ carried.T
    wanted = ((meanings["wants"] > SURE) & ~eras).sum(1).float()[:, None]
    own = carried[:, ~eras].sum(1)[None].maximum(wanted)
    found = found - CHOSEN * (torch.lgamma(own + 1) - torch.lgamma(wanted + 1) - torch.lgamma(own - wanted + 1))
    apart = years[None] - meanings["like_years"][:, None]
    dated = torch.isfinite(meanings["like_years"])[:, None]
    for name, sign in (("newer", 1), ("older", -1)):
        found = found + (dated & ~(sign * apart > 0)) * gone[name][:, None]
    return found


def rivals(names: Floats) -> Ints:
    """(values, RIVALS) others whose names are most like each, but not the same; fewer columns where there are fewer."""
    unit = names / np.maximum(np.linalg.norm(names, axis=1, keepdims=True), 1e-12)
    alike = unit @ unit.T
    alike[alike > SAME_NAME] = -np.inf
    return np.argsort(-alike, axis=1, kind="stable")[:, : min(RIVALS, len(names) - 1)]


class Exercises:
    """One epoch's batches of requests whose meaning is known, of like length side by side. names : (values, width)
    encodings."""

    def __init__(
        self, requests: Sequence[Request], words: Words, names: Floats, *, batch: int, rng: np.random.Generator
    ) -> None:
        self._requests, self._words, self._names, self._batch, self._rng = requests, words, names, batch, rng
        self._rivals = rivals(names)
        order = rng.permutation(len(requests))
        self._order = order[np.argsort(np.diff(words.indptr)[order], kind="stable")]
        self._starts = rng.permutation(np.arange(0, len(order), batch))

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        for start in self._starts:
            rows = self._order[start : start + self._batch]
            asked = self._rng.integers(0, len(self._names), (len(rows), min(ASKED, len(self._names))))
            said = np.full(asked.shape, NEITHER)
            for place, row in enumerate(rows):
                request = self._requests[row]
                spoken = [*request.wants, *request.refuses]
                asked[place, : len(spoken)] = spoken
                free = range(len(spoken), asked.shape[1] if spoken and self._rivals.shape[1] else 0)
                for column in free[::2]:
                    near = self._rivals[spoken[column % len(spoken)]]
                    asked[place, column] = near[int(self._rng.integers(len(near)))]
                said[place] += np.isin(asked[place], request.wants) * WANTED
                said[place] += np.isin(asked[place], request.refuses) * REFUSED
            than = np.array([self._requests[row].than for row in rows]) % 3  # -1 becomes OLDER
            yield {
                **self._words.take(rows),
                "names": torch.from_numpy(self._names[asked]),
                "said": torch.from_numpy(said.astype(np.int64)),
                "than": torch.from_numpy(than),
            }
