"""The ear of a catalog: what requests for its values mean, learned from what is shipped on, and how much is understood.

Who has heard requests for all kinds of things (`shipped`) knows how people ask. What is left to learn is which of a
catalog's values lie near each other, so that no thriller is heard where a mystery is asked for: a minute or two.
"""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.networks.training import Schedule, fingerprint, train, workplace
from recsys.protocols import Floats, Ints, TextEncoder
from recsys.rerank.hearing import SURE, Ear
from recsys.rerank.lessons import Library
from recsys.rerank.likeness import Likeness
from recsys.rerank.mentions import Mentions
from recsys.rerank.requests import Request, Writer
from recsys.rerank.sequence import SequenceConfig
from recsys.rerank.shipped import shipped
from recsys.settings import Settings

if TYPE_CHECKING:
    from recsys.rerank.interpret import Interpreter, Words

log = logging.getLogger(__name__)

# Requests in a batch.
EXERCISES = 64
# Requests by which it is told how much is understood.
TESTED = 300
# How many times the passes it takes to learn from nothing.
ANEW = 4
# Share of the catalog's own training in the weights; the rest stay those that it went on from, which know idioms that
# so few requests make it forget (WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
OWN = 0.7


def ear_of(
    config: SequenceConfig,
    writer: Writer,
    tester: Writer,
    frequency: Ints,
    texts: Floats,
    encoder: TextEncoder,
    settings: Settings,
    seed: int,
) -> tuple[Ear, dict[str, Any]]:
    """What requests mean for a catalog, and a report: how much is `understood` of what requests in new words say, and
    whether `meanings` went on from what is "shipped" or were "learned" from nothing.

    writer, tester : of requests to learn from, and of some in phrasings that are not taught
    frequency      : (items,) events of each; texts : (items, dim) their vectors
    Nothing is learned of requests, and none read, where `config.written` is 0, or the catalog has no values to name, or
    too little is understood.
    """
    from recsys.rerank.interpret import Interpreter, Words

    facets = writer.facets
    names = encoder.embed(list(facets.names))

    def around(network: "Interpreter", *, learned: bool = True) -> Ear:
        carried, mentions = facets.carried.astype(np.float32), Mentions.of(facets.titles)
        likeness = Likeness.of(texts, writer.near[:, texts.shape[1] :])
        return Ear(learned, network, facets.names, names, facets.eras, carried, facets.years, mentions, likeness)

    if not config.written or not len(facets):
        return around(Interpreter(texts.shape[1]).eval(), learned=False), {}
    items = np.random.default_rng(seed).choice(np.flatnonzero(frequency), TESTED).astype(np.int32)
    exam = tester.write(items, seed + 3)
    words = Words.of_requests(exam, encoder)
    start = shipped(encoder.model_id) if config.meanings == "shipped" else None
    passes = config.exercises * (1 if start else ANEW)
    library = Library.write(writer, frequency, encoder, config.written, seed)
    network = train_interpreter(library.requests, library.words, names, passes, settings, seed, start)
    network = between(start, network, OWN) if start else network
    share, ear = understood(network, exam, words, names), around(network)
    wishes = [row for row, request in enumerate(exam) if request.wants]
    if wishes:
        openings = encoder.embed([opening for opening in writer.wording.phrases["open"] if opening])
        ear = replace(ear, likeness=ear.likeness.learn(words.means()[wishes], items[wishes], openings))
    if share < config.understood:
        log.warning(
            "reranker: of what requests in new words say only %.0f%% is understood: they will not be read; "
            "raise reranker.written or reranker.exercises, or lower reranker.understood",
            100 * share,
        )
        ear = replace(ear, learned=False)
    whose = "shipped" if start else "learned"
    return ear, {"meanings": whose, "understood": share, "likeness": ear.likeness.keen}


def train_interpreter(
    requests: Sequence[Request],
    words: "Words",
    names: Floats,
    passes: int,
    settings: Settings,
    seed: int,
    start: "Interpreter | None" = None,
) -> "Interpreter":
    """Learn from requests whose meaning is known, from `start` on, which stays as it is, or from nothing.

    words : of the requests; names : (values, width) encodings of the values that they speak of
    """
    import torch

    from recsys.rerank.interpret import Exercises, Interpreter

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = deepcopy(start) if start else Interpreter(names.shape[1])

    def exercises(epoch: int) -> Exercises:
        rng = np.random.default_rng((seed, epoch))
        return Exercises(requests, words, names, batch=EXERCISES, rng=rng)

    schedule = Schedule(finish=passes)
    meant = np.array([code for r in requests for code in (*r.wants, -1, *r.refuses, -1, r.than)])
    weights = [value.detach().numpy() for value in network.state_dict().values()]
    with workplace(settings, fingerprint(schedule, seed, words.states, words.indptr, names, meant, *weights)) as folder:
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
    return network.eval()


def between(start: "Interpreter", learned: "Interpreter", share: float) -> "Interpreter":
    """A network between two: `share` of the learned weights, and the rest of those of `start`."""
    before, found = start.state_dict(), deepcopy(learned)
    found.load_state_dict({k: (1 - share) * before[k] + share * value for k, value in learned.state_dict().items()})
    return found.eval()


def heard_right(network: "Interpreter", requests: Sequence[Request], words: "Words", names: Floats) -> dict[str, float]:
    """Shares of what requests want and refuse that are heard so ("wanted", "refused"; left out where nothing does), how
    many values of a request are heard as wanted or refused that are not ("falsely"), and how often it is right whether
    newer or older is asked for ("than"). words : of the requests; names : (values, width) encodings."""
    meanings = network.meanings(words, names)
    found: dict[str, float] = {}
    falsely = np.zeros(len(requests))
    for share, name in (("wanted", "wants"), ("refused", "refuses")):
        heard = meanings[name].numpy() > SURE
        said = [(row, value) for row, request in enumerate(requests) for value in getattr(request, name)]
        if said:
            rows, values = np.array(said).T
            found[share] = float(heard[rows, values].mean())
            falsely -= np.bincount(rows, heard[rows, values], minlength=len(requests))
        falsely += heard.sum(axis=1)
    than = (meanings["newer"].numpy() > SURE).astype(int) - (meanings["older"].numpy() > SURE)
    right = float(np.mean(than == [request.than for request in requests]))
    return {**found, "falsely": float(falsely.mean()), "than": right}


def understood(network: "Interpreter", requests: Sequence[Request], words: "Words", names: Floats) -> float:
    """Share of what these requests want that is heard so, or of what they refuse, whichever is less: who takes all for
    refused understands nothing."""
    found = heard_right(network, requests, words, names)
    return min((found[share] for share in ("wanted", "refused") if share in found), default=0.0)
