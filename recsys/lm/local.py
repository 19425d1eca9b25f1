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
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from recsys.errors import ModelError, WeightsError
from recsys.lm.device import Dtype, auto_dtype, first_line, pick_device, quiet_loading
from recsys.lm.packing import chunks, layout
from recsys.lm.weights import Weights
from recsys.protocols import Score
from recsys.settings import Settings

log = logging.getLogger(__name__)

_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_CONTENT = "@@content@@"
_LOGIT_ROWS = 64  # positions whose log-probabilities over the vocabulary are in memory at once
_GENERATE_BATCH = 8
_QUIET_BELOW = 21  # prompts from which on a progress bar is shown


@dataclass(frozen=True)
class LocalLM:
    """A causal LM in memory; see `load`. Implements `protocols.LanguageModel`.

    model, tokenizer : of transformers
    model_id         : name, short hash of the weights, the dtype computed in (never "auto"); no device, no machine
    context          : the longest sequence of tokens that the model takes
    start            : the tokens before every scored prompt
    max_packed       : the most answer tokens in one pass
    """

    model: Any
    tokenizer: Any
    model_id: str
    context: int
    start: tuple[int, ...]
    max_packed: int = 512

    @classmethod
    def load(cls, weights: Weights, settings: Settings, *, dtype: Dtype = "auto") -> "LocalLM":
        """Read weights from their folder; "auto" is what `device.auto_dtype` says, any other dtype is kept to.

        Sets torch's thread count for the process to `settings.threads`.

        Errors: `WeightsError` when the folder does not hold a causal LM with a tokenizer; `SpecError` for a device
        that is not there.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(settings.threads)
        device = pick_device(settings.device)
        chosen = auto_dtype(device) if dtype == "auto" else dtype
        try:
            with quiet_loading():
                tokenizer = AutoTokenizer.from_pretrained(weights.path, local_files_only=True)
                model = AutoModelForCausalLM.from_pretrained(
                    weights.path, dtype=getattr(torch, chosen), local_files_only=True, use_safetensors=True
                )
        except Exception as error:  # transformers raises many kinds; whatever it is, the folder is what is wrong
            raise WeightsError(f"{weights.path}: is not a causal LM that can be loaded: {first_line(error)}") from error
        model = model.eval().requires_grad_(False).to(device)
        context = int(getattr(model.config, "max_position_embeddings", 2048))
        return cls(model, tokenizer, f"{weights.short_id}:{_SHORT[chosen]}", context, _start(tokenizer))

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        """Greedy answers, one per prompt, cut before the first `stop` string and stripped.

        A prompt is a user turn where the tokenizer has a chat template; special tokens written in it stay plain text.
        Prompts of like length run together, padded on the left. In bf16 a text may differ in rounding from one
        written in another batch; the same call gives the same texts.

        Errors: `ModelError` when the model fails, or `max_tokens` leaves no room for a prompt.
        """
        around = self._turn()
        room = self.context - max_tokens - sum(len(ids) for ids in around)
        coded = [[*around[0], *ids, *around[1]] for ids in self._cut([self._ids(p) for p in prompts], room)]
        order = sorted(range(len(coded)), key=lambda i: (len(coded[i]), coded[i]))
        texts = [""] * len(coded)
        with tqdm(total=len(coded), desc="LM writes", unit="text", disable=len(coded) < _QUIET_BELOW or None) as bar:
            for at in range(0, len(order), _GENERATE_BATCH):
                batch = order[at : at + _GENERATE_BATCH]
                written = self._generate_batch([coded[i] for i in batch], max_tokens, tuple(stop))
                for i, text in zip(batch, written, strict=True):
                    texts[i] = text
                bar.update(len(batch))
        return texts

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each prompt, each answer's log-likelihood after it (raw text, no chat; natural log, summed over tokens).

        Prompts longer than the context lose their front, answers longer than half of it their end; both are counted
        in a warning. Prompt and answers are tokenised apart, so an answer brings its own leading space.

        Errors: `ModelError` when the model fails.
        """
        coded = [self._cut([self._ids(text) for text in row], self.context // 2, keep="front") for row in answers]
        results = []
        for prompt, row in zip(prompts, coded, strict=True):
            room = self.context - len(self.start) - max((len(ids) for ids in row), default=0)
            (cut,) = self._cut([self._ids(prompt)], room)
            results.append(self._score_one([*self.start, *cut], row))
        return results

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        """Tokens of plain text: what looks like a special token in it is text like any other."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def _turn(self) -> tuple[list[int], list[int]]:
        """The tokens before and after the user's words in a chat; only `start` where there is no chat template."""
        if not self.tokenizer.chat_template:
            return list(self.start), []
        turn = [{"role": "user", "content": _CONTENT}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        head, _, tail = text.partition(_CONTENT)
        before, after = (self.tokenizer(part, add_special_tokens=False).input_ids for part in (head, tail))
        return before, after

    def _cut(self, coded: list[list[int]], room: int, keep: Literal["front", "tail"] = "tail") -> list[list[int]]:
        if room < 1:
            raise ModelError(f"{self.model_id}: its context of {self.context} tokens leaves no room for a prompt")
        long = sum(len(ids) > room for ids in coded)
        if long:
            log.warning("%s: %d of %d texts cut to %d tokens", self.model_id, long, len(coded), room)
        return [ids[:room] if keep == "front" else ids[-room:] for ids in coded]

    def _generate_batch(self, coded: list[list[int]], max_tokens: int, stop: tuple[str, ...]) -> list[str]:
        import torch
        from transformers import GenerationConfig

        width = max(len(ids) for ids in coded)
        pad = self.tokenizer.pad_token_id or 0
        eos = self.model.generation_config.eos_token_id
        config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=eos, pad_token_id=pad)
        rows = torch.tensor([[pad] * (width - len(ids)) + ids for ids in coded], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in coded], device=self.model.device)

        def read(sequences: Any) -> list[str]:
            texts: list[str] = self.tokenizer.batch_decode(sequences[:, width:], skip_special_tokens=True)
            return texts

        def stopped(sequences: Any, _: Any, **__: Any) -> Any:
            done = [any(s in text for s in stop) for text in read(sequences)]
            return torch.tensor(done, device=sequences.device)

        with _model_errors(self.model_id), torch.inference_mode():
            criteria = [stopped] if stop else None
            out = self.model.generate(rows, attention_mask=mask, generation_config=config, stopping_criteria=criteria)
        return [text[: _first_stop(text, stop)].strip() for text in read(out)]

    def _score_one(self, prefix: list[int], answers: list[list[int]]) -> list[Score]:
        import torch
        from transformers import DynamicCache

        scores = [Score(0.0, 0)] * len(answers)
        parts = list(chunks(answers, self.max_packed))
        cache = DynamicCache() if len(parts) > 1 else None
        after_prompt = None
        for part in parts:
            rows = [answers[i] for i in part]
            with _model_errors(self.model_id), torch.inference_mode():
                after_prompt, sums = self._pass(prefix, rows, cache, after_prompt)
            for i, total in zip(part, sums, strict=True):
                scores[i] = Score(total, len(answers[i]))
        return scores

    def _pass(
        self, prefix: list[int], answers: list[list[int]], cache: Any, after_prompt: Any
    ) -> tuple[Any, list[float]]:
        """One forward pass: log-probabilities over the vocabulary after the prompt, and each answer's sum.

        The first pass feeds the prompt and computes `after_prompt`; later ones find the prompt in `cache`. An
        answer's last token predicts nothing that counts and is not fed.
        """
        import torch

        fed = [ids[:-1] for ids in answers]
        tokens = [token for ids in fed for token in ids]
        rest = torch.zeros((0, 1))
        if after_prompt is None:
            logits = self._logits([*prefix, *tokens], len(prefix), fed, cache)
            after_prompt, rest = _log_softmax(logits[:1])[0], logits[1:]
        elif tokens:
            rest = self._logits(tokens, len(prefix), fed, cache)
        if cache is not None and tokens:
            cache.crop(-len(tokens))

        device = self.model.device
        followers = torch.tensor([t for ids in answers for t in ids[1:]], dtype=torch.long, device=device)
        gained = np.zeros(len(followers))
        for at in range(0, len(followers), _LOGIT_ROWS):
            rows = slice(at, at + _LOGIT_ROWS)
            gained[rows] = _log_softmax(rest[rows]).gather(1, followers[rows, None])[:, 0].cpu().numpy()
        sums = after_prompt[[ids[0] for ids in answers]].double().cpu().numpy()
        np.add.at(sums, np.repeat(np.arange(len(fed)), [len(ids) for ids in fed]), gained)
        return after_prompt, [float(total) for total in sums]

    def _logits(self, tokens: list[int], n_prefix: int, fed: list[list[int]], cache: Any) -> Any:
        """Logits after the prompt's last token, if it is among `tokens`, and after every answer token."""
        import torch

        model, device = self.model, self.model.device
        places, sees = layout(n_prefix, [len(ids) for ids in fed])
        places, sees = places[-len(tokens) :], sees[-len(tokens) :]
        bias = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(
            ~torch.from_numpy(sees), torch.finfo(model.dtype).min
        )
        n_answers = sum(len(ids) for ids in fed)
        wanted = torch.arange(max(len(tokens) - n_answers - 1, 0), len(tokens), device=device)
        return model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.from_numpy(places)[None].to(device),
            attention_mask=bias[None, None].to(device),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=wanted,
        ).logits[0]


def _start(tokenizer: Any) -> tuple[int, ...]:
    """What stands before text in the model's training: its BOS where the tokenizer adds one, else a document break."""
    added = list(tokenizer("").input_ids)
    if tokenizer.bos_token_id in added:
        return (int(tokenizer.bos_token_id),)
    vocab = tokenizer.get_vocab()
    for token in ("<|endoftext|>", tokenizer.bos_token, tokenizer.eos_token):
        if token in vocab:
            return (int(vocab[token]),)
    return (0,)


def _log_softmax(logits: Any) -> Any:
    return logits.float().log_softmax(-1)


def _first_stop(text: str, stop: tuple[str, ...]) -> int:
    return min((text.find(s) for s in stop if s in text), default=len(text))


@contextmanager
def _model_errors(model_id: str) -> Iterator[None]:
    """Turn what torch raises into `ModelError`."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ModelError(f"{model_id}: {first_line(error)}") from error
