"""The first layers of a language model, to read a history of item tokens in place of blocks of the reader's own.

Its words are left out: item tokens go in where word vectors would (as in LLaRA, Liao et al., SIGIR 2024, and E4SRec,
Li et al., 2023). What was learned belongs to the judge; weights that stayed as they were are not copied into its
folder, so the language model must be there whenever the judge is loaded, and be the same one.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recsys.errors import BundleError, SpecError, WeightsError
from recsys.lm.device import first_line, quiet_loading
from recsys.lm.weights import Weights, same_weights

if TYPE_CHECKING:
    from torch import nn

WeightsSource = Callable[[str], Weights]


class BackboneConfig(BaseModel):
    """Which language model reads the history, and what of it is learned.

    model   : registered weights, a folder or a hub id of a causal language model
    layers  : so many of its first layers
    weights : "frozen": as they are; "lora": frozen, with a low-rank addition to each linear layer (Hu et al., ICLR
              2022) that is learned; "top": the last `top` of these layers are learned; "all": all are; "random": all
              are, and start at random: the same shape without what the language model knows
    rank    : of the additions; top : see above
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="smollm2-135m-instruct", min_length=1)
    layers: int = Field(default=4, ge=1)
    weights: Literal["frozen", "lora", "top", "all", "random"] = "lora"
    rank: int = Field(default=8, ge=1)
    top: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _top_within(self) -> Self:
        if self.weights == "top" and self.top > self.layers:
            raise ValueError(f"top = {self.top} is more than layers = {self.layers}")
        return self


def no_weights(name: str) -> Weights:
    """For where there are none. Errors: `WeightsError`."""
    raise WeightsError(f"weights '{name}' are needed, but nothing here says where weights lie")


def same_base(where: object, fitted_with: str, weights: Weights) -> None:
    """Check that weights are those that a judge was fitted with (`Weights.short_id`), by their hash.

    Errors: `BundleError`: what was learned is worth nothing over others.
    """
    if not same_weights(fitted_with, weights.short_id):
        raise BundleError(
            f"{where}: was fitted over the language model '{fitted_with}', but '{weights.short_id}' is there: "
            "put that one back, or refit"
        )


def first_layers(config: BackboneConfig, weights: Weights, places: int) -> "nn.Module":
    """The layers, of transformers, in float32, ready to learn what the config says; random ones draw from torch's
    generator. They take `inputs_embeds` (batch, up to `places`, hidden).

    Errors: `WeightsError` for a folder that holds no model; `SpecError` for one that has fewer layers, reads fewer
    places, or lets what comes later change what it says of earlier places.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        with quiet_loading(), _no_report():
            shape = AutoConfig.from_pretrained(weights.path, local_files_only=True)
            _cut(shape, config, weights, places)
            if config.weights == "random":
                model = AutoModel.from_config(shape, dtype=torch.float32)
            else:
                model = AutoModel.from_pretrained(
                    weights.path, config=shape, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
    except SpecError:
        raise
    except Exception as error:  # transformers raises many kinds; whatever it is, the folder is what is wrong
        raise WeightsError(f"{weights.path}: is no language model that can be loaded: {first_line(error)}") from error
    model.set_input_embeddings(None)
    _refuse_foresight(model, weights)
    if config.weights in ("frozen", "lora", "top"):
        model.requires_grad_(False)
    if config.weights == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        lora = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear")
        model = inject_adapter_in_model(lora, model)
    if config.weights == "top":
        for layer in _layers(model)[-config.top :]:
            layer.requires_grad_(True)
    found: nn.Module = model
    return found


def _cut(shape: Any, config: BackboneConfig, weights: Weights, places: int) -> None:
    """Make the shape of a language model that of its first layers."""
    there = int(shape.num_hidden_layers)
    if config.layers > there:
        raise SpecError(f"reranker.backbone.layers = {config.layers}: {weights.model_id} has {there} layers")
    longest = int(getattr(shape, "max_position_embeddings", places))
    if places > longest:
        raise SpecError(f"reranker.length = {places - 1}: {weights.model_id} reads {longest - 1} items at most")
    shape.num_hidden_layers = config.layers
    if getattr(shape, "layer_types", None):
        shape.layer_types = shape.layer_types[: config.layers]


def _layers(model: Any) -> Any:
    """The layers of a model: its one list of modules."""
    from torch import nn

    return next(part for part in model.modules() if isinstance(part, nn.ModuleList))


def _refuse_foresight(model: Any, weights: Weights) -> None:
    """What a place says must not depend on what comes later; that of an encoder like BERT does."""
    import torch

    x = torch.linspace(-1, 1, 3 * int(model.config.hidden_size)).view(1, 3, -1).requires_grad_()
    first = model.eval()(inputs_embeds=x, use_cache=False).last_hidden_state[0, 0]
    (slope,) = torch.autograd.grad(first[0], x)
    if slope[0, 1:].any():  # through a causal mask exactly nothing comes
        raise SpecError(f"reranker.backbone.model = {weights.model_id}: reads backwards, too: name a causal LM")


@contextmanager
def _no_report() -> Iterator[None]:
    """transformers reports every layer that is left out; that is what was asked for."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
