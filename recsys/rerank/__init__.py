"""Rerankers: the same candidates in a better order, by a model's reading of the user."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from recsys.errors import BundleError
from recsys.rerank.backbone import WeightsSource, no_weights
from recsys.rerank.choosing import PairwiseConfig, PairwiseJudge, SetwiseConfig, SetwiseJudge
from recsys.rerank.endpoint import EndpointConfig, EndpointJudge
from recsys.rerank.fallback import Fallback, Identity, IdentityConfig
from recsys.rerank.fused import Fused
from recsys.rerank.hearing import EncoderSource, no_encoder
from recsys.rerank.judge import Judge, LMSource
from recsys.rerank.listwise import ListwiseConfig, ListwiseJudge
from recsys.rerank.packed import PackedConfig, PackedJudge
from recsys.rerank.sequence import SequenceConfig, SequenceJudge
from recsys.rerank.student import StudentConfig, StudentJudge

__all__ = [
    "AnyReranker",
    "AnyRerankerConfig",
    "EndpointConfig",
    "Fallback",
    "Fused",
    "Identity",
    "IdentityConfig",
    "ListwiseConfig",
    "PackedConfig",
    "PairwiseConfig",
    "SequenceConfig",
    "SetwiseConfig",
    "StudentConfig",
    "load_reranker",
]

AnyRerankerConfig = Annotated[
    SequenceConfig
    | StudentConfig
    | PackedConfig
    | ListwiseConfig
    | PairwiseConfig
    | SetwiseConfig
    | EndpointConfig
    | IdentityConfig,
    Field(discriminator="kind"),
]
AnyReranker = Fused | Identity

JUDGES: Mapping[str, Callable[[Path, LMSource | None], Judge]] = {
    "packed": PackedJudge.load,
    "listwise": ListwiseJudge.load,
    "pairwise": PairwiseJudge.load,
    "setwise": SetwiseJudge.load,
    "endpoint": EndpointJudge.load,
}


def load_reranker(
    kind: str, path: Path, lm: LMSource, encoder: EncoderSource = no_encoder, weights: WeightsSource = no_weights
) -> AnyReranker:
    """Read a saved reranker of a known kind; `lm` is asked for a language model only where its opinion counts,
    `encoder` for a text encoder when the first text is read, and `weights` for those of a backbone.

    Errors: `BundleError` when the folder holds something else, or the language model is not the one it needs.
    """
    if kind == "identity":
        return Identity.load(path)
    if kind == SequenceJudge.kind:
        return Fused.load(path, kind, lambda folder, _: SequenceJudge.load(folder, encoder, weights), lm)
    if kind == StudentJudge.kind:
        return Fused.load(path, kind, lambda folder, _: StudentJudge.load(folder, encoder), lm)
    if kind in JUDGES:
        return Fused.load(path, kind, JUDGES[kind], lm)
    raise BundleError(f"{path}: there is no reranker of kind '{kind}'")
