"""The floor plan: which room may import which, in which direction inside `stages`, and what no module may do."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"cascade": {"cascade", "stages", "eval"}, "stages": {"stages"}, "eval": {"eval"}}
LEVELS = [  # inside stages: a module may import those of its own or a later line, but base and sr3 not each other
    {"base", "sr3", "regression", "training", "published"},
    {"stage"},
    {"consistent", "tiling"},
    {"sampling", "denoiser", "conditioning", "unet", "cpu_convolutions", "cpu_memory", "graphs"},
    {"noise", "saved", "files"},
]


def modules() -> dict[str, Path]:
    """Every module of the three rooms by the name under which it is imported."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):  # the links cascade/stages and cascade/eval are not followed
            parts = [*(() if room == "cascade" else ("cascade",)), *path.relative_to(ROOT).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str | None:
    """The room to which an imported name belongs; None for a library."""
    parts = module.split(".")
    if parts[0] != "cascade":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "cascade"


def names(node: ast.AST) -> set[str]:
    """What an import statement imports: modules, and what it takes from them, with dots."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import of {node.module}"
        return {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def imports(path: Path) -> set[str]:
    return set().union(*(names(node) for node in ast.walk(ast.parse(path.read_text()))))


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: not those of functions, nor those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not checking and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def level_of(module: str) -> int | None:
    return next((i for i, names in enumerate(LEVELS) if module in names), None)


def test_rooms_import_only_what_they_may():
    for module, path in modules().items():
        imported = imports(path)
        wrong = {room_of(name) for name in imported} - {None} - ROOMS[room_of(module)]
        assert not wrong, f"{module} may not import {sorted(wrong)}"
        top_level = {name for name in imported if name.split(".")[0] in ("stages", "eval")}
        assert not top_level, f"{module} imports {sorted(top_level)}, which is installed as cascade.{sorted(top_level)[0]}"


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    graph = {}
    for module, path in known.items():
        imported = set().union(*(names(node) for node in at_import(ast.parse(path.read_text()))))
        graph[module] = {name if name in known else name.rpartition(".")[0] for name in imported} & known.keys() - {module}
    assert graph["cascade.stages.stage"] >= {"cascade.stages.sampling", "cascade.stages.saved"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' <- '.join(error.args[1])}") from None


def test_inside_stages_imports_point_down():
    for module, path in modules().items():
        if room_of(module) != "stages" or module == "cascade.stages":
            continue
        mine = module.split(".")[2]
        level = level_of(mine)
        assert level is not None, f"{module} has no place in the floor plan"
        for name in imports(path):
            if room_of(name) != "stages" or name == "cascade.stages":
                continue
            other = name.split(".")[2]
            assert level_of(other) is not None and level_of(other) >= level, f"{module} may not import {name}"
            assert {mine, other} != {"base", "sr3"}, "base and sr3 may not import each other"


def test_the_command_line_is_imported_by_no_one_and_alone_parses_arguments():
    for module, path in modules().items():
        if module.startswith("cascade.cli") or module == "cascade.__main__":
            continue
        wrong = [name for name in imports(path) if name.split(".")[0] == "argparse" or f"{name}.".startswith("cascade.cli.")]
        assert not wrong, f"{module} imports {', '.join(wrong)}"


@pytest.mark.parametrize(
    "forbidden", ["pickle.load", "yaml.load(", "trust_remote_code=True", "allow_pickle=True", "weights_only=False"]
)
def test_nothing_executes_what_a_file_says(forbidden):
    for path in modules().values():
        code = ast.unparse(ast.parse(path.read_text()))
        assert forbidden not in code, f"{path.relative_to(ROOT)} contains {forbidden}"


def test_the_modules_of_saved_classes_have_not_moved():
    from cascade.stages.unet import UNet

    assert UNet.__module__ == "cascade.stages.unet"
