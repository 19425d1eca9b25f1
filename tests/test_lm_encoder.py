"""Text to vectors by the real encoder, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import WeightsError
from recsys.lm import EncoderConfig, LocalEncoder, load_encoder
from recsys.lm.weights import resolve
from recsys.protocols import TextEncoder
from recsys.settings import Settings

TEXTS = ["Toy Story. genre: animation", "A funny cartoon about toys", "Das Boot. genre: war", "x", "", "word " * 600]


@pytest.mark.weights
def test_rows_are_unit_vectors_in_the_order_of_the_texts(encoder: Any) -> None:
    assert isinstance(encoder, TextEncoder)
    vectors = encoder.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


@pytest.mark.weights
def test_the_batch_that_a_text_is_in_changes_nothing(encoder: Any) -> None:
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(encoder.embed(TEXTS[::-1])[::-1] - together).max() < 1e-5
    many = encoder.embed([f"filler {i} " * (i % 40) for i in range(70)] + TEXTS)
    assert np.abs(many[70:] - together).max() < 1e-5


@pytest.mark.weights
def test_a_vector_is_the_masked_mean_of_the_last_layer(encoder: Any, weights_settings: Settings) -> None:
    """The published recipe (mean pooling, then normalise, 256 tokens at most), by hand from the files."""
    import torch
    from transformers import BertModel, BertTokenizerFast

    folder = resolve("all-minilm-l6-v2", weights_settings).path
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    model = BertModel.from_pretrained(folder).eval()
    for text in (TEXTS[0], TEXTS[-1]):
        ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            mean = model(**ids).last_hidden_state[0].mean(0)
        by_hand = (mean / mean.norm()).numpy()
        assert np.abs(encoder.embed([text])[0] - by_hand).max() < 1e-5


@pytest.mark.weights
def test_the_published_similarities_come_out(encoder: Any) -> None:
    """Figures of the model card's usage example for sentence-transformers 5."""
    a, b, c = encoder.embed(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    assert [float(a @ b), float(a @ c), float(b @ c)] == pytest.approx([0.6660, 0.1046, 0.1411], abs=1e-3)


@pytest.mark.weights
def test_no_texts_no_vectors_and_the_id_names_the_weights(encoder: Any) -> None:
    assert encoder.embed([]).shape == (0, 384)
    assert encoder.model_id == "all-minilm-l6-v2@53aa5117"


def test_without_the_weights_the_error_says_how_to_fetch_them(settings: Settings) -> None:
    with pytest.raises(WeightsError, match="run `recsys weights fetch all-minilm-l6-v2`"):
        load_encoder(EncoderConfig(), settings)


def test_other_pooling_than_the_mean_and_broken_folders_are_refused(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    weights = resolve(str(tmp_path), settings)
    with pytest.raises(WeightsError, match="is not a text encoder that can be loaded"):
        LocalEncoder.load(weights, settings)
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    with pytest.raises(WeightsError, match=r"1_Pooling/config\.json: only mean pooling is supported"):
        LocalEncoder.load(weights, settings)
    pooling.write_text("{")
    with pytest.raises(WeightsError, match=r"1_Pooling/config\.json: is not valid JSON"):
        LocalEncoder.load(weights, settings)
