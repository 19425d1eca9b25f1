"""What all judges have in common that put the user and the candidates into words for a language model."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from tqdm import tqdm

from recsys.data.split import Questions
from recsys.errors import BundleError, ModelError, SpecError
from recsys.lm.usage import context_of, count, estimate, usage_of
from recsys.protocols import LanguageModel, Score
from recsys.rerank.budget import Budget
from recsys.rerank.evidence import Evidence
from recsys.rerank.features import QUIET_UP_TO, texts_of
from recsys.rerank.fused import Fused, FusedConfig
from recsys.rerank.fusion import Array
from recsys.rerank.judge import LMSource, readable, same_lm
from recsys.rerank.prompt import CONTEXT_CHARS, TITLE_CHARS, About, Prompt, plain, shortened
from recsys.settings import Settings
from recsys.tables import Candidates, Catalog, Id, InteractionLog, Profiles, Queries

log = logging.getLogger(__name__)

T = TypeVar("T")
Condition = Literal["request", "recent", "profile", "evidence", "persona", "vectors"]
_FILE = "judge.json"
_TEXT_CHARS = 300  # of a candidate, where its text is shown
_BLOCK = 16  # users that are judged together
_TURN = 64  # tokens kept free for what a chat puts around a prompt


class PromptedConfig(FusedConfig):
    """What every judge that writes prompts is built with.

    conditions : what the model is told of a user; any of these, also none
        request: the query's own words. recent: the last titles of the history. profile: the profile's text.
        evidence: those of the user's own past items that are nearest to the candidates, by the catalog's text vectors
        where a generator reads them, else by the words that texts share. persona: what is said of people like the
        user, where profiles.personas tells some apart. vectors: the history's items as soft tokens (`soft`), for a
        model that is tuned, and a prompt with a place for them ("pmi-v2")
    recent     : how many last titles
    evidence   : how many near ones, beside those
    candidate  : a candidate is shown by its title or by its text, cut at 300 characters
    context    : tokens that a prompt and its answer may take; not set: what a local model takes, no limit for others.
        What is too long loses history first, then evidence, persona, soft tokens, then profile; a list that alone is
        too long is an error
    max_tokens, max_cost : a budget for as long as the reranker is loaded, in tokens and in the currency of the prices.
        When it is used up, the rest keeps the candidates' order, and the log says how many
    price_in, price_out  : of a million tokens sent and received
    """

    sections: ClassVar[tuple[str, ...]]

    conditions: tuple[Condition, ...] = ("request", "recent", "profile")
    recent: int = Field(default=10, ge=0, le=100)
    evidence: int = Field(default=5, ge=0, le=100)
    candidate: Literal["title", "text"] = "title"
    prompt: str
    context: int | None = Field(default=None, ge=64)
    max_tokens: int | None = Field(default=None, ge=1)
    max_cost: float | None = Field(default=None, gt=0)
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise ValueError("max_cost needs price_in and price_out")
        return self

    @model_validator(mode="after")
    def _learned(self) -> Self:
        if "vectors" in self.conditions and getattr(self, "adapter", None) is None:
            raise ValueError("conditions: 'vectors' are learned: they need kind = \"packed\" with reranker.adapter")
        return self

    def judge(self, prompt: Prompt, lm: LanguageModel, evidence: Evidence) -> "Prompted":
        """The judge of this config. Errors: `SpecError` where the model cannot do what the config wants of it."""
        raise NotImplementedError

    def read_prompt(self) -> Prompt:
        """The prompt. Errors: `SpecError` where it is unknown, or has no place for what the conditions name."""
        prompt = Prompt.read(self.prompt, self.sections)
        for condition in self.conditions:
            if not prompt.says(condition):
                raise SpecError(f"reranker.conditions: prompt '{self.prompt}' has no place for '{condition}'")
        return prompt

    def fit(
        self,
        questions: Questions,
        candidates: Candidates,
        profiles: Profiles,
        catalog: Catalog,
        log: InteractionLog,
        lm: LanguageModel,
        *,
        seed: int,
        settings: Settings | None = None,
    ) -> Fused:
        """See `FusedConfig.fuse`. settings : where a model that is trained keeps its unfinished state; None: nowhere.

        Errors: `ModelError` when the model fails; `SpecError` for a prompt that is unknown or has no place for what the
        conditions name, and for a model that cannot do what the config wants of it."""
        prompt = self.read_prompt()
        if "persona" in self.conditions and "persona" not in profiles.frame.columns:
            raise SpecError("reranker.conditions: 'persona' needs profiles.personas to say how many to tell apart")
        evidence = Evidence.of(catalog) if "evidence" in self.conditions else Evidence()
        judge, left, told = self.judge(prompt, lm, evidence).taught(
            questions, candidates, profiles, catalog, log, seed=seed, settings=settings
        )
        if left is not questions:
            own = candidates.frame.join(left.queries.frame, on="query_id", how="semi", maintain_order="left")
            candidates = Candidates(own)
        fused = self.fuse(judge, left, candidates, profiles, catalog, log, seed=seed)
        return replace(fused, report={**fused.report, **told})


@dataclass(frozen=True)
class Case:
    """One candidate list in words: who asks, and what is said of each candidate."""

    about: About
    items: Sequence[str]
    seed: int
    """Of the query: what is random for it is the same in any batch."""


@dataclass(frozen=True)
class Prompted:
    """A judge that asks a language model in words. Implements `rerank.judge.Judge`, but for `judge`."""

    kind: ClassVar[str]
    config_type: ClassVar[type[PromptedConfig]]

    config: PromptedConfig
    prompt: Prompt
    lm: LanguageModel
    evidence: Evidence = field(default_factory=Evidence)
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        object.__setattr__(self, "budget", Budget.of(self.lm, c.max_tokens, c.max_cost, (c.price_in, c.price_out)))

    @property
    def model_id(self) -> str:
        """The language model's."""
        return self.lm.model_id

    def judge(self, cases: Sequence[Case]) -> list[Array | None]:
        """An opinion of each case's candidates, two or more; None where the budget does not reach, or the model says
        nothing finite."""
        raise NotImplementedError

    def fits(self, case: Case, about: About, room: int) -> bool:
        """Whether the longest prompt of a case would fit into `room` tokens if it said this of the user."""
        raise NotImplementedError

    def prepare(self, heads: Sequence[pl.DataFrame], catalog: Catalog) -> None:
        """Nothing."""

    def taught(
        self,
        questions: Questions,
        candidates: Candidates,
        profiles: Profiles,
        catalog: Catalog,
        known: InteractionLog,
        *,
        seed: int,
        settings: Settings | None,
    ) -> tuple[Self, Questions, dict[str, Any]]:
        """The judge after it has learned what there is to learn, the questions that it did not learn from, and a
        report. known : the events before the questions. Here: nothing."""
        return self, questions, {}

    def opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterator[Array]:
        """See `Judge.opinions`; the users of a block are asked for at the same time.

        Errors: also `ModelError` when the budget is used up before the first, or a list alone is too long.
        """
        if heads and self.budget.used_up:
            raise ModelError(f"{self.kind} reranker: its budget of {self.budget} is used up")
        quiet = len(heads) <= QUIET_UP_TO or None
        unpaid = cut = 0
        refused = self.budget.refused
        with tqdm(total=len(heads), desc="LM reads", unit="user", leave=None, disable=quiet) as bar:
            for at in range(0, len(heads), _BLOCK):
                cases = self.cases(heads[at : at + _BLOCK], queries, profiles, catalog)
                fitting = [self.fitting(case) for case in cases]
                cut += sum(a is not b for a, b in zip(cases, fitting, strict=True))
                some = [case for case in fitting if len(case.items) > 1]
                found = iter(self.judge(some) if some else [])
                for case in fitting:
                    opinion = next(found) if len(case.items) > 1 else np.zeros(len(case.items))
                    unpaid += opinion is None
                    yield np.full(len(case.items), np.nan) if opinion is None else opinion
                bar.update(len(cases))
        if cut:
            log.warning(
                "%d of %d users: history cut to fit the prompt into %d characters and the model's context",
                cut,
                len(heads),
                CONTEXT_CHARS,
            )
        if unpaid and self.budget.refused > refused:
            log.warning("%d of %d lists not judged: the budget of %s is used up", unpaid, len(heads), self.budget)

    def cases(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> list[Case]:
        """The candidate lists in words, as far as the conditions go.

        Errors: `UnknownItemError` naming the first candidate that the catalog lacks.
        """
        asked = [head["query_id"][0] for head in heads]
        own = queries.frame.filter(pl.col("query_id").is_in(asked)).select("query_id", "history", "request")
        rows = {query_id: (history, request) for query_id, history, request in own.iter_rows()}
        texts = dict(profiles.frame.select("query_id", "text").iter_rows())
        told = set(self.config.conditions)
        like_them: dict[Id, str] = {}
        if "persona" in told and "persona" in profiles.frame.columns:
            like_them = dict(profiles.frame.select("query_id", "persona").iter_rows())
        titles = texts_of(catalog, heads, own, "title")
        shown = titles if self.config.candidate == "title" else texts_of(catalog, heads, own, "text")
        pasts = [[item for item in rows[query_id][0] if item in titles] for query_id in asked]
        recent = [past[max(len(past) - self.config.recent, 0) :] if "recent" in told else [] for past in pasts]
        near: list[list[Id]] = [[] for _ in pasts]
        if "evidence" in told:
            older = [[item for item in past if item not in set(last)] for past, last in zip(pasts, recent, strict=True)]
            near = self.evidence.nearest(older, [h["item_id"].to_list() for h in heads], self.config.evidence, catalog)
        return [
            Case(
                About(
                    texts.get(query_id, "") if "profile" in told else "",
                    [titles[item] for item in last],
                    [titles[item] for item in close],
                    rows[query_id][1] if "request" in told else "",
                    like_them.get(query_id, ""),
                    self.vectors(rows[query_id][0]) if "vectors" in told else "",
                ),
                [shown[item] for item in head["item_id"]],
                int.from_bytes(str(query_id).encode(), "big"),
            )
            for query_id, head, last, close in zip(asked, heads, recent, near, strict=True)
        ]

    def vectors(self, history: Sequence[Id]) -> str:
        """A history as soft tokens, where the model has some."""
        return ""

    @property
    def longest(self) -> int:
        """Characters that are shown of a candidate."""
        return TITLE_CHARS if self.config.candidate == "title" else _TEXT_CHARS

    def longest_of(self, items: Sequence[str], n: int = 1) -> list[str]:
        """The `n` candidates that take most room as they are shown, by bytes: what is no English has more tokens."""
        return sorted(items, key=lambda text: len(plain(text, self.longest).encode()))[-n:]

    def within(self, text: str, room: int) -> bool:
        """Whether a text has at most so many tokens; no token is shorter than a byte."""
        return len(text.encode()) <= room or count(self.lm, text) <= room

    def write(self, prompts: Sequence[str], most: int, options: Sequence[str] = ()) -> list[str | None]:
        """The model's answers, of at most so many tokens; one of the options where there are any; None unpaid."""
        lm: Any = self.lm
        ask: Callable[[Sequence[str]], Sequence[str]] = (
            (lambda texts: lm.choose(texts, options))
            if options
            else (lambda texts: lm.generate(texts, max_tokens=most))
        )
        return self.paid(prompts, [(estimate(text), most) for text in prompts], ask)

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score] | None]:
        """The model's scores of the answers to each prompt; None unpaid."""
        again = usage_of(self.lm) is not None  # a server reads the prompt anew with each answer, and writes a token
        calls = [
            (estimate(text) * (1 + again * len(row)) + sum(estimate(answer) for answer in row), again * (1 + len(row)))
            for text, row in zip(prompts, answers, strict=True)
        ]
        return self.paid(prompts, calls, lambda texts: self.lm.score(texts, answers[: len(texts)]))

    def paid(
        self,
        prompts: Sequence[str],
        calls: Sequence[tuple[int, int]],
        ask: Callable[[Sequence[str]], Sequence[T]],
    ) -> list[T | None]:
        n = self.budget.affordable(calls)
        self.budget.refused += len(calls) - n
        found = ask(prompts[:n]) if n else []
        self.budget.note(sum(sent for sent, _ in calls[:n]), sum(received for _, received in calls[:n]))
        return [*found, *[None] * (len(prompts) - n)]

    def fitting(self, case: Case) -> Case:
        """The case with as much of the user as the model's context holds. Errors: `ModelError` for a list too long."""
        limit = self.config.context or context_of(self.lm)
        room = sys.maxsize if limit is None else limit - _TURN
        about = shortened(case.about, lambda said: self.prompt.bounded(said) and self.fits(case, said, room))
        if about is None:
            raise ModelError(
                f"{self.lm.model_id}: {len(case.items)} candidates do not fit into its context of {limit} tokens: "
                "show fewer at once (reranker.window, .width or .depth), or titles only"
            )
        return case if about is case.about else Case(about, case.items, case.seed)

    def save(self, folder: Path) -> None:
        """Write JSON, and the evidence's vectors."""
        facts = {
            "config": self.config.model_dump(mode="json"),
            "prompt": {"id": self.prompt.prompt_id, "text": self.prompt.text},
            "lm": self.lm.model_id,
        }
        folder.mkdir()
        (folder / _FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
        self.evidence.save(folder)

    @classmethod
    def load(cls, folder: Path, lm: LMSource | None) -> Self:
        """Read the folder. Errors: `BundleError` where it is damaged or was fitted with another language model."""
        with readable(folder, f"a judge of kind '{cls.kind}'"):
            facts = json.loads((folder / _FILE).read_text("utf-8"))
            config = cls.config_type.model_validate(facts["config"])
            said = facts["prompt"]
            prompt = Prompt.parse(str(said["id"]).partition("@")[0], said["text"], config.sections)
            fitted_with = str(facts["lm"])
        if prompt.prompt_id != said["id"]:
            raise BundleError(f"{folder / _FILE}: the prompt's text is not that of {said['id']}")
        return cls(config, prompt, same_lm(folder, fitted_with, lm), Evidence.load(folder))
