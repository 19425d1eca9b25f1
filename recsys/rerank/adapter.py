"""A LoRA adapter: what a language model learned for ranking, apart from the model, which stays as it is.

Saved as PEFT saves it (`adapter_config.json`, `adapter_model.safetensors`), so that any tool that knows PEFT reads it;
soft tokens, where some were learned with it, beside it.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from recsys.errors import BundleError, SpecError
from recsys.lm.local import LocalLM
from recsys.lm.replay import ReplayLM
from recsys.protocols import LanguageModel
from recsys.rerank.fusion import Ints
from recsys.rerank.judge import readable, same_model
from recsys.rerank.soft import SoftTokens
from recsys.tables import Queries

ENOUGH = 20  # lists from which on there is something to learn, and to tell by whether anything was learned
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class AdapterConfig(BaseModel):
    """How a language model is tuned to put candidates in order: LoRA (Hu et al., ICLR 2022), which adds to each chosen
    matrix W the product (alpha / rank) B A of two thin ones, trained with a listwise softmax.

    rank, alpha : of LoRA
    modules     : the linear layers that get one, by the last part of their name
    lists       : at most so many of tune's lists are learned from; never more than half of the users' lists, the
                  others are the fusion's
    heldout     : share of these that is not learned from and says when to stop
    negatives   : wrong candidates of a list that compete with its answer in a step, drawn anew each epoch
    temperature : of the softmax, in nats per token
    rate        : learning rate of AdamW, reached after `warmup` steps
    batch       : lists in a step; they pass one after the other (gradient accumulation), so memory holds one
    patience    : epochs without a better held-out NDCG@10 after which it stops; after `epochs` at the latest
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    modules: tuple[str, ...] = Field(default=LINEAR, min_length=1)
    lists: int = Field(default=1000, ge=ENOUGH)
    heldout: float = Field(default=0.2, gt=0, le=0.5)
    negatives: int = Field(default=15, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    rate: float = Field(default=2e-4, gt=0)
    warmup: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    batch: int = Field(default=8, ge=1)
    epochs: int = Field(default=5, ge=1)
    patience: int = Field(default=2, ge=1)


@dataclass(frozen=True)
class Lesson:
    """A list to learn from: a prompt, the answer that is right after it, and others, in a fixed order, that are not.
    plain : the prompt of a model that has no soft tokens, where that is another
    """

    prompt: str
    right: str
    wrong: tuple[str, ...]
    plain: str | None = None


@dataclass(frozen=True)
class Adapter:
    """What was learned. A value: `on` makes a language model of it.

    base    : the `model_id` of the language model that it was trained on
    weights : the tensors, as the bytes of a safetensors file
    soft    : soft tokens that were learned with it
    """

    base: str
    rank: int
    alpha: int
    modules: tuple[str, ...]
    weights: bytes = field(repr=False)
    soft: SoftTokens | None = field(default=None, repr=False)

    @property
    def model_id(self) -> str:
        """Of the adapted language model: the base's, and the hash of what was learned."""
        digest = hashlib.sha256(json.dumps(self.facts).encode() + self.weights)
        if self.soft is not None:
            for array in (self.soft.vectors, self.soft.weight, self.soft.bias):
                digest.update(np.ascontiguousarray(array).tobytes())
        return f"{self.base}+lora-{digest.hexdigest()[:8]}"

    @property
    def facts(self) -> dict[str, Any]:
        """PEFT's config."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": sorted(self.modules),
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
        }

    def on(self, lm: LanguageModel) -> LanguageModel:
        """The language model with what was learned; `lm` stays what it is, and both share its weights.

        Errors: `BundleError` where it was trained on another model, or does not fit.
        """
        from recsys.rerank.lora import adapted

        if not same_model(lm.model_id, self.base):
            raise BundleError(
                f"the adapter of the reranker was trained on the language model '{self.base}', but '{lm.model_id}' "
                "is given: name that one in [lm], or refit"
            )
        return replace(lm, lm=self.on(lm.lm)) if isinstance(lm, ReplayLM) else adapted(local(lm), self)

    def save(self, folder: Path) -> None:
        """Write the new folder."""
        folder.mkdir()
        (folder / _CONFIG).write_text(json.dumps(self.facts, indent=1) + "\n", "utf-8")
        (folder / _WEIGHTS).write_bytes(self.weights)
        if self.soft is not None:
            self.soft.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder. Errors: `BundleError` where it is damaged."""
        with readable(folder, "a LoRA adapter"):
            facts = json.loads((folder / _CONFIG).read_text("utf-8"))
            modules = tuple(str(name) for name in facts["target_modules"])
            base = str(facts["base_model_name_or_path"])
            weights = (folder / _WEIGHTS).read_bytes()
            return cls(base, int(facts["r"]), int(facts["lora_alpha"]), modules, weights, SoftTokens.load(folder))


def local(lm: LanguageModel) -> LocalLM:
    """The local language model itself. Errors: `SpecError` where it is no such model."""
    found = lm.lm if isinstance(lm, ReplayLM) else lm
    if not isinstance(found, LocalLM):
        raise SpecError(f"reranker.adapter: {lm.model_id} cannot be trained here: it needs lm.kind = 'local'")
    return found


def chosen(queries: Queries, asked: Ints, most: int, seed: int) -> npt.NDArray[np.bool_]:
    """(queries,): whether the adapter learns from each; the fusion learns from the others. Whole users, by seed: at
    most half of them, and no more than it takes to have `most` lists.

    asked : (lists,) the query of each list that holds its answer
    """
    names = pl.coalesce(pl.col("user_id").cast(pl.String), pl.concat_str(pl.lit("query "), pl.col("query_id")))
    users = queries.frame.select(names.rank("dense") - 1).to_series().to_numpy().astype(np.int64)
    order = np.random.default_rng(seed).permutation(int(users.max(initial=-1)) + 1)
    lists = np.bincount(users[asked], minlength=len(order))[order]
    taken = min(len(order) // 2, int(np.searchsorted(np.cumsum(lists), most)) + 1)
    return np.isin(users, order[:taken])
