"""The one seam to language models: local, remote, recorded or scripted; where their weights come from; text vectors.

`LMConfig` and `EncoderConfig` say which model (a spec's business); `Settings` say where it runs and where it lies.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.errors import SpecError
from recsys.lm.device import Dtype
from recsys.lm.encoder import LocalEncoder
from recsys.lm.local import LocalLM
from recsys.lm.remote import RemoteLM
from recsys.lm.weights import resolve
from recsys.protocols import LanguageModel
from recsys.settings import Settings

__all__ = ["EncoderConfig", "LMConfig", "LocalEncoder", "LocalLM", "RemoteLM", "load_encoder", "load_lm"]


class LMConfig(BaseModel):
    """Which language model, if any.

    kind  : "local" (transformers), "remote" (the OpenAI-compatible server at `settings.lm_url`), or "none"
    model : registered weights, a folder or a hub id; for "remote" the server's name of the model
    dtype : of a local model; "auto" is bf16 where the device computes in it
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local", "remote", "none"] = "local"
    model: str = Field(default="smollm2-135m-instruct", min_length=1)
    dtype: Dtype = "auto"


class EncoderConfig(BaseModel):
    """Which text encoder. model: registered weights, a folder or a hub id of a BERT-like sentence encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(default="all-minilm-l6-v2", min_length=1)


def load_lm(config: LMConfig, settings: Settings) -> LanguageModel | None:
    """The model that the config names, ready to use; None for kind "none".

    Errors: `WeightsError` when its weights are not on this machine; `SpecError` for "remote" without an address.
    """
    if config.kind == "none":
        return None
    if config.kind == "remote":
        if settings.lm_url is None:
            raise SpecError("lm.kind = 'remote' needs the server's address: set RECSYS_LM_URL")
        return RemoteLM.connect(config.model, settings.lm_url, settings)
    return LocalLM.load(resolve(config.model, settings), settings, dtype=config.dtype)


def load_encoder(config: EncoderConfig, settings: Settings) -> LocalEncoder:
    """The encoder that the config names. Errors: `WeightsError` when its weights are not on this machine."""
    return LocalEncoder.load(resolve(config.model, settings), settings)
