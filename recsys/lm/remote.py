"""A language model behind any OpenAI-compatible address (a hosted API, vLLM, llama.cpp, Ollama, ...).

Text comes from chat completions. Likelihoods need a server that gives log probabilities of a prompt: by legacy
completions with `echo` (vLLM, TGI and others), or by vLLM's `prompt_logprobs`. An answer's score is the likelihood of
prompt and answer together less that of the prompt alone, so nothing depends on where a tokenizer puts the boundary.
What only some servers offer besides stands in `lm.served`.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from recsys.errors import ModelError, NotOfferedError, SpecError
from recsys.lm.served import Served
from recsys.lm.usage import Usage, estimate
from recsys.protocols import Score
from recsys.settings import Settings

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Q = TypeVar("_Q")
_Likelihood = tuple[float, int]
_MOST_STOPS = 4  # of the OpenAI API
_REFUSALS = {400, 404, 405, 422, 501}


@dataclass(frozen=True)
class RemoteLM(Served):
    """A model on a server; see `connect`. Implements `protocols.LanguageModel`.

    key     : without the white space around it; empty where there is none
    workers : requests under way at the same time
    usage   : tokens so far, as the server counts them; estimated for answers that do not say
    """

    client: Any
    model: str
    address: str
    key: SecretStr
    workers: int
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def connect(cls, model: str, url: str, settings: Settings, *, retries: int = 2, workers: int = 8) -> "RemoteLM":
        """Prepare requests to the API at `url` (ending in /v1 for most servers); nothing is sent yet.

        A request is given `settings.lm_timeout_s` seconds and is repeated at most `retries` times after a lost
        connection, a timeout, a 429 or a 5xx. `settings.lm_api_key` is sent to this address only and never logged;
        white space around it, such as the line break that ends a file, is not part of it.

        Errors: `SpecError` for a key that an HTTP header cannot carry.
        """
        from openai import OpenAI

        key = settings.lm_api_key.get_secret_value().strip() if settings.lm_api_key else ""
        if not (key.isascii() and key.isprintable()):
            raise SpecError("RECSYS_LM_API_KEY: holds a line break, or a character beyond ASCII: give the key alone")
        # Never None: the client would take another service's key from the environment.
        client = OpenAI(base_url=url, api_key=key or "none", timeout=settings.lm_timeout_s, max_retries=retries)
        parts = urlsplit(url)
        address = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        return cls(client, model, address, SecretStr(key), workers)

    @property
    def model_id(self) -> str:
        """The server's name of the model and the server's address."""
        return f"{self.model}@{self.address}"

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        """The server's answer to each prompt as a user turn, at temperature 0, cut before the first `stop`, stripped.

        Errors: `ModelError` when the server is out of reach, refuses, or answers something else than text.
        """
        given = {"max_tokens": max_tokens, **({"stop": list(stop)[:_MOST_STOPS]} if stop else {})}

        def ask(prompt: str) -> str:
            text = self._chat(prompt, given)
            return text[: min((text.find(s) for s in stop if s in text), default=len(text))].strip()

        return self._all(ask, prompts)

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """For each prompt, each answer's log-likelihood after it. The first token of a text without prompt is free.

        Errors: as `generate`, and where the server gives no log probabilities of prompts.
        """
        wholes = [p + a for p, row in zip(prompts, answers, strict=True) for a in row if a]
        texts = sorted({text for text in [*prompts, *wholes] if text}) if wholes else []
        if not texts:
            return [[Score(0.0, 0) for _ in row] for row in answers]
        read = self._way_to_score(texts[0])
        found = dict(zip(texts, self._all(read, texts), strict=True)) | {"": (0.0, 0)}

        def difference(prompt: str, answer: str) -> Score:
            (whole, n), (before, m) = found[prompt + answer], found[prompt]
            return Score(whole - before, max(n - m, 0))

        return [
            [difference(p, a) if a else Score(0.0, 0) for a in row] for p, row in zip(prompts, answers, strict=True)
        ]

    def _chat(self, prompt: str, given: dict[str, Any]) -> str:
        with self._errors():
            answer = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], temperature=0, **given
            )
            text = answer.choices[0].message.content
            if not isinstance(text, str):
                raise ValueError("its answer holds no text")
            self._count(answer.usage, prompt, text)
            return text

    def _count(self, used: Any, sent: str, received: str) -> None:
        """Add one answer's tokens, as the server gives them (an object, a dictionary or nothing)."""
        facts = used if isinstance(used, dict) else vars(used) if used is not None else {}
        prompt, total = facts.get("prompt_tokens"), facts.get("total_tokens")
        if prompt is None and total is None:
            self.usage.add(estimate(sent), estimate(received) if received else 0)
        else:
            prompt = int(total or 0) if prompt is None else int(prompt)
            self.usage.add(prompt, int(facts.get("completion_tokens") or 0))

    def _way_to_score(self, text: str) -> Callable[[str], _Likelihood]:
        """The first way of scoring that this server answers to."""
        for read in (self._by_echo, self._by_prompt_logprobs):
            try:
                read(text)
                return read
            except NotOfferedError as reason:
                log.info("%s", reason)
        raise ModelError(
            f"{self.model_id}: gives no log probabilities of a prompt (neither completions with echo nor "
            "prompt_logprobs), which scoring needs: use a server such as vLLM, or a local model"
        )

    def _by_echo(self, text: str) -> _Likelihood:
        """Likelihood and number of the tokens of `text`, by `echo`; one token is generated too and not counted."""
        with self._errors():
            answer = self.client.completions.create(
                model=self.model, prompt=text, max_tokens=1, temperature=0, echo=True, logprobs=1
            )
            self._count(answer.usage, text, "!")
            choice = answer.choices[0]
            if not (choice.text or "").startswith(text) or not choice.logprobs or not choice.logprobs.token_logprobs:
                raise NotOfferedError(f"{self.model_id}: gives no log probabilities with echo")
            values = choice.logprobs.token_logprobs
            offsets = choice.logprobs.text_offset
            own = values[:-1] if not offsets else [v for v, at in zip(values, offsets, strict=True) if at < len(text)]
            return _sum(own)

    def _by_prompt_logprobs(self, text: str) -> _Likelihood:
        """The same by vLLM's `prompt_logprobs`: 0 asks for the prompt's own tokens only, one {id: facts} each."""
        with self._errors():
            answer = self.client.completions.create(
                model=self.model, prompt=text, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
            )
            self._count(answer.usage, text, "!")
            rows = (answer.choices[0].model_extra or {}).get("prompt_logprobs")
            if not rows:
                raise NotOfferedError(f"{self.model_id}: gives no prompt_logprobs")
            return _sum([None if row is None else next(iter(row.values()))["logprob"] for row in rows])

    def _all(self, ask: Callable[[_Q], _T], questions: Sequence[_Q]) -> list[_T]:
        """`ask` of every one, some at a time, in order; the first failure cancels those not yet sent."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            return list(pool.map(ask, questions))
        finally:
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the client raises, and an answer of another shape than expected, into `ModelError`.

        Without its cause, whose text may repeat the key that was sent.
        """
        import openai

        try:
            yield
        except openai.APITimeoutError as error:
            raise ModelError(
                f"{self.model_id}: no answer in {self.client.timeout:g} s (RECSYS_LM_TIMEOUT_S)"
            ) from error
        except openai.APIConnectionError as error:
            reason = self._line(error.__cause__ or error)
            message = f"{self.model_id}: cannot be reached: {reason}: check RECSYS_LM_URL and the server"
            raise ModelError(message) from None
        except openai.APIStatusError as error:
            kind = NotOfferedError if error.status_code in _REFUSALS else ModelError
            raise kind(f"{self.model_id}: answered {error.status_code}: {self._line(error)}") from None
        except (openai.OpenAIError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(f"{self.model_id}: answered nonsense: {self._line(error)}") from None

    def _line(self, error: BaseException) -> str:
        """What an error says, in one line, without the key."""
        told = str(error).strip() or type(error).__name__
        for form in _forms(self.key.get_secret_value()):
            told = told.replace(form, "***")
        return told.splitlines()[0][:300]


def _forms(key: str) -> list[str]:
    """How a text may repeat a key: as it is, stripped, escaped as in Python's or JSON's strings; longest first."""
    plain = {key, key.strip()}
    escaped = {form for k in plain for form in (repr(k)[1:-1], repr(k.encode())[2:-1], json.dumps(k)[1:-1])}
    return sorted((plain | escaped) - {""}, key=len, reverse=True)


def _sum(values: Sequence[float | None]) -> _Likelihood:
    """Sum and number of the given log probabilities; a first token without context has none."""
    known = [float(v) for v in values if v is not None]
    if any(math.isnan(v) for v in known):
        raise ValueError("a log probability is not a number")
    return math.fsum(known), len(known)
