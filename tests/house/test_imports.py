"""Who may import whom, and what stays out of the process until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A unit is a module or a package, named without the leading "mindmoe."; the longest match names a module's unit.
# A unit may import itself and every unit of an earlier line, but no other unit of its own line.
FLOORS = [
    "errors env lasting pipeline.schedule parallel.ledger parallel.box",
    "files processes",
    "schema strict_yaml strict_json ops.cpu.build",
    "position plugins",
    "model.config parallel.config optim.config train.config data.config checkpoint.config observe.config launch.config",
    "moe.router.base",
    "moe.router.problems",
    "moe.router.topk moe.router.moge moe.router.top_p moe.router.expert_choice",
    "moe.router.types",
    "moe.config",
    "parallel.mesh",
    "parallel.legality model.shapes",
    "config_synonyms",
    "config config_problems",
    "load",
    "parallel.sharding parallel.sequence pipeline.split moe.dispatch.sizes",
    "parallel.init",
    "data checkpoint moe.statistics optim.schedule",
    "planner interop.mindformers_keys interop.mindformers_rows interop.mindformers_defaults",
    "interop.mindformers_model",
    "interop.mindformers",
    "ops",
    "parallel",
    "moe",
    "model",
    "pipeline",
    "interop.mxfp4 interop.hf_config interop.hf_tokenizer",
    "interop.source",
    "interop.export",
    "interop.importing",
    "interop optim",
    "observe train.folder train.guard",
    "train.live train.resume",
    "train.preflight",
    "train",
    "train.main",
    "launch generate transfer",
    "lab",
    "equiv dryrun measure cli_arguments cli_answers",
    "cli_ckpt cli_data measure.main",
    "cli",
    "__main__",
]
FLOOR = {unit: floor for floor, line in enumerate(FLOORS) for unit in line.split()}

# What may not load MindSpore when it is imported: it runs on a login node, or before the threads and the log level
# are set, and its tests take seconds. Everything on the floors below ops is of this kind, and these.
DRY = {unit for unit in FLOOR if FLOOR[unit] < FLOOR["ops"]}
DRY |= {unit for unit in FLOOR if unit.startswith("interop.")}
DRY |= {"observe", "train.folder", "train.guard", "train.live", "train.resume", "train.preflight", "train.main"}
DRY |= {
    "launch",
    "generate",
    "transfer",
    "equiv",
    "dryrun",
    "lab",
    "measure.main",
    "cli_ckpt",
    "cli_data",
    "cli_answers",
    "cli",
}

HEAVY = {"mindspore", "torch", "transformers", "matplotlib", "optuna", "mindquantum"}


def _name(path: Path) -> str:
    """The dotted name of a module file."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _unit(name: str) -> str | None:
    """The unit of a dotted module name; None for the package itself and what is listed nowhere."""
    parts = name.removeprefix("mindmoe").lstrip(".").split(".")
    return next((unit for n in range(len(parts), 0, -1) if (unit := ".".join(parts[:n])) in FLOOR), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names a module imports, anywhere in it; `from a import b` counts as both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the absolute import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _wrong_imports(path: Path, tree: ast.Module, known: set[str]) -> list[str]:
    """The imports of a module that go up or sideways."""
    own = _unit(_name(path))
    wrong = []
    if own is not None and own.startswith("moe.router."):
        # A router says dryly what it is; what it computes is imported when it is built, and types are for the reader.
        tree = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for target in sorted({name for name in _imports(tree) if name in known}):
        unit = _unit(target)
        if own and unit and unit != own and FLOOR[unit] >= FLOOR[own]:
            wrong.append(f"{path} imports {target}: {own} may only import what stands above it in FLOORS")
    return wrong


def test_every_module_has_a_floor(modules: dict[Path, ast.Module]) -> None:
    homeless = [str(path) for path in modules if path.name != "__init__.py" and _unit(_name(path)) is None]
    assert not homeless, f"give these a place in FLOORS: {homeless}"


def test_every_unit_exists(modules: dict[Path, ast.Module]) -> None:
    known = {_name(path) for path in modules}
    gone = [unit for unit in FLOOR if f"mindmoe.{unit}" not in known]
    assert not gone, f"remove these from FLOORS: {gone}"


def test_imports_only_go_down(modules: dict[Path, ast.Module]) -> None:
    known = {_name(path) for path in modules if path.name != "__init__.py"}
    wrong = [line for path, tree in modules.items() for line in _wrong_imports(path, tree, known)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("target", ["mindmoe.train.loop", "mindmoe.observe.report"])
def test_the_import_rule_catches_up_and_sideways(target: str) -> None:
    package, module = target.rsplit(".", 1)
    for line in (f"import {target}", f"from {package} import {module}", f"from {target} import name"):
        tree = ast.parse(f"def f():\n    {line}\n")
        assert len(_wrong_imports(Path("mindmoe/data/loader.py"), tree, {target})) == 1


def _lab_free(path: Path) -> bool:
    """Whether a file belongs to what works without the lab."""
    return not path.is_relative_to("mindmoe/lab") and not path.name.startswith("cli")


def test_the_core_does_not_import_the_lab(modules: dict[Path, ast.Module]) -> None:
    core = {path: tree for path, tree in modules.items() if _lab_free(path)}
    wrong = [str(path) for path, tree in core.items() for name in _imports(tree) if name.startswith("mindmoe.lab")]
    assert not wrong, f"the core names what is in the lab in plugins.py alone: {wrong}"
    named = [
        str(path)
        for path, tree in core.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "mindmoe.lab" in node.value
    ]
    assert set(named) == {"mindmoe/plugins.py"}


def test_package_inits_are_empty(modules: dict[Path, ast.Module]) -> None:
    full = [str(path) for path, tree in modules.items() if path.name == "__init__.py" and tree.body]
    assert not full, f"the import path is the name: empty {full}"


def _loaded_after(code: str, root: Path) -> set[str]:
    """The top-level packages that a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


# What of the lab is computed on a device; the rest of it is dry.
WET_LAB = {"mindmoe.lab.dmr.difficulty", "mindmoe.lab.dmr.routing", "mindmoe.lab.dmr.slots", "mindmoe.lab.tune.run"}


def test_dry_modules_load_nothing_heavy(modules: dict[Path, ast.Module], root: Path) -> None:
    dry = [name for name in map(_name, modules) if _unit(name) in DRY and name not in WET_LAB]
    loaded = _loaded_after("\n".join(f"import {name}" for name in dry), root)
    assert not loaded & HEAVY, f"a dry module imports {sorted(loaded & HEAVY)} at import time"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "prepare", "--help"]])
def test_help_loads_nothing_it_does_not_need(arguments: list[str], root: Path) -> None:
    code = f"from mindmoe.cli import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert not end.code"
    loaded = _loaded_after(code, root)
    unneeded = loaded & (HEAVY | {"pydantic", "numpy", "rich", "yaml"})
    assert not unneeded, f"mindmoe {' '.join(arguments)} loads {sorted(unneeded)}"
