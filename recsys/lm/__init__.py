"""The one seam to language models: local, remote, recorded or scripted; where their weights come from; text vectors.

`LMConfig` and `EncoderConfig` say which model (a spec's business); `Settings` say where it runs and where it lies.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.errors import SpecError
from recsys.lm.device import Dtype, auto_dtype, pick_device
from recsys.lm.encoder import LocalEncoder
from recsys.lm.local import LocalLM
from recsys.lm.remote import RemoteLM
from recsys.lm.replay import ReplayLM
from recsys.lm.weights import resolve
from recsys.protocols import LanguageModel
from recsys.settings import Settings

__all__ = [
    "EncoderConfig",
    "LMConfig",
    "LocalEncoder",
    "LocalLM",
    "RemoteLM",
    "ReplayLM",
    "load_encoder",
    "load_lm",
    "resolved",
]


class LMConfig(BaseModel):
    """Which language model, if any.

    kind   : "local" (transformers), "remote" (the OpenAI-compatible server at `settings.lm_url`), or "none"
    model  : registered weights, a folder or a hub id; for "remote" the server's name of the model
    dtype  : what a local model computes in, and so a part of its `model_id`. "auto" is the fastest right choice of
             the machine at hand (CUDA: bf16, or fp16 where it lacks that; a CPU that computes in bf16: bf16; else
             fp32), so it names different models on different machines: `resolved` pins it, and a pinned dtype is
             computed everywhere, slower where the device must emulate it
    record : keep every answer in `settings.cache_dir`/replay and take those that are there without asking the model
             again: an interrupted run resumes, a paid one is paid once. Processes may share the store; it only
             grows, and its folder may be deleted at any time
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local", "remote", "none"] = "local"
    model: str = Field(default="smollm2-135m-instruct", min_length=1)
    dtype: Dtype = "auto"
    record: bool = False


class EncoderConfig(BaseModel):
    """Which text encoder. model: registered weights, a folder or a hub id of a BERT-like sentence encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="all-minilm-l6-v2", min_length=1)


def resolved(config: LMConfig, settings: Settings) -> LMConfig:
    """The config with the dtype that "auto" means on this machine; any other config as it is. Loads no model.

    What is fitted with the result finds the same `model_id` on every machine.

    Errors: `SpecError` for a device that is not there.
    """
    if config.kind != "local" or config.dtype != "auto":
        return config
    return config.model_copy(update={"dtype": auto_dtype(pick_device(settings.device))})


def load_lm(config: LMConfig, settings: Settings) -> LanguageModel | None:
    """The model that the config names, ready to use; None for kind "none".

    Errors: `WeightsError` when its weights are not on this machine; `SpecError` for "remote" without an address, a
    key that cannot be sent, or a device that is not there.
    """
    if config.kind == "none":
        return None
    lm = _remote(config, settings) if config.kind == "remote" else _local(config, settings)
    return ReplayLM(lm, settings.cache_dir / "replay") if config.record else lm


def _remote(config: LMConfig, settings: Settings) -> LanguageModel:
    if settings.lm_url is None:
        raise SpecError("lm.kind = 'remote' needs the server's address: set RECSYS_LM_URL")
    return RemoteLM.connect(config.model, settings.lm_url, settings)


def _local(config: LMConfig, settings: Settings) -> LanguageModel:
    weights = resolve(config.model, settings)
    return LocalLM.load(weights, settings, dtype=resolved(config, settings).dtype)


def load_encoder(config: EncoderConfig, settings: Settings) -> LocalEncoder:
    """The encoder that the config names. Errors: `WeightsError` when its weights are not on this machine."""
    return LocalEncoder.load(resolve(config.model, settings), settings)
