"""Text to unit vectors by a BERT-like sentence encoder: the mean of the last layer over the text's tokens, normalised.

This is what sentence-transformers computes for all-MiniLM-L6-v2 (Reimers and Gurevych, EMNLP 2019), without it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from recsys.errors import ModelError, WeightsError
from recsys.lm.device import first_line, pick_device, quiet_loading
from recsys.lm.weights import Weights
from recsys.protocols import Floats
from recsys.settings import Settings

_BATCH = 32
_QUIET_UP_TO = 1000


@dataclass(frozen=True)
class LocalEncoder:
    """A sentence encoder in memory; see `load`. Implements `protocols.TextEncoder`.

    max_tokens : longer texts lose their end, as in the published model
    """

    model: Any
    tokenizer: Any
    model_id: str
    max_tokens: int

    @classmethod
    def load(cls, weights: Weights, settings: Settings) -> "LocalEncoder":
        """Read the encoder in fp32. Sets torch's thread count for the process to `settings.threads`.

        Errors: `WeightsError` when the folder holds no encoder, or one that pools in another way than by the mean.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(settings.threads)
        pooling = _json(weights, "1_Pooling/config.json")
        if pooling and not pooling.get("pooling_mode_mean_tokens", False):
            raise WeightsError(f"{weights.path}/1_Pooling/config.json: only mean pooling is supported")
        device = pick_device(settings.device)
        try:
            with quiet_loading():
                tokenizer = AutoTokenizer.from_pretrained(weights.path, local_files_only=True)
                model = AutoModel.from_pretrained(
                    weights.path, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
        except Exception as error:  # transformers raises many kinds; whatever it is, the folder is what is wrong
            raise WeightsError(
                f"{weights.path}: is not a text encoder that can be loaded: {first_line(error)}"
            ) from error
        limit = _json(weights, "sentence_bert_config.json").get("max_seq_length")
        longest = int(limit) if limit else int(model.config.max_position_embeddings)
        return cls(model.eval().requires_grad_(False).to(device), tokenizer, weights.short_id, longest)

    def embed(self, texts: Sequence[str]) -> Floats:
        """(len(texts), dim) float32, rows of unit length. The batch that a text is in changes it by less than 1e-5.

        Errors: `ModelError` when the model fails.
        """
        import torch

        coded = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens).input_ids if texts else []
        vectors = np.zeros((len(coded), int(self.model.config.hidden_size)), dtype=np.float32)
        order = sorted(range(len(coded)), key=lambda i: len(coded[i]))
        with tqdm(total=len(coded), desc="embed", unit="text", disable=len(coded) <= _QUIET_UP_TO or None) as bar:
            for at in range(0, len(order), _BATCH):
                batch = order[at : at + _BATCH]
                try:
                    with torch.inference_mode():
                        vectors[batch] = self._embed_batch([coded[i] for i in batch])
                except (RuntimeError, IndexError) as error:
                    raise ModelError(f"{self.model_id}: {first_line(error)}") from error
                bar.update(len(batch))
        return vectors

    def _embed_batch(self, coded: list[list[int]]) -> Floats:
        import torch

        padded = self.tokenizer.pad({"input_ids": coded}, return_tensors="pt").to(self.model.device)
        states = self.model(**padded).last_hidden_state
        mask = padded["attention_mask"][:, :, None].to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1)
        vectors: Floats = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
        return vectors


def _json(weights: Weights, name: str) -> dict[str, Any]:
    """A JSON object in the weights' folder; empty where there is no such file."""
    file = weights.path / name
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise WeightsError(f"{file}: is not valid JSON ({error})") from error
    return dict(found)
