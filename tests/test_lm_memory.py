"""Where memory runs out, half as many go through at once, the result is the same, and the log says so once."""

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_lm_local import ANSWERS, PROMPT, make_tiny_model

from recsys.errors import ModelError
from recsys.lm import LMConfig, LocalEncoder, LocalLM, load_lm
from recsys.lm.memory import Room, out_of_memory
from recsys.settings import Settings

ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "68719476736 bytes. Error code 12 (Cannot allocate memory)"
)
PROMPTS = [f"number {i} " * (1 + i % 3) for i in range(11)]


class Tight:
    """Another model, with memory for so many tokens (or, writing, rows) at once."""

    def __init__(self, model: Any, most: int, error: Exception = ON_GPU) -> None:
        self.model, self.most, self.error, self.failures = model, most, error, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        self._needs(inputs["input_ids"].numel())
        return self.model(**inputs)

    def generate(self, rows: Any, **others: Any) -> Any:
        self._needs(len(rows))
        return self.model.generate(rows, **others)

    def _needs(self, size: int) -> None:
        if size > self.most:
            self.failures += 1
            raise self.error


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LocalLM:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")
    found = load_lm(LMConfig(model=str(folder), dtype="float32"), Settings(device="cpu", threads=1))
    assert isinstance(found, LocalLM)
    return found


def short_of_memory(lm: Any, most: int, error: Exception = ON_GPU) -> Any:
    """The same, loaded anew on a machine that has less."""
    rooms = {f.name: Room() for f in dataclasses.fields(lm) if f.type is Room}
    return dataclasses.replace(lm, model=Tight(lm.model, most, error), **rooms)


def encoder() -> LocalEncoder:
    """One whose state of a token is the token's own number, twice."""

    class Model:
        config, device = SimpleNamespace(hidden_size=2), "cpu"

        def __call__(self, input_ids: Any, attention_mask: Any) -> Any:
            return SimpleNamespace(last_hidden_state=input_ids[:, :, None].float().expand(-1, -1, 2))

    class Padded(dict[str, Any]):
        def to(self, _: str) -> "Padded":
            return self

    class Tokenizer:
        def __call__(self, texts: list[str], **_: Any) -> Any:
            return SimpleNamespace(input_ids=[[len(word) for word in text.split()] for text in texts])

        def pad(self, coded: Any, **_: Any) -> Padded:
            rows = [torch.tensor(ids) for ids in coded["input_ids"]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            return Padded(input_ids=ids, attention_mask=(ids > 0).long())

    return LocalEncoder(Model(), Tokenizer(), "test/lengths", 100)


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU, MemoryError()])
def test_too_many_answers_are_packed_into_smaller_passes(
    lm: LocalLM, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    tight = short_of_memory(lm, 115, error)  # the prompt and all of the answers are 140 tokens
    with caplog.at_level(logging.WARNING):
        found = tight.score([PROMPT] * 3, [ANSWERS] * 3)
    for row, whole in zip(found, lm.score([PROMPT] * 3, [ANSWERS] * 3), strict=True):
        assert [s.tokens for s in row] == [s.tokens for s in whole]
        assert [s.logprob for s in row] == pytest.approx([s.logprob for s in whole], abs=1e-4)
    said = [record.message for record in caplog.records]
    assert said == [f"{lm.model_id}: out of memory with 99 answer tokens at once: going on with 60"]
    assert tight.model.failures == 1  # the later prompts do not try again what failed


def test_fewer_texts_are_written_at_once(lm: LocalLM, caplog: pytest.LogCaptureFixture) -> None:
    tight = short_of_memory(lm, 3)
    with caplog.at_level(logging.WARNING):
        texts = tight.generate(PROMPTS, max_tokens=6)
    assert texts == lm.generate(PROMPTS, max_tokens=6)
    assert [record.message for record in caplog.records] == [
        f"{lm.model_id}: out of memory with 8 texts at once: going on with 2"
    ]
    assert tight.model.failures == 2


def test_fewer_texts_are_embedded_at_once(caplog: pytest.LogCaptureFixture) -> None:
    texts = [" ".join("x" * (1 + (i + j) % 7) for j in range(1 + i % 5)) for i in range(50)]
    tight = short_of_memory(encoder(), 30, ON_CPU)
    with caplog.at_level(logging.WARNING):
        vectors = tight.embed(texts)
    np.testing.assert_array_equal(vectors, encoder().embed(texts))
    states, starts = tight.states(texts, 100)
    whole, same_starts = encoder().states(texts, 100)
    np.testing.assert_array_equal(states, whole)
    np.testing.assert_array_equal(starts, same_starts)
    assert [record.message for record in caplog.records] == [  # short texts come first
        "test/lengths: out of memory with 32 texts at once: going on with 8",
        "test/lengths: out of memory with 8 texts at once: going on with 4",
    ]


def test_what_is_too_much_alone_is_an_error_that_says_what_to_do(lm: LocalLM) -> None:
    advice = r"free some, take a smaller model or shorter texts, or compute elsewhere \(RECSYS_DEVICE\)$"
    with pytest.raises(ModelError, match=rf"out of memory with no more than 1 texts at once \(CUDA out.*\): {advice}"):
        short_of_memory(lm, 0).generate(PROMPTS)
    with pytest.raises(ModelError, match=rf"out of memory with no more than 60 answer tokens at once .*: {advice}"):
        short_of_memory(lm, 10).score([PROMPT], [ANSWERS])
    with pytest.raises(ModelError, match=rf"out of memory with no more than 1 texts at once .*: {advice}"):
        short_of_memory(encoder(), 0).embed(["a b", "c"])


def test_other_errors_are_not_taken_for_a_lack_of_memory(lm: LocalLM) -> None:
    tight = short_of_memory(lm, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(ModelError, match=r"shapes cannot be multiplied$"):
        tight.score([PROMPT], [ANSWERS])
    assert tight.model.failures == 1
    assert not out_of_memory(ValueError("CUDA out of memory"))


def test_what_the_allocator_really_raises_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(raised.value)
    for said in ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "CUDA error: out of memory"):
        assert out_of_memory(RuntimeError(said))


def test_half_and_half_again_until_it_fits() -> None:
    tried: list[int] = []

    def work(size: int) -> int:
        tried.append(size)
        if size > 3:
            raise MemoryError
        return size

    room = Room()
    assert room.run(work, 20, model_id="m", what="texts") == 2
    assert room.run(work, 20, model_id="m", what="texts") == 2
    assert tried == [20, 10, 5, 2, 2]
