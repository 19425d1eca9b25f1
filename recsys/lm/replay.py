"""Models without a model: answers recorded once and replayed, and a model that says what a test tells it to."""

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from recsys.errors import ModelError, StorageError
from recsys.protocols import Chooser, LanguageModel, Rater, RelevanceModel, Score

_SCANNED = 10_000  # answers looked at together, which bounds memory
_TABLE = """create table if not exists answers (
    key text primary key, model_id text not null, operation text not null,
    prompt text not null, parameters text not null, answer text not null
) without rowid"""


@dataclass(frozen=True)
class ReplayLM:
    """Another model behind a store of its answers, one row per (model, operation, prompt, parameters).

    mode "record" asks the model for what the store lacks and keeps the answer; "replay-only" never asks it.
    The store is `answers.sqlite` in `folder`: rows are only ever added (but see `forget`), each call's in one
    transaction, so that a crash loses no earlier answer.
    """

    lm: LanguageModel
    folder: Path
    mode: Literal["record", "replay-only"] = "record"

    @property
    def model_id(self) -> str:
        """The id of the model behind."""
        return self.lm.model_id

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        """As the model behind.

        Errors: `ModelError` naming the first prompt that a replay lacks; `StorageError` when the store cannot be
        read or written; and those of the model.
        """
        parameters = {"max_tokens": max_tokens, "stop": list(stop)}
        asked = [self._question("generate", prompt, parameters) for prompt in prompts]
        known = self._recall(asked)
        missing = self._missing(asked, known)
        if missing:
            texts = self.lm.generate([q.prompt for q in missing], max_tokens=max_tokens, stop=stop)
            known |= self._keep(dict(zip(missing, texts, strict=True)))
        return [str(known[q.key]) for q in asked]

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """As the model behind; each (prompt, answer) is a row of its own. Errors: as `generate`."""
        asked = [
            [self._question("score", prompt, {"answer": answer}) for answer in row]
            for prompt, row in zip(prompts, answers, strict=True)
        ]
        known = self._recall([q for row in asked for q in row])
        missing = [self._missing(row, known) for row in asked]
        rows = [row for row in missing if row]
        if rows:
            found = self.lm.score([r[0].prompt for r in rows], [[q.parameters["answer"] for q in r] for r in rows])
            pairs = zip((q for row in rows for q in row), (s for row in found for s in row), strict=True)
            known |= self._keep({q: [s.logprob, s.tokens] for q, s in pairs})
        return [[Score(*known[q.key]) for q in row] for row in asked]

    def choose(self, prompts: Sequence[str], options: Sequence[str]) -> list[str]:
        """As the model behind. Errors: as `generate`, and `ModelError` where that one has no typed decisions."""
        lm = self.lm
        if not isinstance(lm, Chooser):
            raise ModelError(f"{self.model_id}: has no typed decisions")
        asked = [self._question("choose", prompt, {"options": list(options)}) for prompt in prompts]
        known = self._recall(asked)
        missing = self._missing(asked, known)
        if missing:
            texts = lm.choose([q.prompt for q in missing], options)
            known |= self._keep(dict(zip(missing, texts, strict=True)))
        return [str(known[q.key]) for q in asked]

    def rate(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """As the model behind; each prompt's options are one row. Errors: as `choose`."""
        lm = self.lm
        if not isinstance(lm, Rater):
            raise ModelError(f"{self.model_id}: has no log probabilities of next words")
        return self._rows("rate", prompts, options, lm.rate)

    def relevance(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[list[float]]:
        """As the model behind; each query's documents are one row. Errors: as `choose`."""
        lm = self.lm
        if not isinstance(lm, RelevanceModel):
            raise ModelError(f"{self.model_id}: has no endpoint that scores documents")
        return self._rows("relevance", queries, documents, lm.relevance)

    def forget(self, texts: Sequence[str]) -> int:
        """Remove every recorded answer that holds one of the texts, as `forget` does; the model is not asked."""
        return forget(self.folder, texts)

    def _rows(
        self,
        operation: str,
        prompts: Sequence[str],
        texts: Sequence[Sequence[str]],
        ask: Callable[[Sequence[str], Sequence[Sequence[str]]], list[list[float]]],
    ) -> list[list[float]]:
        pairs = zip(prompts, texts, strict=True)
        asked = [self._question(operation, prompt, {"texts": list(row)}) for prompt, row in pairs]
        known = self._recall(asked)
        missing = self._missing(asked, known)
        if missing:
            found = ask([q.prompt for q in missing], [q.parameters["texts"] for q in missing])
            known |= self._keep(dict(zip(missing, found, strict=True)))
        return [[float(value) for value in known[q.key]] for q in asked]

    def _question(self, operation: str, prompt: str, parameters: dict[str, Any]) -> "_Question":
        return _Question(self.model_id, operation, prompt, parameters)

    def _missing(self, asked: list["_Question"], known: Mapping[str, Any]) -> list["_Question"]:
        missing = list({q.key: q for q in asked if q.key not in known}.values())
        if missing and self.mode == "replay-only":
            first = missing[0]
            raise ModelError(
                f"{self.folder}: no recorded answer of {self.model_id} for {len(missing)} prompts, the first "
                f"{first.operation} {first.key[:16]}: record them with mode 'record'"
            )
        return missing

    def _recall(self, asked: list["_Question"]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        with self._store() as store:
            for key in {q.key for q in asked}:
                row = store.execute("select answer from answers where key = ?", [key]).fetchone()
                if row:
                    known[key] = json.loads(row[0])
        return known

    def _keep(self, answers: Mapping["_Question", Any]) -> dict[str, Any]:
        rows = [
            (q.key, q.model_id, q.operation, q.prompt, json.dumps(q.parameters), json.dumps(answer))
            for q, answer in answers.items()
        ]
        with self._store() as store:
            store.executemany("insert or ignore into answers values (?, ?, ?, ?, ?, ?)", rows)
        return {q.key: answer for q, answer in answers.items()}

    @contextmanager
    def _store(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: one per call, so that threads do not share it."""
        file = self.folder / "answers.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file, timeout=30)) as store, store:
                store.execute(_TABLE)
                yield store
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{file}: the store of LM answers cannot be used: {error}") from error


def forget(folder: Path, texts: Sequence[str]) -> int:
    """Remove the recorded answers, of every model, whose prompt, parameters or answer holds one of the texts.

    Case, kinds of quotes and of blanks make no difference, since prompts change them; empty texts are in nothing. What
    is removed is overwritten in the file. Returns how many answers that were; 0 where there is no store.

    Errors: `StorageError` where the store cannot be read or written.
    """
    file = folder / "answers.sqlite"
    wanted = _plain(pl.Series(texts, dtype=pl.String)).unique()
    wanted = wanted.filter(wanted != "")
    if not len(wanted) or not file.exists():
        return 0
    removed = 0
    try:
        with closing(sqlite3.connect(file, timeout=30)) as store:
            store.execute("pragma secure_delete = on")
            rows = store.execute("select key, prompt, parameters, answer from answers")
            gone: list[tuple[str]] = []
            while some := rows.fetchmany(_SCANNED):
                told = ["\n".join([prompt, *_texts([json.loads(part) for part in rest])]) for _, prompt, *rest in some]
                held = _plain(pl.Series(told)).str.contains_any(wanted.implode())
                gone += [(row[0],) for row, hit in zip(some, held, strict=True) if hit]
            with store:
                removed = store.executemany("delete from answers where key = ?", gone).rowcount if gone else 0
            store.execute("vacuum")
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"{file}: the store of LM answers cannot be used: {error}") from error
    return removed


def _texts(value: Any) -> Iterator[str]:
    """Every text in what was read from JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _plain(texts: pl.Series) -> pl.Series:
    """Characters for private use stay: some are soft tokens (`local.SOFT`), which tell of a history."""
    lower = texts.str.to_lowercase().str.replace_all(r"[\s\p{Cc}\p{Cf}\p{Cn}]+", " ").str.replace_all('["“”„«»]', "'")
    return lower.str.strip_chars()


@dataclass(frozen=True)
class _Question:
    model_id: str
    operation: str
    prompt: str
    parameters: dict[str, Any] = field(hash=False)

    @property
    def key(self) -> str:
        parts = [self.model_id, self.operation, self.prompt, self.parameters]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ScriptedLM:
    """A model that says what it is told to, and remembers what it was asked.

    reply      : the text for each prompt: one text, a mapping from prompts, or a function of the prompt
    likelihood : log probability per token of an answer after a prompt: one number, a mapping from
                 (prompt, answer), or a function of both; by default a fixed number in [-8, 0) that looks random
    fails      : True, or a function of the prompt: raise `ModelError`
    calls      : every (operation, prompt) asked so far

    A mapping without the prompt raises `ModelError`. An answer counts its words as tokens.
    """

    def __init__(
        self,
        *,
        reply: str | Mapping[str, str] | Callable[[str], str] = "",
        likelihood: float | Mapping[tuple[str, str], float] | Callable[[str, str], float] | None = None,
        fails: bool | Callable[[str], bool] = False,
        model_id: str = "scripted",
    ) -> None:
        self.model_id = model_id
        self.calls: list[tuple[str, str]] = []
        self._reply = reply
        self._likelihood = likelihood if likelihood is not None else _looks_random
        self._fails = fails

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        """The scripted reply to each prompt, as it is: neither length nor `stop` is applied."""
        return [self._write(prompt) for prompt in prompts]

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        """The scripted likelihood of each answer times its words."""
        return [[self._judge(p, a) for a in row] for p, row in zip(prompts, answers, strict=True)]

    def _write(self, prompt: str) -> str:
        self._asked("generate", prompt)
        if isinstance(self._reply, str):
            return self._reply
        if callable(self._reply):
            return self._reply(prompt)
        if prompt not in self._reply:
            raise ModelError(f"scripted model: no reply to {prompt[:60]!r}")
        return self._reply[prompt]

    def _judge(self, prompt: str, answer: str) -> Score:
        self._asked("score", prompt)
        tokens = len(answer.split())
        if callable(self._likelihood):
            value = self._likelihood(prompt, answer)
        elif isinstance(self._likelihood, Mapping):
            if (prompt, answer) not in self._likelihood:
                raise ModelError(f"scripted model: no likelihood of {answer[:60]!r} after {prompt[:60]!r}")
            value = self._likelihood[prompt, answer]
        else:
            value = self._likelihood
        return Score(value * tokens if tokens or math.isnan(value) else 0.0, tokens)

    def _asked(self, operation: str, prompt: str) -> None:
        self.calls.append((operation, prompt))
        if self._fails(prompt) if callable(self._fails) else self._fails:
            raise ModelError("scripted model: told to fail")


def _looks_random(prompt: str, answer: str) -> float:
    digest = hashlib.sha256(f"{prompt}\0{answer}".encode()).digest()
    return -8.0 * (int.from_bytes(digest[:4], "big") + 1) / 2**32
