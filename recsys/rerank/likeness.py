"""Requests in words for which the catalog has no value: items whose text is like them come first.

What a request names is held to by its meaning (`interpret`). Of one that names nothing ("something about chess"), the
vector of its words says the most; how much that is worth is learned from requests whose answer is known.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.data.vocab import Codes
from recsys.networks.items import centred
from recsys.protocols import Floats

# By how much the logarithm of the odds rises from a cosine of 0 to one of 1.
KEEN = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Likeness:
    """texts : (items, width) unit vectors, without the `centre` (width,) that they share; keen : one of `KEEN`."""

    texts: Floats
    centre: Floats
    keen: float

    @classmethod
    def of(cls, vectors: Floats) -> "Likeness":
        """Of items whose texts have these vectors (items, width), before anything is learned."""
        texts = centred(vectors).astype(np.float16).astype(np.float32)  # as they are saved
        return cls(texts, vectors.mean(axis=0), 0.0)

    def learn(self, requests: Floats, answers: Codes) -> "Likeness":
        """The likeliest `keen`, if items are drawn by their likeness to a request.

        requests : (n, width) vectors of requests' words; answers : (n,) codes of the items that they describe
        """
        cosines = self.towards(requests) @ self.texts.T
        own = cosines[np.arange(len(answers)), answers]
        fits = [float(np.mean(k * own - np.log(np.exp(k * (cosines - 1)).sum(axis=1)) - k)) for k in KEEN]
        return replace(self, keen=KEEN[int(np.argmax(fits))])

    def towards(self, requests: Floats) -> Floats:
        """(n, width) unit vectors whose product with `texts` is the likeness of requests and items."""
        apart = requests - self.centre
        return np.asarray(apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12), dtype=np.float32)
