"""Learning what requests mean, and how much of what is said in new words is understood."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recsys.data.vocab import Codes
from recsys.networks.training import Schedule, fingerprint, train, workplace
from recsys.protocols import Floats, TextEncoder
from recsys.rerank.hearing import SURE, Ear, Mentions
from recsys.rerank.lessons import Library
from recsys.rerank.likeness import Likeness
from recsys.rerank.requests import Facets, Request
from recsys.rerank.sequence import SequenceConfig
from recsys.settings import Settings

if TYPE_CHECKING:
    from recsys.rerank.interpret import Words

# Requests in a batch.
EXERCISES = 64


def learn_meanings(
    config: SequenceConfig,
    library: Library | None,
    facets: Facets,
    texts: Floats,
    encoder: TextEncoder,
    settings: Settings,
    seed: int,
) -> Ear:
    """Train the interpreter on the library's requests, whose meaning is known. texts : (items, dim) vectors."""
    import torch

    from recsys.rerank.interpret import Exercises, Interpreter

    names = encoder.embed(list(facets.names))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Interpreter(names.shape[1])
    if library is not None:
        requests, words = library.requests, library.words

        def exercises(epoch: int) -> Exercises:
            rng = np.random.default_rng((seed, epoch))
            return Exercises(requests, words, names, batch=EXERCISES, rng=rng)

        schedule = Schedule(finish=config.exercises)
        key = fingerprint(schedule, seed, words.states, words.indptr, names, facets.carried)
        with workplace(settings, key) as folder:
            train(
                network,
                exercises,
                None,
                schedule,
                seed=seed,
                device=settings.device,
                folder=folder / "interpret",
                title="requests",
            )
    return Ear(
        library is not None,
        network.eval(),
        facets.names,
        names,
        facets.carried.astype(np.float32),
        facets.years,
        Mentions.of(facets.titles),
        Likeness.of(texts),
    )


def examine(ear: Ear, requests: Sequence[Request], items: Codes, encoder: TextEncoder) -> tuple[Ear, float]:
    """The ear with what it learns from requests in new words, each for one of `items`, about how far likeness goes; and
    how much of these requests was `understood`."""
    from recsys.rerank.interpret import Words

    words = Words.of([request.text for request in requests], encoder)
    wishes = [row for row, request in enumerate(requests) if request.wants]
    likeness = ear.likeness.learn(words.means()[wishes], items[wishes]) if wishes else ear.likeness
    return replace(ear, likeness=likeness), understood(ear, requests, words)


def understood(ear: Ear, requests: Sequence[Request], words: "Words") -> float:
    """Share of what these requests want that is heard so, or of what they refuse, whichever is less: who takes all for
    refused understands nothing. words : of the requests."""
    meanings = ear.interpreter.meanings(words, ear.vectors)
    shares = []
    for name in ("wants", "refuses"):
        said = [(row, value) for row, request in enumerate(requests) for value in getattr(request, name)]
        shares += [np.mean([float(meanings[name][place]) > SURE for place in said])] if said else []
    return float(min(shares, default=0.0))
