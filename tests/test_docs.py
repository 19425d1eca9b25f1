"""The written reference of a recipe follows the models that read it."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recsys.candidates import (
    AlsConfig,
    BprConfig,
    ContentConfig,
    EaseConfig,
    FusionConfig,
    ItemKnnConfig,
    PopularConfig,
    SequentialConfig,
    TransitionsConfig,
    TwoTowerConfig,
)
from recsys.profiles.privacy import Sensitive
from recsys.rerank import (
    EndpointConfig,
    IdentityConfig,
    ListwiseConfig,
    PackedConfig,
    PairwiseConfig,
    SequenceConfig,
    SetwiseConfig,
    StudentConfig,
)
from recsys.spec import Spec

README = (Path(__file__).parents[1] / "pipelines" / "README.md").read_text(encoding="utf-8")
SEVERAL = {
    "generator": (
        FusionConfig,
        TransitionsConfig,
        PopularConfig,
        AlsConfig,
        BprConfig,
        EaseConfig,
        ItemKnnConfig,
        ContentConfig,
        SequentialConfig,
        TwoTowerConfig,
    ),
    "reranker": (
        IdentityConfig,
        SequenceConfig,
        StudentConfig,
        PackedConfig,
        ListwiseConfig,
        PairwiseConfig,
        SetwiseConfig,
        EndpointConfig,
    ),
}
SECTIONS = [name for name, field in Spec.model_fields.items() if field.default_factory is not None]


def kinds(union: Any) -> list[type[BaseModel]]:
    """The models of a union, however its parts are nested and annotated."""
    parts = [part for part in get_args(union) if not isinstance(part, FieldInfo)]
    return [kind for part in parts for kind in kinds(part)] if parts else [union]


def models_of(section: str) -> tuple[type[BaseModel], ...]:
    return SEVERAL.get(section) or (Spec.model_fields[section].annotation,)  # type: ignore[return-value]


def keys_of(model: type[BaseModel]) -> set[tuple[str, str]]:
    """Key and default, as the README's tables write them."""
    fields = model.model_construct().__dict__
    return {(name, written(fields[name])) for name in model.model_fields if name not in SECTIONS}


def written(value: Any) -> str:
    if isinstance(value, Sensitive):
        return "the packaged list" if value == Sensitive() else "?"
    if isinstance(value, BaseModel):
        return f'`{{"kind": {json.dumps(value.kind)}}}`'  # type: ignore[attr-defined]
    if isinstance(value, tuple) and isinstance(value[0], BaseModel):
        return "five sources" if len(value) == 5 else "?"
    return "none" if value is None else f"`{json.dumps(value)}`"


def tables(text: str) -> list[set[tuple[str, str]]]:
    """The first two cells of the rows of each table."""
    found = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    return [set(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, flags=re.MULTILINE)) for table in found]


def part_of(heading: str) -> str:
    return README.split(f"\n### {heading}")[1].split("\n### ")[0]


def test_the_top_level_of_a_recipe_is_documented() -> None:
    assert tables(part_of("Top level")) == [keys_of(Spec)]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_has_a_table_of_all_keys_and_true_defaults_for_each_kind(section: str) -> None:
    assert tables(part_of(f"`[{section}]`")) == [keys_of(model) for model in models_of(section)]


@pytest.mark.parametrize("section", SEVERAL)
def test_no_kind_is_left_out(section: str) -> None:
    assert set(SEVERAL[section]) == set(kinds(Spec.model_fields[section].annotation))
