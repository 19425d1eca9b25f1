"""A language model on this machine, by transformers.

Scoring packs all answers of a prompt behind one copy of it: each answer sees the prompt and itself only (block mask),
and its positions restart where the prompt ends, so the figures are those of separate prompts at a fraction of the
work. Logits are computed only where an answer token is predicted. Answers beyond `max_packed` tokens go into further
passes on the prompt's cached keys and values, so memory stays bounded. One prompt a pass: a batch equals singles.
Where memory runs out, fewer answers are packed and fewer texts written at once (`lm.memory`).
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tqdm import tqdm

from recsys.errors import ModelError, WeightsError
from recsys.lm.device import Dtype, auto_dtype, first_line, pick_device, quiet_loading
from recsys.lm.memory import Room
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
# Characters for private use. Where a model has soft tokens, each of these is one of them, and no text.
SOFT = range(0xF0000, 0x110000)
_SOFT = re.compile(f"([{chr(SOFT[0])}-{chr(SOFT[-1])}])")


@dataclass(frozen=True)
class LocalLM:
    """A causal LM in memory; see `load`. Implements `protocols.LanguageModel`.

    model, tokenizer : of transformers
    model_id         : name, short hash of the weights, the dtype computed in (never "auto"); no device, no machine
    context          : the longest sequence of tokens that the model takes
    start            : the tokens before every scored prompt
    max_packed       : the most answer tokens in one pass
    soft             : the id of its first soft token, where the model has some beside the tokenizer's (`rerank.soft`)
    packed, written  : answer tokens and texts that memory reaches for at once
    """

    model: Any
    tokenizer: Any
    model_id: str
    context: int
    start: tuple[int, ...]
    max_packed: int = 512
    soft: int | None = None
    packed: Room = field(default_factory=Room, repr=False, compare=False)
    written: Room = field(default_factory=Room, repr=False, compare=False)

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
            at = 0
            while at < len(order):
                write = partial(
                    self._generate_batch, [coded[i] for i in order[at : at + _GENERATE_BATCH]], max_tokens, tuple(stop)
                )
                most = min(_GENERATE_BATCH, len(order) - at)
                with _model_errors(self.model_id):
                    written = self.written.run(write, most, model_id=self.model_id, what="texts")
                for i, text in zip(order[at:], written, strict=False):
                    texts[i] = text
                at += len(written)
                bar.update(len(written))
        return texts

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each prompt, each answer's log-likelihood after it (raw text, no chat; natural log, summed over tokens).

        Prompts longer than the context lose their front, answers longer than half of it their end; both are counted
        in a warning. Prompt and answers are tokenised apart, so an answer brings its own leading space.

        Errors: `ModelError` when the model fails.
        """
        return [self._score_one(*self._coded(p, row)) for p, row in zip(prompts, answers, strict=True)]

    def likelihoods(self, prompt: str, answers: Sequence[str]) -> Any:
        """(answers,) float64, a tensor on the CPU: each answer's `Score.mean` after a prompt, in one pass.

        What is learned by it is what `score` says later: gradients go through. No answer may be empty.
        Errors: what torch raises.
        """
        import torch

        prefix, coded = self._coded(prompt, answers)
        sums = self._pass(prefix, coded, None, None)[1]
        return sums / torch.tensor([len(ids) for ids in coded])

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        """Tokens of plain text: what looks like a special token in it is text like any other."""
        if self.soft is not None and len(parts := _SOFT.split(text)) > 1:
            found: list[int] = []
            for place, part in enumerate(parts):
                found += [self.soft + SOFT.index(ord(part))] if place % 2 else self._ids(part)
            return found
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def _coded(self, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Tokens of a prompt from its very start, and of its answers, cut to fit the context."""
        coded = self._cut([self._ids(text) for text in answers], self.context // 2, keep="front")
        room = self.context - len(self.start) - max((len(ids) for ids in coded), default=0)
        (cut,) = self._cut([self._ids(prompt)], room)
        return [*self.start, *cut], coded

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

    def _generate_batch(self, coded: list[list[int]], max_tokens: int, stop: tuple[str, ...], size: int) -> list[str]:
        """The answers to the first `size` of some prompts."""
        import torch
        from transformers import GenerationConfig

        coded = coded[:size]
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

        with torch.inference_mode():
            criteria = [stopped] if stop else None
            out = self.model.generate(rows, attention_mask=mask, generation_config=config, stopping_criteria=criteria)
        return [text[: _first_stop(text, stop)].strip() for text in read(out)]

    def _score_one(self, prefix: list[int], answers: list[list[int]]) -> list[Score]:
        import torch

        lengths = [len(ids) for ids in answers]
        with _model_errors(self.model_id), torch.inference_mode():
            return self.packed.run(
                partial(self._scores, prefix, answers),
                min(self.max_packed, sum(lengths)),
                model_id=self.model_id,
                what="answer tokens",
                least=max(lengths, default=0),
            )

    def _scores(self, prefix: list[int], answers: list[list[int]], most: int) -> list[Score]:
        """Scores by passes of at most so many answer tokens (at least one answer)."""
        from transformers import DynamicCache

        scores = [Score(0.0, 0)] * len(answers)
        parts = list(chunks(answers, most))
        cache = DynamicCache() if len(parts) > 1 else None
        after_prompt = None
        for part in parts:
            after_prompt, sums = self._pass(prefix, [answers[i] for i in part], cache, after_prompt)
            for i, total in zip(part, sums.tolist(), strict=True):
                scores[i] = Score(total, len(answers[i]))
        return scores

    def _pass(self, prefix: list[int], answers: list[list[int]], cache: Any, after_prompt: Any) -> tuple[Any, Any]:
        """One forward pass: log-probabilities over the vocabulary after the prompt, and each answer's sum, (answers,).

        The first pass feeds the prompt and computes `after_prompt`; later ones find the prompt in `cache`. An
        answer's last token predicts nothing that counts and is not fed.
        """
        fed = [ids[:-1] for ids in answers]
        tokens = [token for ids in fed for token in ids]
        rest = None
        if after_prompt is None:
            logits = self._logits([*prefix, *tokens], len(prefix), fed, cache)
            after_prompt, rest = _log_softmax(logits[:1])[0], logits[1:]
        elif tokens:
            rest = self._logits(tokens, len(prefix), fed, cache)
        if cache is not None and tokens:
            cache.crop(-len(tokens))
        return after_prompt, _sums(after_prompt, rest, answers)

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


def _sums(after_prompt: Any, rest: Any, answers: list[list[int]]) -> Any:
    """(answers,) float64 on the CPU: each answer's first token by what follows the prompt, the others by the logits
    `rest`, one row for each token that is fed."""
    import torch

    followers = torch.tensor([t for ids in answers for t in ids[1:]], dtype=torch.long, device=after_prompt.device)
    owners = torch.tensor([i for i, ids in enumerate(answers) for _ in ids[1:]], dtype=torch.long)
    sums = after_prompt[[ids[0] for ids in answers]].cpu().double()
    for at in range(0, len(followers), _LOGIT_ROWS):
        rows = slice(at, at + _LOGIT_ROWS)
        gained = _log_softmax(rest[rows]).gather(1, followers[rows, None])[:, 0]
        sums = sums.index_add(0, owners[rows], gained.cpu().double())
    return sums


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
