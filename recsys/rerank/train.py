"""The training line of the sequence reranker, on a CPU or a GPU: one command, resumable, and no answer is ever seen.

First the meaning of requests, from requests written for the purpose; then the reader of histories, on the log before
tune, stopped when held-out users' next events are guessed no better, and finished over all of that log; then what
profiles say; then, on tune's questions, what its opinion is worth beside the candidates'; last it is finished again,
over all that is known.
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recsys.data.split import Questions
from recsys.data.vocab import Codes, Histories, Vocab
from recsys.errors import SpecError
from recsys.lm.weights import resolve
from recsys.networks.chunks import held_out, hold_out, in_parts
from recsys.networks.items import attribute_vectors, item_vectors
from recsys.networks.pairs import cooccurrence
from recsys.networks.training import fingerprint, train, workplace
from recsys.protocols import ProfileSource, TextEncoder
from recsys.rerank.exam import DIVERGED, heldout_quality
from recsys.rerank.fused import Fused
from recsys.rerank.hearing import Ear
from recsys.rerank.lessons import Lessons, with_texts, writer_of
from recsys.rerank.meanings import ear_of
from recsys.rerank.requests import Wording, Writer
from recsys.rerank.sequence import SequenceConfig, SequenceJudge
from recsys.rerank.told import Told
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, InteractionLog, Profiles, Queries, query_histories

if TYPE_CHECKING:
    from recsys.rerank.reader import Reader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class School:
    """What the sequence reranker learns from, besides tune's questions.

    before   : the log up to tune, by which `describe` was fitted, too; known : the log up to test
    generate : candidates of queries by a generator that was fitted on `before`
    """

    before: InteractionLog
    known: InteractionLog
    catalog: Catalog
    describe: ProfileSource
    generate: Callable[[Queries], Candidates]
    encoder: TextEncoder
    settings: Settings


def train_sequence(
    config: SequenceConfig, school: School, questions: Questions, profiles: Profiles, *, seed: int
) -> Fused:
    """Train the reranker. profiles : of tune's `questions`, as `school.describe` gives them.

    Errors: `SpecError` where the catalog has no text vectors, or `heads` does not divide `dim`.
    """
    if config.dim % config.heads:
        raise SpecError(f"reranker.heads = {config.heads} does not divide reranker.dim = {config.dim}")
    course = Course.of(config, school, seed)
    explored = course.explore()
    asked = course.with_texts(questions)
    judge = course.judge(course.finish(explored, school.before))
    fused = config.fuse(
        judge,
        asked,
        school.generate(asked.queries),
        profiles,
        school.catalog,
        school.before,
        seed=seed,
    )
    if school.known is not school.before:
        judge = course.judge(course.finish(explored, school.known))
    return replace(fused, judge=judge, report={**fused.report, "training": course.report})


@dataclass
class Course:
    """One training: the network on the log before tune, stopped early, then on all that is known."""

    config: SequenceConfig
    school: School
    seed: int
    vocab: Vocab
    histories: Histories
    writer: Writer
    tester: Writer  # of requests in phrasings that are not taught
    ear: Ear
    alike: Codes  # (items, n) others that are like each
    told: Told | None
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: SequenceConfig, school: School, seed: int) -> "Course":
        """Write requests and profiles to learn from, and learn what requests mean."""
        if config.backbone:
            resolve(config.backbone.model, school.settings)  # what is not there is said before the work, not after
        vocab = Vocab.of_items(school.catalog)
        histories = vocab.histories(query_histories(school.before))
        texts = item_vectors(school.catalog, vocab)
        taught, kept = Wording.read().split()
        writer = replace(writer_of(school.catalog, vocab, histories), wording=taught + Wording.more())
        tester = replace(writer, wording=kept, plain=0.0)
        frequency = np.bincount(histories.items, minlength=len(vocab))
        ear, report = ear_of(config, writer, tester, frequency, texts, school.encoder, school.settings, seed)
        told = None
        if config.told:
            # Without the events that say when to stop: those must be new to the network.
            asked_last = (
                school.before.frame["user_id"]
                .unique(maintain_order=True)
                .gather(held_out(histories, config.heldout, seed))
            )
            place = pl.int_range(pl.len()).over("user_id")
            last = pl.col("user_id").is_in(asked_last.implode()) & (place == pl.len().over("user_id") - 1)
            learned = InteractionLog(school.before.frame.filter(~last))
            told = Told.write(learned, vocab, school.describe, school.encoder, ear.mentions, config.told, seed)
        return cls(
            config,
            school,
            seed,
            vocab,
            histories,
            writer,
            tester,
            ear,
            writer.alike(np.arange(len(vocab), dtype=np.int32), np.random.default_rng(seed)).astype(np.int32),
            told,
            report,
        )

    def explore(self) -> "Reader":
        """Train until held-out users' next events are guessed no better."""
        learned, held, answers = hold_out(self.histories, self.config.heldout, self.seed)
        network = self._network(learned)
        quality = (lambda: heldout_quality(network, held, answers)) if len(answers) else None
        self.report.update(self._run(network, learned, quality, "explore"))
        return network

    def finish(self, explored: "Reader", log: InteractionLog) -> "Reader":
        """A copy that goes on over a log, while the rate falls."""
        network = deepcopy(explored, {id(value): value for value in explored.parameters() if not value.requires_grad})
        if self.config.finish:
            self._run(network, self.vocab.histories(query_histories(log)), None, "finish")
        if self.told is not None and len(self.told):
            from recsys.rerank.reading import learn_profiles

            trained = learn_profiles(network, self.told, self.school.settings, self.seed)
            self.report["profiles_ndcg@10"] = max(trained.qualities)
        return network

    def judge(self, network: "Reader") -> SequenceJudge:
        """The judge around a trained network."""
        import torch

        encoder = self.school.encoder
        if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
            raise SpecError(DIVERGED)
        with torch.inference_mode():
            tokens, bias = network.eval().table()
        return SequenceJudge(
            self.config,
            self.vocab,
            network,
            self.ear,
            encoder.model_id,
            lambda: encoder,
            (tokens.numpy(), bias.numpy()),
        )

    def with_texts(self, questions: Questions) -> Questions:
        """The same questions, a third of them with a request, a third with no history to read."""
        frame = questions.queries.frame
        answers = self.vocab.encode(questions.truth.frame["item_id"])
        part = np.random.default_rng(self.seed).permutation(len(frame)) % 3
        part[answers < 0] = 0
        asked = np.flatnonzero(part == 1) if self.ear.learned else np.empty(0, dtype=np.int64)
        requests = frame["request"].to_list()
        for place, request in zip(asked, self.tester.write(answers[asked], self.seed + 2), strict=True):
            requests[place] = request.text
        withheld = (part == 2) & (self.told is not None)
        return Questions(with_texts(questions.queries, requests, withheld), questions.truth)

    def _run(
        self,
        network: "Reader",
        histories: Histories,
        quality: Callable[[], float] | None,
        step: str,
    ) -> dict[str, Any]:
        config, seed = self.config, self.seed
        network.meet(np.bincount(histories.items, minlength=len(self.vocab)))

        def lessons(epoch: int) -> Lessons:
            return Lessons(
                histories,
                self.alike,
                length=config.length,
                batch=config.batch,
                share=config.likened,
                rng=np.random.default_rng((seed, epoch)),
            )

        if not len(lessons(0)):
            return {}
        arrays = [value.detach().numpy() for value in (network.features, *network.state_dict().values())]
        arrays.append(np.frombuffer(network.base.encode(), dtype=np.uint8))
        key = fingerprint(config, seed, histories.indptr, histories.items, self.alike, *arrays)
        with workplace(self.school.settings, key) as folder:
            trained = train(
                network,
                lessons,
                quality,
                config,
                seed=seed,
                device=self.school.settings.device,
                folder=folder / step,
                title="reranker" if quality else "reranker, last epochs",
                split=in_parts,
            )
        return trained.report()

    def _network(self, learned: Histories) -> "Reader":
        import torch

        from recsys.rerank.reader import Backbone, Items, Reader

        catalog, vocab, config = self.school.catalog, self.vocab, self.config
        items = Items(
            text=item_vectors(catalog, vocab),
            attributes=attribute_vectors(catalog, vocab),
            own=cooccurrence(learned, len(vocab), config.dim),
        )
        size, backbone = config.size(len(vocab)), None
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            if config.backbone:
                backbone = Backbone.of(config.backbone, resolve(config.backbone.model, self.school.settings), size)
            return Reader(items, np.bincount(learned.items, minlength=len(vocab)), size, backbone)
