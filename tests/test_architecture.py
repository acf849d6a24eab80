"""The floor plan: which room may import which, and what no module may do."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"cascade": {"cascade", "stages", "eval"}, "stages": {"stages"}, "eval": {"eval"}}
LEVELS = [  # inside stages: a module may import those of its own or a later line, but base and sr3 not each other
    {"base", "sr3", "regression", "training", "published"},
    {"stage"},
    {"consistent", "tiling"},
    {"sampling", "denoiser", "conditioning", "unet", "cpu_convolutions"},
    {"noise", "saved"},
]


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level_of(module: str) -> int | None:
    return next((i for i, names in enumerate(LEVELS) if module in names), None)


def test_rooms_import_only_what_they_may():
    for path in modules():
        room = path.relative_to(ROOT).parts[0]
        wrong = {name.split(".")[0] for name in imports(path)} & ROOMS.keys() - ROOMS[room]
        assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


def test_inside_stages_imports_point_down():
    for path in sorted((ROOT / "stages").rglob("*.py")):
        module = path.relative_to(ROOT / "stages").parts[0].removesuffix(".py")
        level = level_of(module)
        if level is None:
            assert module == "__init__", f"stages/{module} has no place in the floor plan"
            continue
        for name in imports(path):
            parts = name.split(".")
            other = level_of(parts[1]) if parts[0] == "stages" and len(parts) > 1 else None
            assert other is None or other >= level, f"stages/{module} may not import {name}"
            assert {module, parts[-1]} != {"base", "sr3"} or parts[0] != "stages", "base and sr3 may not import each other"


@pytest.mark.parametrize(
    "forbidden", ["pickle.load", "yaml.load(", "trust_remote_code=True", "allow_pickle=True", "weights_only=False"]
)
def test_nothing_executes_what_a_file_says(forbidden):
    for path in modules():
        code = ast.unparse(ast.parse(path.read_text()))
        assert forbidden not in code, f"{path.relative_to(ROOT)} contains {forbidden}"


def test_the_modules_of_saved_classes_have_not_moved():
    from cascade.stages.unet import UNet

    assert UNet.__module__ == "cascade.stages.unet"
