"""Learning what requests mean, and how much of what is said in new words is understood."""

from collections.abc import Sequence

import numpy as np

from recsys.networks.training import Schedule, fingerprint, train, workplace
from recsys.protocols import TextEncoder
from recsys.rerank.lessons import Ear, Library, Mentions
from recsys.rerank.requests import Facets, Request
from recsys.rerank.sequence import SURE, SequenceConfig
from recsys.settings import Settings

# Requests in a batch.
EXERCISES = 64


def learn_meanings(
    config: SequenceConfig, library: Library | None, facets: Facets, encoder: TextEncoder, settings: Settings, seed: int
) -> Ear:
    """Train the interpreter on the library's requests, whose meaning is known."""
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
    return Ear(library is not None, network.eval(), facets.names, names, facets.years, Mentions.of(facets.titles))


def understood(ear: Ear, requests: Sequence[Request], encoder: TextEncoder) -> float:
    """Share of what these requests want and refuse that is taken for what it is."""
    from recsys.rerank.interpret import Words

    meanings = ear.interpreter.meanings(Words.of([r.text for r in requests], encoder), ear.vectors)
    right = [
        float(meanings[name][row, value]) > SURE
        for row, request in enumerate(requests)
        for name, values in (("wants", request.wants), ("refuses", request.refuses))
        for value in values
    ]
    return float(np.mean(right)) if right else 0.0
