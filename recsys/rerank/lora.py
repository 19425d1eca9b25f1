"""How an adapter is trained and put on: LoRA layers on a copy of the model that shares the model's weights.

The loss is the listwise softmax (ListNet with one relevant item; Cao et al., ICML 2007): cross-entropy of the answer
among some of its list's candidates, scored as the packed judge scores them, likelihood after the prompt less that after
a prompt that says nothing, both by the model in training.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from recsys.errors import BundleError, ModelError, SpecError
from recsys.lm.local import LocalLM
from recsys.lm.memory import out_of_memory
from recsys.metrics import ndcg
from recsys.networks.training import Batch, Schedule, fingerprint, train, workplace
from recsys.protocols import Ints
from recsys.rerank.adapter import Adapter, AdapterConfig, Lesson
from recsys.rerank.judge import readable
from recsys.rerank.soft import SoftTokens
from recsys.settings import Settings

log = logging.getLogger(__name__)

_AT_ONCE = 128  # titles whose prior is scored in one call
DIVERGED = "reranker.adapter: the training diverged, its numbers are not finite: lower reranker.adapter.rate"


def train_adapter(
    config: AdapterConfig,
    lessons: Sequence[Lesson],
    empty: str,
    lm: LocalLM,
    settings: Settings | None,
    soft: SoftTokens | None = None,
    *,
    seed: int,
) -> tuple[Adapter | None, dict[str, Any]]:
    """Learn to put the right answer first; and a report. None where the held-out lists are ordered no better by it.

    empty    : the prompt that says nothing of a user
    settings : say where an interrupted training leaves its state; None: nowhere
    soft     : soft tokens that the prompts hold, to be learned as well
    Errors: `SpecError` for `modules` that the model lacks, and where the training diverges; `ModelError` when the model
    fails or memory does not reach for one list.
    """
    order = np.random.default_rng(seed).permutation(len(lessons))
    held, taught = np.split(order, [max(round(config.heldout * len(lessons)), 1)])
    held_out, learned = [lessons[i] for i in held], [lessons[i] for i in taught]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = attach(lm, config, soft)
    student = worn(lm, model)
    learner = Learner(student, learned, empty, config.temperature)
    sizes = np.array([len(lesson.wrong) for lesson in learned], dtype=np.int64)
    before = quality(lm, [replace(lesson, prompt=lesson.plain or lesson.prompt) for lesson in held_out], empty)
    schedule = Schedule(
        rate=config.rate,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        epochs=config.epochs,
        patience=config.patience,
    )
    texts = "\0".join(
        [lm.model_id, empty, *(text for each in lessons for text in (each.prompt, each.right, *each.wrong))]
    )
    known = np.frombuffer(texts.encode(), dtype=np.uint8)
    key = fingerprint(config, seed, known, *([soft.vectors] if soft else []))
    with _place(settings, key) as folder:
        trained = train(
            learner,
            lambda epoch: Draws(sizes, config, np.random.default_rng((seed, epoch))),
            lambda: quality(student, held_out, empty),
            schedule,
            seed=seed,
            device=str(lm.model.device),
            folder=Path(folder) / "adapter",
            title="LoRA adapter",
        )
    found = {"lists": len(learned), "heldout": len(held_out), "before": before, **trained.report()}
    after = max(trained.qualities)
    log.info("LoRA adapter: NDCG@10 of %d held-out lists %.4f, before %.4f", len(held_out), after, before)
    if after <= before:
        log.warning("LoRA adapter: orders held-out lists no better than the model without it: it is left out")
        return None, {**found, "kept": False}
    tensors = {name: value.cpu().contiguous() for name, value in _tensors(model).items()}
    if soft is not None:
        learnt = model.get_base_model().get_input_embeddings().projector
        weight, bias = (value.detach().float().cpu().numpy() for value in (learnt.weight, learnt.bias))
        soft = replace(soft, weight=weight, bias=bias)
    adapter = Adapter(lm.model_id, config.rank, config.alpha, config.modules, save(tensors), soft)
    return adapter, {**found, "kept": True}


def attach(lm: LocalLM, config: AdapterConfig | Adapter, soft: SoftTokens | None = None) -> Any:
    """PEFT's model with new LoRA layers, around a copy that shares every weight with `lm.model`; with `soft`, its token
    embeddings go on with those.

    Errors: `SpecError` naming a module that the model lacks.
    """
    shared = {id(tensor): tensor for tensor in (*lm.model.parameters(), *lm.model.buffers())}
    own = deepcopy(lm.model, shared)
    there = {name.rpartition(".")[2] for name, module in own.named_modules() if isinstance(module, nn.Linear)}
    for name in config.modules:
        if name not in there:
            known = ", ".join(sorted(there))
            raise SpecError(f"reranker.adapter.modules: {lm.model_id} has no linear layer '{name}' (it has: {known})")
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.modules), task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for what that is about to rename.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = get_peft_model(own, lora)
    if soft is not None:
        own.set_input_embeddings(SoftEmbedding(own.get_input_embeddings(), soft))
    return model


def worn(lm: LocalLM, model: Any) -> LocalLM:
    """The language model with what `attach` made of it."""
    base = model.get_base_model()
    tokens = base.get_input_embeddings()
    return replace(lm, model=base, soft=tokens.size if isinstance(tokens, SoftEmbedding) else None)


class SoftEmbedding(nn.Module):
    """Token embeddings whose ids go on, from `size`, with soft tokens: projected vectors, as large as tokens are."""

    def __init__(self, tokens: nn.Embedding, soft: SoftTokens) -> None:
        super().__init__()
        self.tokens, self.size = tokens, tokens.num_embeddings
        where = tokens.weight.device
        self.vectors: Tensor
        self.register_buffer("vectors", torch.tensor(soft.vectors, device=where), persistent=False)
        self.projector = nn.Linear(soft.vectors.shape[1], tokens.embedding_dim, device=where)
        if soft.weight is None or soft.bias is None:
            nn.init.normal_(self.projector.weight, std=float(tokens.weight.float().std()))
            nn.init.zeros_(self.projector.bias)
        else:
            found = {"weight": torch.tensor(soft.weight), "bias": torch.tensor(soft.bias)}
            self.projector.load_state_dict(found)

    @property
    def weight(self) -> Tensor:
        """Of the tokens, for who ties the output to it."""
        return self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(..., width) of ids (...)."""
        own = ids >= self.size
        found: Tensor = self.tokens(ids.masked_fill(own, 0))
        projected = self.projector(self.vectors[ids[own] - self.size].to(self.projector.weight.dtype))
        return found.index_put((own,), projected.to(found.dtype))


