"""Imports go one way, scripts to service to models, and serving never reaches what only training needs."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from scripts.cli import VERBS

ROOT = Path(__file__).parent.parent
LAYERS = {"models": {"models"}, "service": {"models", "service"}, "scripts": {"models", "service", "scripts"}}
TRAINING = ["torch", "onnx", "onnxscript", "matplotlib", "pandas", "scipy", "cv2", "sklearn", "yaml"]
SERVING = ["service.app", "service.__main__", "scripts.cli"]
_TRAIN = ("train", "audit", "demo-detect")
VERB_MODULES = sorted({target.split(":")[0] for verb, (target, _) in VERBS.items() if verb not in _TRAIN})
WITHOUT_EXTRA = [name for name in VERB_MODULES if name != "scripts.apply"]  # which imports readers of boxes when asked

Sources = Mapping[str, str]
Imports = Mapping[str, list[str]]


@pytest.fixture(scope="module")
def project() -> Imports:
    """What each module of the project imports."""
    files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return read_imports({name: path.read_text(encoding="utf-8") for name, path in zip(names, files, strict=True)})


def read_imports(sources: Sources) -> Imports:
    """Module name to source, made module name to what it imports."""
    return {name: list(_imports_of(source, sources)) for name, source in sources.items()}


def _imports_of(source: str, known: Sources) -> Iterator[str]:
    """Every module that a source imports, wherever in it: `from a import b` is a.b where that is a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (
                part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_training(module: str) -> bool:
    return module.split(".")[0] in TRAINING or module == "models.nets" or module.startswith("models.nets.")


def wrong_imports(imports: Imports) -> list[str]:
    """`importer -> imported` for each import that a rule forbids."""
    found = []
    for name, targets in imports.items():
        layer = name.split(".")[0]
        for target in targets:
            upward = target.split(".")[0] in LAYERS and target.split(".")[0] not in LAYERS[layer]
            heavy = layer != "scripts" and not is_training(name) and is_training(target)
            if target.startswith(".") or upward or heavy:
                found.append(f"{name} -> {target}")
    return sorted(found)


def reached(start: str, imports: Imports) -> dict[str, list[str]]:
    """Every module that importing `start` can reach, with the way to it."""
    ways, left = {start: [start]}, [start]
    while left:
        name = left.pop()
        for target in imports.get(name, []):
            if target not in ways:
                ways[target] = [*ways[name], target]
                left.append(target)
    return ways


def cycles(imports: Imports) -> list[list[str]]:
    """A way from a module back to itself, for each module on a cycle."""
    found = []
    for name, targets in imports.items():
        for target in targets:
            way = reached(target, imports).get(name)
            if way is not None:
                found.append([name, *way])
    return found


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_imports_go_one_way_and_only_nets_import_torch(project: Imports) -> None:
    assert {"models.image", "models.nets.export", "service.app", "scripts.data.build"} <= set(project)
    assert wrong_imports(project) == []


def test_nothing_imports_itself_in_a_circle(project: Imports) -> None:
    assert cycles(project) == []


@pytest.mark.parametrize("start", [*SERVING, *WITHOUT_EXTRA])
def test_a_verb_that_does_not_train_reaches_nothing_that_only_training_needs(start: str, project: Imports) -> None:
    ways = reached(start, project)
    assert [" -> ".join(way) for target, way in ways.items() if is_training(target)] == []
    assert len(ways) > 5


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import torch.nn as nn",
        "from models.nets.registry import build_net",
        "from models.nets import registry",
        "from models import nets",
        "import models.nets",
        "def late():\n    from models.nets.registry import build_net",
        "class Late:\n    def load(self):\n        import onnx",
        "if False:\n    import pandas",
        "import importlib\nimportlib.import_module('models.nets.export')",
        "__import__('sklearn')",
        "from . import card",
        "from .card import ModelCard",
        "from service.state import log",
        "from scripts import cli",
        "try:\n    import scripts.cli\nexcept ImportError:\n    pass",
    ],
)
def test_the_rules_catch_a_wrong_import(source: str) -> None:
    assert len(wrong_imports(read_imports({"models.nets": "", "scripts.cli": "", "models.fake": source}))) == 1


def test_the_rules_catch_what_service_may_not_import() -> None:
    for source in ("import scripts.cli", "def late():\n    import models.nets.export", "from scipy import stats"):
        assert len(wrong_imports(read_imports({"service.fake": source}))) == 1


@pytest.mark.parametrize(("module", "source"), [("models.nets.fake", "import torch"), ("scripts.fake", "import torch")])
def test_the_rules_allow_torch_where_training_is(module: str, source: str) -> None:
    assert wrong_imports(read_imports({module: source})) == []


def test_a_circle_through_a_function_is_found() -> None:
    ring = {
        "models.a": "import models.b",
        "models.b": "def late():\n    from models import c",
        "models.c": "import models.a",
    }
    assert len(cycles(read_imports(ring))) == 3
    assert cycles(read_imports({"models.a": "import models.b", "models.b": "import json"})) == []


def test_a_way_to_torch_through_other_modules_is_found() -> None:
    chain = {"service.a": "import models.b", "models.b": "def late():\n    import models.nets.c", "models.nets.c": ""}
    assert reached("service.a", read_imports(chain))["models.nets.c"] == ["service.a", "models.b", "models.nets.c"]


def test_serving_starts_where_training_is_not_installed() -> None:
    code = f"""
import importlib, sys
for name in {TRAINING}:
    sys.modules[name] = None
for name in {[*SERVING, *VERB_MODULES]}:
    importlib.import_module(name)
"""
    found = python(code)
    assert found.returncode == 0, found.stderr


def test_what_is_not_installed_is_indeed_missed() -> None:
    found = python("import sys; sys.modules['torch'] = None; import models.nets.registry")
    assert found.returncode == 1
    assert "torch" in found.stderr


def test_importing_the_app_loads_nothing_of_training() -> None:
    found = python("import service.app", "-X", "importtime")
    assert found.returncode == 0, found.stderr
    loaded = {line.rsplit("|", 1)[1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert {"service.app", "models.card", "onnxruntime"} <= loaded
    assert sorted(name for name in loaded if is_training(name)) == []


@pytest.mark.parametrize("verb", ["train", "audit"])
def test_a_wrong_flag_of_a_verb_that_trains_is_told_without_loading_torch(verb: str) -> None:
    found = python(f"""
import sys
from scripts.cli import main
print(main([{verb!r}, "data", "--out", "out", "--wrong"]), "torch" in sys.modules)
""")
    assert found.stdout.split() == ["2", "False"], found.stderr
    assert "--wrong" in found.stderr
