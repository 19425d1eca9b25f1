"""Rerankers: the same candidates in a better order, by a language model's reading of the user."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from recsys.errors import BundleError
from recsys.protocols import LanguageModel
from recsys.rerank.fallback import Fallback, Identity, IdentityConfig
from recsys.rerank.packed import PackedConfig, PackedReranker

__all__ = [
    "AnyReranker",
    "AnyRerankerConfig",
    "Fallback",
    "Identity",
    "IdentityConfig",
    "PackedConfig",
    "PackedReranker",
    "load_reranker",
]

AnyRerankerConfig = Annotated[PackedConfig | IdentityConfig, Field(discriminator="kind")]
AnyReranker = PackedReranker | Identity


def load_reranker(kind: str, path: Path, lm: Callable[[], LanguageModel | None]) -> AnyReranker:
    """Read a saved reranker of a known kind; `lm` is asked for a language model only where its opinion counts.

    Errors: `BundleError` when the folder holds something else, or the language model is not the one it needs.
    """
    if kind == "identity":
        return Identity.load(path)
    if kind == "packed":
        return PackedReranker.load(path, lm)
    raise BundleError(f"{path}: there is no reranker of kind '{kind}'")