def adapted(lm: LocalLM, adapter: Adapter) -> LocalLM:
    """A language model with what was learned, in the dtype that it computes in. Errors: `BundleError`."""
    with readable(Path(adapter.model_id), "a LoRA adapter"):
        tensors = load(adapter.weights)
        model = attach(lm, adapter, adapter.soft)
    if {k: v.shape for k, v in _tensors(model).items()} != {k: v.shape for k, v in tensors.items()}:
        raise BundleError(f"{adapter.model_id}: the adapter's weights do not fit the model: refit")
    set_peft_model_state_dict(model, tensors)
    for learned in (p for p in model.parameters() if p.requires_grad):  # the others are not ours to change
        learned.data = learned.data.to(lm.model.dtype)
        learned.requires_grad_(False)
    model.eval()
    return replace(worn(lm, model), model_id=adapter.model_id)


def quality(lm: LocalLM, lessons: Sequence[Lesson], empty: str) -> float:
    """Mean NDCG@10 of the right answers among all of their lists. Errors: `SpecError` for numbers that are not."""
    titles = sorted({text for lesson in lessons for text in (lesson.right, *lesson.wrong)})
    priors: dict[str, float] = {}
    for at in range(0, len(titles), _AT_ONCE):
        (scores,) = lm.score([empty], [titles[at : at + _AT_ONCE]])
        priors.update({text: score.mean for text, score in zip(titles[at : at + _AT_ONCE], scores, strict=True)})
    places = []
    for lesson in tqdm(lessons, desc="LM reads held-out lists", unit="list", leave=None, disable=None):
        answers = [lesson.right, *lesson.wrong]
        (scores,) = lm.score([lesson.prompt], [answers])
        found = np.array([score.mean - priors[text] for score, text in zip(scores, answers, strict=True)])
        if not np.isfinite(found).all():
            raise SpecError(DIVERGED)
        places.append(1 + (found > found[0]).sum() + ((found == found[0]).sum() - 1) / 2)
    return float(ndcg(np.array(places), 10).mean())


