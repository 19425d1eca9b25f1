"""A language model on this machine, by transformers.

Scoring packs all answers of a prompt behind one copy of it: each answer sees the prompt and itself only (block mask),
and its positions restart where the prompt ends, so the figures are those of separate prompts at a fraction of the
work. Logits are computed only where an answer token is predicted. Answers beyond `max_packed` tokens go into further
passes on the prompt's cached keys and values, so memory stays bounded. One prompt a pass: a batch equals singles.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from recsys.errors import ModelError, WeightsError
from recsys.lm.weights import Weights
from recsys.protocols import Score
from recsys.settings import Settings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_CONTENT = "@@content@@"
_LOGIT_ROWS = 64
_GENERATE_BATCH = 8
_SHOW_PROGRESS_FROM = 21


@dataclass(frozen=True)
class LocalLM:
    """A causal LM in memory; see `load`. Implements `protocols.LanguageModel`.

    model, tokenizer : of transformers
    model_id         : name, short hash of the weights, dtype
    context          : the longest sequence of tokens the model takes
    max_packed       : the most answer tokens in one pass
    """

    model: Any
    tokenizer: Any
    model_id: str
    context: int
    max_packed: int = 512

    @classmethod
    def load(cls, weights: Weights, settings: Settings, *, dtype: Dtype = "auto") -> "LocalLM":
        """Read weights from their folder; "auto" means bf16 where the device computes in it, else fp32.

        Sets torch's thread count for the process to `settings.threads`.

        Errors: `WeightsError` when the folder does not hold a causal LM with a tokenizer.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(settings.threads)
        device = pick_device(settings.device)
        chosen = _auto_dtype(device) if dtype == "auto" else dtype
        try:
            tokenizer = AutoTokenizer.from_pretrained(weights.path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                weights.path, dtype=getattr(torch, chosen), local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(f"{weights.path}: is not a causal LM that can be loaded: {_line(error)}") from error
        model.eval().requires_grad_(False)
        context = int(getattr(model.config, "max_position_embeddings", 2048))
        return cls(model.to(device), tokenizer, f"{weights.short_id}:{_SHORT[chosen]}", context)

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        """Greedy answers, one per prompt, cut before the first `stop` string and stripped.

        A prompt is a user turn where the tokenizer has a chat template; special tokens written in it stay plain text.
        Prompts of like length run together, padded on the left. In bf16 a text may differ in rounding from one
        written in another batch; the same call gives the same texts.

        Errors: `ModelError` when the model fails, or `max_tokens` leaves no room for a prompt.
        """
        coded = self._cut([self._turn(prompt) for prompt in prompts], self.context - max_tokens)
        order = sorted(range(len(coded)), key=lambda i: (len(coded[i]), coded[i]))
        texts = [""] * len(coded)
        with tqdm(total=len(coded), desc="LM writes", unit="text", disable=len(coded) < _SHOW_PROGRESS_FROM) as bar:
            for start in range(0, len(order), _GENERATE_BATCH):
                batch = order[start : start + _GENERATE_BATCH]
                written = self._generate_batch([coded[i] for i in batch], max_tokens, tuple(stop))
                for i, text in zip(batch, written, strict=True):
                    texts[i] = text
                bar.update(len(batch))
        return texts

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each prompt, each answer's log-likelihood after it (raw text, no chat; natural log, summed over tokens).

        Prompts longer than the context lose their front; answers longer than half of it lose their end; both are
        counted in a warning. Prompt and answers are tokenised apart, so an answer should bring its own leading space.

        Errors: `ModelError` when the model fails.
        """
        longest = self.context // 2
        coded = [self._cut([self._ids(text) for text in row], longest, keep="front") for row in answers]
        rooms = [self.context - max((len(ids) for ids in row), default=0) for row in coded]
        prefixes = [
            self._cut([self._start() + self._ids(prompt)], room)[0] for prompt, room in zip(prompts, rooms, strict=True)
        ]
        return [self._score_one(prefix, row) for prefix, row in zip(prefixes, coded, strict=True)]

    def _ids(self, text: str) -> list[int]:
        """Tokens of plain text: what looks like a special token in it is text like any other."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def _start(self) -> list[int]:
        """What stands before every scored prompt: the tokenizer's own start, or else its end-of-text token."""
        ids: list[int] = self.tokenizer("").input_ids
        first = [i for i in ids if i == self.tokenizer.bos_token_id]
        for token in (self.tokenizer.unk_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if not first and token is not None:
                first = [token]
        return first

    def _turn(self, prompt: str) -> list[int]:
        if not self.tokenizer.chat_template:
            return self._start() + self._ids(prompt)
        turn = [{"role": "user", "content": _CONTENT}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        head, _, tail = text.partition(_CONTENT)
        around = [self.tokenizer(part, add_special_tokens=False).input_ids for part in (head, tail)]
        return [*around[0], *self._ids(prompt), *around[1]]

    def _cut(self, coded: list[list[int]], room: int, keep: Literal["front", "tail"] = "tail") -> list[list[int]]:
        if room < 1:
            raise ModelError(f"{self.model_id}: no room for a prompt in a context of {self.context} tokens")
        long = sum(len(ids) > room for ids in coded)
        if long:
            log.warning("%d of %d texts cut to %d tokens (context of %s)", long, len(coded), room, self.model_id)
        return [ids[:room] if keep == "front" else ids[-room:] for ids in coded]

    def _generate_batch(self, coded: list[list[int]], max_tokens: int, stop: tuple[str, ...]) -> list[str]:
        import torch
        from transformers import GenerationConfig

        width = max(len(ids) for ids in coded)
        eos = self.model.generation_config.eos_token_id
        pad = self.tokenizer.pad_token_id or 0
        config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=eos, pad_token_id=pad)
        rows = torch.tensor([[pad] * (width - len(ids)) + ids for ids in coded], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in coded], device=self.model.device)

        def stopped(sequence: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            texts = self.tokenizer.batch_decode(sequence[:, width:], skip_special_tokens=True)
            return torch.tensor([any(s in text for s in stop) for text in texts], device=sequence.device)

        with _model_errors(self.model_id), torch.inference_mode():
            out = self.model.generate(
                rows, attention_mask=mask, generation_config=config, stopping_criteria=[stopped] if stop else None
            )
            texts = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return [_before(text, stop).strip() for text in texts]

    def _score_one(self, prefix: list[int], answers: list[list[int]]) -> list[Score]:
        from transformers import DynamicCache

        scores = [Score(0.0, 0)] * len(answers)
        chunks = list(_chunks(answers, self.max_packed))
        cache = DynamicCache() if len(chunks) > 1 else None
        first: Any = None
        for chunk in chunks:
            rows = [answers[i] for i in chunk]
            with _model_errors(self.model_id):
                first, sums = self._pass(prefix, rows, cache, first)
            for i, total in zip(chunk, sums, strict=True):
                scores[i] = Score(float(total), len(answers[i]))
        return scores

    def _pass(self, prefix: list[int], answers: list[list[int]], cache: Any, first: Any) -> tuple[Any, list[float]]:
        """One forward pass. `first`: log-probabilities after the prompt, None in the first pass, which computes them.

        The last token of an answer predicts nothing that counts, so it is not fed. In later passes the prompt is in
        `cache` and only answers are fed; what they added to the cache is dropped again.
        """
        import torch

        device = self.model.device
        fed = [ids[:-1] for ids in answers]
        new = sum(len(ids) for ids in fed)
        head = 0 if first is not None else len(prefix)
        if head + new:
            groups = np.concatenate([np.full(len(prefix), -1), np.repeat(np.arange(len(fed)), [len(a) for a in fed])])
            places = np.concatenate([np.arange(len(prefix)), *[len(prefix) + np.arange(len(a)) for a in fed]])
            queries = slice(len(prefix) - head, None)
            order = np.arange(len(groups))
            sees = (order[None, :] <= order[queries, None]) & (
                (groups[None, :] == -1) | (groups[None, :] == groups[queries, None])
            )
            tokens = [*prefix[len(prefix) - head :], *(t for ids in fed for t in ids)]
            keep = torch.arange(max(head - 1, 0), head + new, device=device)
            bias = torch.zeros(sees.shape, dtype=self.model.dtype, device=device)
            bias.masked_fill_(~torch.from_numpy(sees).to(device), torch.finfo(self.model.dtype).min)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=torch.tensor([tokens], device=device),
                    position_ids=torch.from_numpy(places[queries])[None].to(device),
                    attention_mask=bias[None, None],
                    past_key_values=cache,
                    use_cache=cache is not None,
                    logits_to_keep=keep,
                ).logits[0]
            if cache is not None:
                cache.crop(-new)
            if first is None:
                first, logits = logits[0].float().log_softmax(-1), logits[1:]
        else:
            logits = first[:0, None]
        followers = torch.tensor([t for ids in answers for t in ids[1:]], device=device, dtype=torch.long)
        gained = [
            rows.float().log_softmax(-1).gather(1, next_[:, None])[:, 0]
            for rows, next_ in zip(logits.split(_LOGIT_ROWS), followers.split(_LOGIT_ROWS), strict=True)
        ]
        steps = torch.cat(gained).double().cpu().split([len(a) for a in fed]) if gained else [torch.zeros(0)] * len(fed)
        starts = first[[ids[0] for ids in answers]].double().cpu()
        return first, [float(start + step.sum()) for start, step in zip(starts, steps, strict=True)]


def pick_device(name: str) -> str:
    """The torch device that a setting means; "auto" is CUDA, then Apple's MPS, then the CPU."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _auto_dtype(device: str) -> Dtype:
    """bf16 where it is computed natively: on a CPU without it, emulation is slower than fp32."""
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "bfloat16"
    return "float32"


def _chunks(answers: list[list[int]], limit: int) -> Iterator[list[int]]:
    """Indices of the non-empty answers in order, as many at a time as stay within `limit` tokens (at least one)."""
    chunk: list[int] = []
    size = 0
    for i, ids in enumerate(answers):
        if chunk and size + len(ids) > limit:
            yield chunk
            chunk, size = [], 0
        if ids:
            chunk.append(i)
            size += len(ids)
    if chunk:
        yield chunk


def _before(text: str, stop: tuple[str, ...]) -> str:
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


@contextmanager
def _model_errors(model_id: str) -> Iterator[None]:
    """Turn what torch raises into `ModelError`."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ModelError(f"{model_id}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
