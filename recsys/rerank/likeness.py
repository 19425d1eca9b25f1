"""Likeness: of items to the words of a request for which the catalog has no value, and to an item that a request names.

What a request says of values is held to by its meaning (`interpret`). Of one that names nothing ("something about
chess"), the vector of its words says the most, beyond what any words have in common with some text; how much that is
worth is learned from requests whose answer is known.
"Like that one" is a matter of what is told of both, and of who meets both.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.data.vocab import Codes
from recsys.networks.items import centred
from recsys.protocols import Floats, Ints

# By how much the logarithm of the odds rises from a cosine of 0 to one of 1.
KEEN = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
# The same for an item that is named, of texts and of who meets both alike. It is not learned, since requests whose
# answer is known liken items as their writer does; this much helps whatever they are likened by (notebooks/LOG.md).
NAMED = 4.0


@dataclass(frozen=True)
class Likeness:
    """
    texts : (items, width) unit vectors, without the `centre` (width,) that they share
    met   : (items, factors) unit vectors of who meets them, zeros for nobody
    keen  : one of `KEEN`
    idle  : cosine that words which ask for nothing have with the text most like them
    """

    texts: Floats
    met: Floats
    centre: Floats
    keen: float
    idle: float = 0.0

    @classmethod
    def of(cls, vectors: Floats, met: Floats) -> "Likeness":
        """Of items whose texts have these vectors (items, width), before anything is learned."""
        texts, met = (part.astype(np.float16).astype(np.float32) for part in (centred(vectors), met))  # as saved
        return cls(texts, met, vectors.mean(axis=0), 0.0)

    def learn(self, requests: Floats, answers: Codes, openings: Floats) -> "Likeness":
        """With the likeliest `keen`, if items are drawn by their likeness to a request.

        requests : (n, width) vectors of requests' words; answers : (n,) codes of the items that they describe
        openings : (m, width) of words that requests begin with and that ask for nothing yet
        """
        idle = float((self.towards(openings) @ self.texts.T).max(axis=1).mean()) if len(openings) else 0.0
        able = replace(self, keen=1.0, idle=idle)
        gains = able.of_words(able.towards(requests))
        own = gains[np.arange(len(answers)), answers]
        fits = [float(np.mean(k * own - np.log(np.exp(k * (gains - 1)).sum(axis=1)) - k)) for k in KEEN]
        return replace(able, keen=KEEN[int(np.argmax(fits))])

    def towards(self, requests: Floats) -> Floats:
        """(n, width) unit vectors whose product with `texts` is the likeness of requests and items."""
        apart = requests - self.centre
        return np.asarray(apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def of_words(self, towards: Floats, items: Ints | slice = slice(None)) -> Floats:
        """(n, items) by how much the log probability of items rises as their texts are like words.

        towards : (n, width), as `towards` gives them or shorter
        """
        common = self.idle * np.linalg.norm(towards, axis=1, keepdims=True)
        return np.asarray(self.keen * np.maximum(towards @ self.texts[items].T - common, 0), dtype=np.float32)

    def to_named(self, named: Ints, items: Ints) -> Floats:
        """(n, items) by how much the log probability of items rises as they are like the one that is `named` (n,), a
        code; 0 where that is -1."""
        if not (named >= 0).any():
            return np.zeros((len(named), len(items)), dtype=np.float32)
        own = np.maximum(named, 0)
        alike = sum(vectors[own] @ vectors[items].T for vectors in (self.texts, self.met))
        return np.asarray(NAMED * alike * (named >= 0)[:, None], dtype=np.float32)
