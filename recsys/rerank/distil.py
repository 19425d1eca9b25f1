"""How the student is trained: its teacher orders many lists, and it learns to order them alike.

The loss is the cross-entropy between the softmax of the teacher's scores and that of the student's over each list
(ListNet, Cao et al., ICML 2007; with a teacher's scores for labels: RankDistil, Reddi et al., AISTATS 2021).
No answer is asked for: the lists are those of tune's queries, and of the same queries with shorter histories. A teacher
that had not seen the answers of tune leaves the student in the same ignorance.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.data.split import Questions
from recsys.data.vocab import Vocab
from recsys.metrics import ndcg
from recsys.networks.training import Schedule, fingerprint, train, workplace
from recsys.protocols import Floats, Ints
from recsys.rerank.features import Ranked, popularity
from recsys.rerank.fused import Fused, Regime
from recsys.rerank.heard import unread
from recsys.rerank.lessons import requests_for, with_texts, writer_of
from recsys.rerank.plain_reader import PlainReader
from recsys.rerank.requests import Wording
from recsys.rerank.sequence import SequenceJudge
from recsys.rerank.student import (
    HALF_LIVES,
    WEIGHTS,
    EarSource,
    StudentConfig,
    StudentJudge,
    coded,
    forward,
)
from recsys.rerank.taught import Material, Taught, known_of, shortened
from recsys.rerank.train import School
from recsys.tables import query_histories

# Parts of users' and items' vectors whose products are features of their own.
HEADS = 8
# Share of what is learned of single items that is left out at a training step.
DROPOUT = 0.3
# From this share of the variance of the teacher's scores on that features explain by themselves, there is nothing to
# learn but what words add: what is learned of histories besides would only be noise.
EXACT = 0.9


def train_student(config: StudentConfig, school: School, teacher: Fused, questions: Questions, *, seed: int) -> Fused:
    """Train the student on the teacher's order, then learn on tune's `questions` what its opinion is worth.

    Errors: `SpecError` where the catalog has no text vectors; those of the teacher.
    """
    vocab = Vocab.of_items(school.catalog)
    histories = vocab.histories(query_histories(school.before))
    writer = writer_of(school.catalog, vocab, histories)
    hears = bool(config.requests) and len(writer.facets) > 0 and unread(teacher) is None
    rng = np.random.default_rng(seed)
    cut = shortened(questions.queries, config.lists, rng)
    known = school.describe.as_of(cut)
    share = rng.random(len(cut))
    withheld = share < config.told
    cut = with_texts(cut, [""] * len(cut), withheld)
    lists = Ranked.of(cut, school.generate(cut)).head(min(config.depth, teacher.depth))
    asking = np.flatnonzero(share > 1 - config.requests) if hears else np.zeros(0, dtype=np.int64)
    # A request that is true of some candidate: as likely of one as of another.
    any_of = lists.starts + (rng.random(len(lists)) * lists.sizes).astype(np.int64)
    wish = np.full(len(cut), -1)
    wish[lists.asked] = coded(vocab, lists)[any_of]
    cut = with_texts(cut, requests_for(writer, wish, asking, seed), np.zeros(len(cut), dtype=bool))
    ear = getattr(teacher.judge, "ear", None)
    source: EarSource | None = (lambda: ear) if ear is not None and ear.learned else None
    taught = Taught.by(teacher, lists, cut, known, school, vocab, source)

    counts = popularity(school.before)
    items = known_of(school, vocab, histories)
    events = np.array([counts.get(item, 0) for item in vocab.ids.to_list()], dtype=np.float32)
    encoder = school.encoder
    names = ("score", "log_rank", *taught.lists.sources)
    judge = teacher.judge
    reader = PlainReader.of(judge.network, *judge.table) if isinstance(judge, SequenceJudge) else None
    material = Material.of(taught, vocab, names, items, np.log1p(events), cut, known, school, source, reader)
    pupil, report = _learn(config, material, items, school, seed)
    arrays = {**pupil.weights(), "items": items, "popularity": np.log1p(events)}
    student = StudentJudge(config, vocab, names, arrays, encoder.model_id, lambda: encoder, source, reader)

    part = rng.permutation(len(questions)) % 3
    answers = vocab.encode(questions.truth.frame["item_id"])
    asking = np.flatnonzero((part == 1) & (answers >= 0)) if hears else asking[:0]
    described = school.describe.as_of(questions.queries)
    tester = replace(writer, wording=Wording.read().split()[1], plain=0.0)  # as the teacher was weighed
    texts = requests_for(tester, answers, asking, seed + 1)
    asked = with_texts(questions.queries, texts, (part == 2) & (config.told > 0))
    earned: list[Regime] = ["plain"] if teacher.fusions["plain"].uses("lm") else []
    fused = config.fuse(
        student,
        Questions(asked, questions.truth),
        school.generate(asked),
        described,
        school.catalog,
        school.before,
        seed=seed,
        follow=earned,
    )
    return replace(fused, report={**fused.report, "training": report, "teacher": dict(teacher.report)})


class Exercises:
    """The lists of one epoch, in a new order."""

    def __init__(self, material: Material, lists: Ints, batch: int, rng: np.random.Generator) -> None:
        self._material, self._lists, self._batch = material, rng.permutation(lists), batch

    def __len__(self) -> int:
        return -(-len(self._lists) // self._batch)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for at in range(0, len(self._lists), self._batch):
            yield self._material.batch(self._lists[at : at + self._batch])


class Pupil(nn.Module):
    """The student's network in training; `forward` is its loss."""

    items: Tensor

    def __init__(self, items: Floats, width: int, linear: Floats, config: StudentConfig, *, alike: bool) -> None:
        """linear : weights of features to start from; alike : whether it begins with the likeness of what was met and
        what is offered, too."""
        super().__init__()
        features = len(linear)
        n, known = items.shape
        dim, hidden = HEADS * -(-config.dim // HEADS), config.hidden
        self.temperature = config.temperature
        self.register_buffer("items", torch.from_numpy(items), persistent=False)
        self.project = nn.Parameter(torch.randn(known, dim) / known**0.5)
        self.own, self.bias = nn.Parameter(torch.zeros(n, dim)), nn.Parameter(torch.zeros(n))
        start = {
            "past": alike
            * torch.cat(
                [self.project.detach() / len(HALF_LIVES)] * len(HALF_LIVES)
                + [self.project.detach(), torch.zeros(1, dim)]
            ),
            "text": torch.randn(2 * width, 4 * hidden) / width**0.5,
            "read": torch.zeros(4 * hidden, dim),
            "linear": torch.from_numpy(linear),
            "features": torch.randn(features, hidden) / features**0.5,
            "matches": torch.randn(HEADS, hidden) / HEADS**0.5,
            "shift": torch.zeros(hidden),
            "out": torch.zeros(hidden),
        }
        self.layers = nn.ParameterDict({name: nn.Parameter(start[name]) for name in WEIGHTS})

    def keep_line(self) -> None:
        """Learn only what request and profile add, through what they match in items; the rest stays as it starts."""
        for name, value in self.layers.items():
            value.requires_grad_(name in ("text", "read"))
        self.bias.requires_grad_(False)

    def scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(rows,) of the candidates of a batch."""
        codes = batch["codes"]
        own = functional.dropout(self.own[codes], DROPOUT, self.training)
        tokens = self.items[codes] @ self.project + own
        found: Tensor = forward(
            dict(self.layers.items()),
            batch["past"],
            batch["text"],
            batch["own"],
            tokens,
            self.bias[codes],
            batch["features"],
        )
        return found

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The cross-entropy between the teacher's softmax and the student's, list by list."""
        target, found = (self.table(x, batch) for x in (batch["scores"] / self.temperature, self.scores(batch)))
        share = target.softmax(dim=1)
        return -(share * found.log_softmax(dim=1).masked_fill(share == 0, 0)).sum(dim=1).mean()

    def table(self, values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """(lists, rows of the longest) of values by row; minus infinity where a list is shorter."""
        own, place = batch["own"], batch["place"]
        table = values.new_full((int(own.max()) + 1, int(place.max()) + 1), -torch.inf)
        return table.index_put((own, place), values)

    def weights(self) -> dict[str, Floats]:
        """What the judge needs."""
        with torch.inference_mode():
            found = dict(self.layers.items())
            found |= {"tokens": self.items @ self.project + self.own, "bias": self.bias}
            return {name: np.array(value.detach().numpy()) for name, value in found.items()}


def _learn(
    config: StudentConfig, material: Material, items: Floats, school: School, seed: int
) -> tuple[Pupil, dict[str, Any]]:
    """Train, and say how well the teacher's first is found in lists that were held out."""
    order = np.random.default_rng(seed).permutation(len(material.lists))
    held, learned = np.split(order, [max(1, round(config.heldout * len(order)))])
    linear, exact = material.line(learned)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pupil = Pupil(items, material.text.shape[1] // 2, linear, config, alike=exact < EXACT)
    if exact >= EXACT:
        pupil.keep_line()

    def exercises(epoch: int) -> Exercises:
        return Exercises(material, learned, config.batch, np.random.default_rng((seed, epoch)))

    schedule = Schedule(rate=config.rate, weight_decay=config.weight_decay, finish=config.epochs)
    told = (material.past, material.text, material.features, items)
    key = fingerprint(config, seed, material.codes, material.scores, *told)
    with workplace(school.settings, key) as folder:
        # On the CPU: it is small.
        train(pupil, exercises, None, schedule, seed=seed, device="cpu", folder=folder / "student", title="student")
    test = material.batch(held)
    with torch.inference_mode():
        scores = pupil.table(pupil.scores(test).float(), test)
        best = scores[torch.arange(len(held)), torch.from_numpy(material.first[held])][:, None]
    found = ndcg(pl.Series((1.0 + (scores > best).sum(dim=1)).tolist()), 10)
    report = {"lists": len(material.lists), "explained": exact, "teachers_first_ndcg@10": float(found.mean())}
    for kind, some in (("plain", material.plain[held]), ("told", ~material.plain[held])):
        if some.any():
            report[f"{kind}_teachers_first_ndcg@10"] = float(found[some].mean())
    return pupil, report
