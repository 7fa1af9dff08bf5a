"""The shape of the house: which package may import which, and that every public name is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED: dict[str, set[str]] = {
    "tokenizers_av": set(),
    "lm": {"tokenizers_av"},
    "tasks": {"tokenizers_av", "lm"},
    "train": {"tokenizers_av", "lm", "tasks"},
}
HEAVY = {"torch", "transformers", "av", "accelerate", "tensorboard", "vector_quantize_pytorch"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_downwards(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no files found for {package}"
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            used = {n.split(".")[0] for n in names} & ALLOWED.keys()
            assert used <= ALLOWED[package] | {package}, f"{path} imports {sorted(used)}"


@pytest.mark.parametrize(
    "name",
    ["tokenizers_av", "tokenizers_av.video", "tokenizers_av.audio", "tokenizers_av.text", "lm", "tasks", "train.data"],
)
def test_public_names_exist_and_are_sorted(name: str) -> None:
    module = importlib.import_module(name)
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("script", sorted((ROOT / "tests/benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_benchmarks_import_is_there(script: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in nodes:
        if node.module is not None and node.module.split(".")[0] in ALLOWED:
            module = importlib.import_module(node.module)
            for name in node.names:
                there = hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")
                assert there, f"{node.module} has no {name.name}"


@pytest.mark.parametrize("command", ["tasks.cli", "train.cli"])
def test_help_needs_nothing_heavy(command: str) -> None:
    code = f"import sys; from {command} import main; assert main(['--help']) == 0; print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ast.literal_eval(result.stdout.splitlines()[-1])) & HEAVY
    assert not loaded, f"{command} --help imports {sorted(loaded)}"
