"""The shape of the project: what stands where, what imports what, and what never appears."""

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from recsys import errors

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recsys").rglob("*.py"))
PIPELINES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pipelines").rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))
CODE = MODULES + PIPELINES

TOP_LEVEL = {
    *{".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"},
    *{"constraints.txt", "pyproject.toml"},
    *{"data", "mlflow", "notebooks", "pipelines", "recsys", "tests"},
}
MOST_LINES, MOST_LINES_OF_A_TEST = 350, 400
MOST_BYTES = 1_000_000

# library -> the modules that alone may import it
DOORS = {
    "mlflow": ("recsys/registry.py",),
    "fastapi": ("recsys/serve/",),
    "uvicorn": ("recsys/serve/",),
    "faiss": ("recsys/candidates/index.py",),
    "implicit": ("recsys/candidates/als.py", "recsys/candidates/bpr.py"),
}
# Each takes from a tenth of a second to five: `recsys --help` must not load them.
HEAVY = {
    "peft",
    *{"torch", "transformers", "tokenizers", "lightning", "safetensors", "gguf", "openai"},
    *{"mlflow", "fastapi", "uvicorn", "implicit", "faiss", "matplotlib", "scipy", "sklearn", "pandas", "IPython"},
}


@cache
def tracked() -> list[str]:
    """Every file that git tracks or would track; skips where this is no git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), module)


def imports(module: str) -> set[str]:
    """Dotted names of everything that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def calls(module: str) -> list[tuple[str, ast.Call]]:
    """Every call, with the dotted name that is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]


def test_the_root_holds_only_what_the_design_names() -> None:
    assert {name.split("/")[0] for name in tracked()} <= TOP_LEVEL


def test_every_tracked_file_is_below_one_megabyte() -> None:
    assert {name: size for name in tracked() if (size := (ROOT / name).stat().st_size) >= MOST_BYTES} == {}


def test_no_output_data_or_key_is_tracked() -> None:
    folders = re.compile(r"(^|/)(out|mlruns|\.venv|data/raw|data/interim|data/bundles)/")
    endings = (".db", ".pem", ".key", ".gguf", ".safetensors", ".whl", ".npz", ".pkl")
    shipped = re.compile(r"recsys/rerank/trained/[a-z0-9-]+\.safetensors")  # with its recipe, its card and its hash
    found = [name for name in tracked() if folders.search(name) or name.endswith(endings)]
    assert [name for name in found if not shipped.fullmatch(name)] == []


def test_no_machine_path_or_registry_address_is_written_down() -> None:
    # Put together here, so that this file does not hold what it looks for.
    words = ["/ho" + "me/", "/ro" + "ot/", "/Us" + "ers/", "/wo" + "rk/", "/o" + "pt/", "fa" + "rm"]
    addresses = ["files.python" + "hosted", "py" + "pi.org/simple", "index-" + "url", "find-" + "links"]
    unwanted = re.compile("|".join(rf"(?<![\w.}}~-]){re.escape(word)}" for word in words + addresses))
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data:
            lines = data.decode("utf-8", errors="replace").splitlines()
            bad = [(number, line) for number, line in enumerate(lines, 1) if unwanted.search(line)]
            found += [f"{name}:{number}: {line.strip()[:120]}" for number, line in bad]
    assert found == []


def test_the_mlflow_folder_does_not_shadow_the_library() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))
    found = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('mlflow').origin)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(found).name == "__init__.py"
    assert ROOT / "mlflow" not in Path(found).parents


def test_a_module_fits_in_the_head() -> None:
    def long(modules: list[str], most: int) -> list[str]:
        return [m for m in modules if len((ROOT / m).read_text(encoding="utf-8").splitlines()) > most]

    assert long(MODULES, MOST_LINES) == []
    assert long(TESTS, MOST_LINES_OF_A_TEST) == []


def test_a_module_says_what_it_is_for() -> None:
    assert [module for module in MODULES + PIPELINES if not ast.get_docstring(tree(module))] == []


def test_nothing_is_pickled_and_no_strange_code_is_run() -> None:
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert {module: found for module in CODE if (found := libraries(module) & picklers)} == {}
    found = []
    for module in CODE:
        for name, call in calls(module):
            trusting = [
                keyword.arg
                for keyword in call.keywords
                if keyword.arg in ("allow_pickle", "trust_remote_code", "weights_only")
                and ast.unparse(keyword.value) != str(keyword.arg == "weights_only")
            ]
            if name in ("torch.load", "torch.save", "eval", "exec") or trusting:
                found.append(f"{module}:{call.lineno}: {name} {trusting}")
    assert found == []


def test_a_library_with_one_door_is_imported_there_only() -> None:
    elsewhere = [
        f"{module}: {name}"
        for module in CODE
        for name, doors in DOORS.items()
        if name in libraries(module) and not module.startswith(doors)
    ]
    assert elsewhere == []


def test_the_package_imports_no_pipeline_test_or_notebook() -> None:
    others = {"pipelines", "tests", "notebooks", "conftest", "contracts", "checks", "pytest"}
    assert {module: found for module in MODULES if (found := libraries(module) & others)} == {}


def test_a_module_keeps_no_state_and_sets_nothing_up() -> None:
    """At the top of a module stand definitions and constants: no `global`, no call for its effect alone."""
    found = []
    for module in MODULES:
        found += [f"{module}:{node.lineno}: global" for node in ast.walk(tree(module)) if isinstance(node, ast.Global)]
        for node in tree(module).body:
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
                found.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
    # Two exceptions: thread settings must come before numpy and torch are loaded; commands are wired to their app.
    allowed = re.compile(
        r"recsys/__init__\.py:\d+: _os\.environ\.setdefault|recsys/cli/__init__\.py:\d+: (profile\.)?app\."
    )
    assert [line for line in found if not allowed.match(line)] == []


def test_no_exception_is_swallowed_and_nothing_is_printed_in_passing() -> None:
    found = []
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or isinstance(node.body[0], ast.Pass)):
                found.append(f"{module}:{node.lineno}: an exception is swallowed")
        if not module.startswith("recsys/cli/"):
            found += [f"{module}:{call.lineno}: print" for name, call in calls(module) if name == "print"]
    assert found == []


def test_the_command_line_starts_without_heavy_libraries() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import json, sys, recsys.cli; print(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {name.split(".")[0] for name in json.loads(loaded.stdout)}
    assert "recsys" in modules
    assert modules & HEAVY == set()


def test_every_error_belongs_to_the_drawn_tree() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert all(issubclass(value, errors.RecsysError) for value in classes.values())
    assert all(value.__doc__ for value in classes.values())
    drawn = re.findall(r"^(?:│   )?(?:[├└]── )?([A-Z]\w*Error)\b", str(errors.__doc__), flags=re.MULTILINE)
    assert sorted(drawn) == sorted(classes)


def test_no_error_class_stands_outside_the_tree() -> None:
    outside = [
        f"{module}: {node.name}"
        for module in CODE
        if module != "recsys/errors.py"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")  # a private signal that its own module catches
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    ]
    assert outside == []


def test_a_pipeline_is_a_short_script_that_nobody_imports() -> None:
    assert PIPELINES
    for module in PIPELINES:
        text = (ROOT / module).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 100, module
        assert 'if __name__ == "__main__":' in text, module
    names = {"pipelines", *(Path(module).stem for module in PIPELINES)}
    assert [module for module in CODE + TESTS if libraries(module) & names] == []


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    }
    own = {"recsys", *(Path(module).stem for module in TESTS)}
    part_of = {"faiss": "faiss-cpu", "pydantic_core": "pydantic", "starlette": "fastapi"}
    imported = {name for module in CODE + TESTS for name in libraries(module) - own - sys.stdlib_module_names}
    used = {part_of.get(name, name.replace("_", "-")) for name in imported}
    assert used - declared == set()
    # Tools that are run, what another library needs at run time, and the other one of two that exclude each other.
    run = {"import-linter", "ipykernel", "mypy", "pytest-timeout", "pytest-xdist", "ruff"}
    assert declared - used == run | {"accelerate", "faiss-gpu"}


def test_the_constraints_pin_every_dependency_and_hold_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)] == []
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {name for name in project["dependencies"] if name not in pinned} == set()


def test_the_import_contract_covers_every_layer_and_door() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = contracts[0]
    assert layers["type"] == "layers"
    assert layers["exhaustive"]
    protected = {name for contract in contracts[1:] for name in contract.get("protected_modules", [])}
    assert protected == {"mlflow", "fastapi", "faiss", "implicit"}
