"""Text to unit vectors by a BERT-like sentence encoder: the mean of the last layer over the text's tokens, normalised.

This is what sentence-transformers computes for all-MiniLM-L6-v2 (Reimers and Gurevych, EMNLP 2019), without it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from recsys.errors import ModelError, WeightsError
from recsys.lm.device import first_line, pick_device, quiet_loading
from recsys.lm.memory import Room
from recsys.lm.weights import Weights
from recsys.protocols import Floats, Ints
from recsys.settings import Settings

_BATCH = 32
_QUIET_UP_TO = 1000


@dataclass(frozen=True)
class LocalEncoder:
    """A sentence encoder in memory; see `load`. Implements `protocols.TextEncoder`.

    max_tokens : longer texts lose their end, as in the published model
    room       : texts that memory reaches for at once
    """

    model: Any
    tokenizer: Any
    model_id: str
    max_tokens: int
    room: Room = field(default_factory=Room, repr=False, compare=False)

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
        vectors = np.zeros((len(texts), int(self.model.config.hidden_size)), dtype=np.float32)
        for places, states, mask in self._read(texts, self.max_tokens):
            inside = mask[:, :, None].to(states.dtype)
            means = (states * inside).sum(1) / inside.sum(1)
            vectors[places] = (means / means.norm(dim=1, keepdim=True).clamp_min(1e-12)).cpu().numpy()
        return vectors

    def states(self, texts: Sequence[str], max_tokens: int) -> tuple[Floats, Ints]:
        """(tokens, dim) float32, the last layer of each text's tokens, text after text; and (len(texts) + 1,) where
        each text begins. The batch that a text is in changes it by less than 1e-4.

        Errors: `ModelError` when the model fails.
        """
        found: list[Floats] = [np.zeros((0, int(self.model.config.hidden_size)), dtype=np.float32)] * len(texts)
        for places, states, mask in self._read(texts, min(max_tokens, self.max_tokens)):
            for place, row, inside in zip(places, states, mask.bool(), strict=True):
                found[place] = row[inside].cpu().numpy()
        lengths = np.array([len(rows) for rows in found], dtype=np.int64)
        tokens = np.concatenate(found) if found else np.zeros((0, int(self.model.config.hidden_size)), dtype=np.float32)
        return tokens, np.concatenate([[0], np.cumsum(lengths)])

    def _read(self, texts: Sequence[str], max_tokens: int) -> Iterator[tuple[list[int], Any, Any]]:
        """For some texts of like length at a time: their places, the last layer's states, and which are no padding."""
        import torch

        coded = self.tokenizer(list(texts), truncation=True, max_length=max_tokens).input_ids if texts else []
        order = sorted(range(len(coded)), key=lambda i: len(coded[i]))

        def states(at: int, size: int) -> tuple[list[int], Any, Any]:
            batch = order[at : at + size]
            padded = self.tokenizer.pad({"input_ids": [coded[i] for i in batch]}, return_tensors="pt")
            with torch.inference_mode():
                found = self.model(**padded.to(self.model.device)).last_hidden_state
            return batch, found, padded["attention_mask"]

        with tqdm(total=len(coded), desc="embed", unit="text", disable=len(coded) <= _QUIET_UP_TO or None) as bar:
            at = 0
            while at < len(order):
                try:
                    batch, found, mask = self.room.run(
                        partial(states, at), min(_BATCH, len(order) - at), model_id=self.model_id, what="texts"
                    )
                except (RuntimeError, IndexError) as error:
                    raise ModelError(f"{self.model_id}: {first_line(error)}") from error
                yield batch, found, mask
                at += len(batch)
                bar.update(len(batch))


def _json(weights: Weights, name: str) -> dict[str, Any]:
    """A JSON object in the weights' folder; empty where there is no such file."""
    file = weights.path / name
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise WeightsError(f"{file}: is not valid JSON ({error})") from error
    return dict(found)
