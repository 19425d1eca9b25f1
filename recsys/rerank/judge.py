"""What a model thinks of each candidate, and nothing else: one number each, which `rerank.fused` weighs against the
rest of what is known."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import polars as pl
from polars.exceptions import PolarsError
from safetensors import SafetensorError

from recsys.errors import BundleError, ModelError, SpecError
from recsys.protocols import LanguageModel, Score
from recsys.rerank.fusion import Array
from recsys.tables import Catalog, Profiles, Queries

# `LocalLM.model_id`, with or without an adapter.
_LOCAL = re.compile(r".*@([0-9a-f]{8}:(?:fp32|bf16|fp16)(?:\+lora-[0-9a-f]{8})?)")
LMSource = Callable[[], LanguageModel | None]


class Judge(Protocol):
    """A model with an opinion of candidates. A class that implements it has a `load(folder, lm)`: `lm` is asked for a
    language model; it is None where the fitted weights make nothing of the opinion, so that no model need be there.
    """

    kind: ClassVar[str]

    @property
    def model_id(self) -> str:
        """Whose opinion it is, for messages."""
        ...

    def prepare(self, heads: Sequence[pl.DataFrame], catalog: Catalog) -> None:
        """Called once at fit, before the opinions that the fusion learns from: what can be worked out ahead."""
        ...

    def opinions(
        self, heads: Sequence[pl.DataFrame], queries: Queries, profiles: Profiles, catalog: Catalog
    ) -> Iterable[Array]:
        """For each candidate list, in their order, an array (rows of the list,) float64: higher is better, of any
        scale (the fusion standardises). A number that is not finite means that the model failed on that list.

        A judge whose attribute `limits` is true gives (rows, 2) where a query has a request: beside the opinion
        the log probability that the candidate is what was asked for, which is added as it is.

        heads    : candidates of one query each, best first; each query once, among `queries`
        profiles : may lack a query

        Errors: `ModelError` when the model fails altogether; `UnknownItemError` for a candidate outside the catalog.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder`, which is made. Without pickle, as everywhere."""
        ...


# What reading a damaged file may raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SpecError, PolarsError, SafetensorError)


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into `BundleError`."""
    try:
        yield
    except _DAMAGE as error:
        raise BundleError(f"{path}: is not readable as {what} ({error})") from error


def same_model(one: str, other: str) -> bool:
    """Whether two `model_id`s are of one language model. One on this machine is known by the hash of its weights and by
    what it computes in, whatever its folder is called; one on a server by its name, wherever the server is."""
    parts = [_LOCAL.fullmatch(model_id) for model_id in (one, other)]
    if all(parts):
        return parts[0][1] == parts[1][1]  # type: ignore[index]  # both are there
    names = {model_id.rpartition("@")[0] or model_id for model_id in (one, other)}
    return not any(parts) and len(names) == 1


def same_lm(path: Path, fitted_with: str, lm: LMSource | None) -> LanguageModel:
    """The language model that a judge was fitted with; one that is never asked where `lm` is None.

    Errors: `BundleError` where it is another one or none: weights and priors are worth nothing with another.
    """
    if lm is None:
        return Unasked(fitted_with)
    model = lm()
    if model is None or not same_model(model.model_id, fitted_with):
        given = f"'{model.model_id}' is given" if model else "none is given"
        raise BundleError(f"{path}: was fitted with the language model '{fitted_with}', but {given}: refit")
    return model


@dataclass(frozen=True)
class Unasked:
    """Stands for a language model whose opinion counts nothing, so that its weights need not be there."""

    model_id: str

    def generate(self, prompts: Sequence[str], *, max_tokens: int = 128, stop: Sequence[str] = ()) -> list[str]:
        raise ModelError(f"{self.model_id} was not loaded")

    def score(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[Score]]:
        raise ModelError(f"{self.model_id} was not loaded")
