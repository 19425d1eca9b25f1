"""The notebooks import the package, define nothing, are kept without outputs, and run on the small world."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    found = [path.name for path in NOTEBOOKS]
    names = ["10_first_look", "20_candidates", "30_profiles", "30_reranker", "40_ab_readout", "50_offpolicy"]
    assert found == [f"{name}.ipynb" for name in names]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    assert [cell.outputs for cell in code(path) if cell.outputs or cell.execution_count] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_the_package_and_defines_nothing(path: Path) -> None:
    nodes = [node for cell in code(path) for node in ast.walk(ast.parse(cell.source))]
    assert any(isinstance(node, ast.ImportFrom) and str(node.module).startswith("recsys") for node in nodes)
    assert not [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]


# Alone on a core the longest takes two minutes; where others compute beside it, several times that.
@pytest.mark.timeout(1800)
@pytest.mark.weights
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_small_world(
    path: Path, encoder: Any, weights_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("RECSYS_CACHE_DIR", str(weights_settings.cache_dir))
    monkeypatch.setenv("RECSYS_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": path.parent}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