class Learner(nn.Module):
    """What is learned, as a network whose `forward` is its loss; the model around it is no part of its state."""

    def __init__(self, lm: LocalLM, lessons: Sequence[Lesson], empty: str, temperature: float) -> None:
        super().__init__()
        self.learned = nn.ParameterList(p for p in lm.model.parameters() if p.requires_grad)
        self.lm, self.lessons, self.empty, self.temperature = lm, lessons, empty, temperature

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of some lists. Each passes alone and is let go of, so memory holds one at a time: the result
        has the value of the mean, and its gradients."""
        lists, wrong = batch["lists"].tolist(), batch["wrong"].tolist()
        total, parameters = 0.0, list(self.learned)
        sums = [torch.zeros_like(p) for p in parameters]
        for lesson, drawn in zip((self.lessons[i] for i in lists), wrong, strict=True):
            loss = self.loss(lesson, [lesson.wrong[j] for j in drawn if j >= 0]) / len(lists)
            with torch.autocast(self.lm.model.device.type, enabled=False):
                for kept, slope in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if slope is not None:
                        kept += slope
            total += float(loss.detach())
        bearer = torch.stack([(p * slope).sum() for p, slope in zip(parameters, sums, strict=True)]).sum()
        return bearer - bearer.detach() + total

    def loss(self, lesson: Lesson, wrong: Sequence[str]) -> Tensor:
        """Cross-entropy of the right answer. Errors: `ModelError` where memory does not reach."""
        answers = [lesson.right, *wrong]
        try:
            scores = self.lm.likelihoods(lesson.prompt, answers) - self.lm.likelihoods(self.empty, answers)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ModelError(
                f"{self.lm.model_id}: out of memory in training with {len(answers)} candidates of one list: lower "
                "reranker.adapter.negatives, reranker.recent or reranker.adapter.rank"
            ) from error
        return functional.cross_entropy(scores[None] / self.temperature, torch.zeros(1, dtype=torch.long))


class Draws:
    """One epoch's batches: {"lists": (batch,), "wrong": (batch, negatives)}, which lists, and which wrong answers
    of each; -1 where a list has no more."""

    def __init__(self, sizes: Ints, config: AdapterConfig, rng: np.random.Generator) -> None:
        lots = rng.random((len(sizes), int(sizes.max())))
        lots[np.arange(lots.shape[1]) >= sizes[:, None]] = np.inf
        drawn = np.argsort(lots, axis=1)[:, : config.negatives]
        self._wrong = np.where(np.isinf(np.take_along_axis(lots, drawn, axis=1)), -1, drawn)
        self._order = rng.permutation(len(sizes))
        self._starts = range(0, len(sizes), config.batch)
        self._batch = config.batch

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        for start in self._starts:
            lists = self._order[start : start + self._batch]
            yield {"lists": torch.from_numpy(lists), "wrong": torch.from_numpy(self._wrong[lists])}


def _tensors(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _place(settings: Settings | None, key: str) -> AbstractContextManager[Any]:
    return TemporaryDirectory() if settings is None else workplace(settings, key)
