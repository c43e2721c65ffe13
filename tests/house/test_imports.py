"""Who may import whom, and what stays out of the process until it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# The packages: each may import itself and those before a `<` on its left. Wherever an import stands, it counts.
ORDER = (
    "host < config < data checkpoint observe plan < ops < parallel < moe < models < pipeline optim < train "
    "< launch inference interop < equiv proof < lab < cli"
)
SLOTS = [slot.split() for slot in ORDER.split(" < ")]
SLOT = {package: number for number, slot in enumerate(SLOTS) for package in slot}

# What describes a run counts as config, wherever it lies: the sections, which are each in the config.py of the package
# that reads them, and in the packages of the model whatever can be imported without MindSpore, such as the table of
# parameters, the rules of layouts and the schedules.
MODEL = {"ops", "parallel", "moe", "models", "pipeline", "optim"}

# Packages that never load MindSpore: they work on a login node, and their tests take seconds. In the others a module is
# dry or wet by itself: it is wet if it imports what is heavy, or a wet module, when it is imported.
DRY = {package for package in SLOT if package not in MODEL | {"train", "inference", "interop", "equiv", "proof", "lab"}}
NAMES_MINDSPORE = {"checkpoint.torture.contenders"}  # of those, in a process of their own

HEAVY = {"mindspore", "torch", "transformers", "matplotlib", "optuna", "mindquantum"}

Modules = dict[Path, ast.Module]


@dataclass(frozen=True)
class Imports:
    """The imports of every module of the package, by dotted names without the leading `mindmoe.`.

    Attributes:
        at_once: module -> what is loaded when it is imported.
        ever: module -> what it imports anywhere, in functions too.
        wet: modules that load something heavy when they are imported.
    """

    at_once: dict[str, set[str]]
    ever: dict[str, set[str]]
    wet: set[str]

    @staticmethod
    def of(modules: Modules) -> "Imports":
        trees = {_name(path): tree for path, tree in modules.items() if path.name != "__init__.py"}
        ever = {name: _named(ast.walk(tree), trees) for name, tree in trees.items()}
        at_once = {name: _named(_run_at_import(tree), trees) for name, tree in trees.items()}
        wet = {name for name, found in at_once.items() if {target.split(".")[0] for target in found} & HEAVY}
        while more := {name for name, found in at_once.items() if found & wet} - wet:
            wet |= more
        return Imports(at_once, ever, wet)

    def slot(self, name: str) -> str:
        """The package that a module counts as."""
        package, _, rest = name.partition(".")
        section = rest == "config" and SLOT.get(package, 0) <= SLOT["launch"]
        return "config" if section or (package in MODEL and name not in self.wet) else package

    def wrong(self, name: str) -> Iterator[str]:
        """The imports of a module that go up or sideways.

        What describes a run may import what its folder may when it is called: a router builds its route.
        """
        package = name.partition(".")[0]
        for target in sorted(self.ever[name] & self.ever.keys()):
            slot, own = self.slot(target), self.slot(name)
            if package in MODEL and target not in self.at_once[name]:
                own = package
            if slot != own and SLOT[slot] >= SLOT[own]:
                yield f"{name} imports {target}: {own} may import only what stands before it in ORDER, not {slot}"
        if name.partition(".")[0] in DRY and name in self.wet:
            yield f"{name} loads {sorted(self.at_once[name] & (self.wet | HEAVY))}: its package is in DRY"
        named = {target.split(".")[0] for target in self.ever[name]}
        if name.partition(".")[0] in DRY and "mindspore" in named and name not in NAMES_MINDSPORE:
            yield f"{name} names mindspore: its package is in DRY"
        if name.startswith("cli.") and (late := self.ever[name] & self.wet):
            yield f"{name} imports {sorted(late)}, which loads MindSpore before mistakes of the user are told"


def _name(path: Path) -> str:
    """The dotted name of a module file, without the leading `mindmoe.`."""
    return ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that run when it is imported: no bodies of functions, nothing for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _run_at_import(node)


def _named(nodes: Iterator[ast.AST], modules: dict[str, ast.Module]) -> set[str]:
    """What the import statements among some nodes name: a module of ours, or the dotted name of another one."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("mindmoe.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the absolute import"
            home = (node.module or "").removeprefix("mindmoe").lstrip(".")
            inside = {f"{home}.{alias.name}".lstrip(".") for alias in node.names}
            found |= (inside & modules.keys()) or {home}
    return found


@pytest.fixture(scope="module")
def imports(modules: Modules) -> Imports:
    return Imports.of(modules)


def test_every_package_has_a_place(modules: Modules) -> None:
    packages = {path.parts[1] for path in modules if len(path.parts) > 2}
    assert packages == SLOT.keys(), "ORDER and the folders of mindmoe/ differ"
    assert len(SLOT) == sum(map(len, SLOTS)), "a package stands twice in ORDER"


def test_nothing_lies_loose(modules: Modules) -> None:
    assert {path.name for path in modules if len(path.parts) == 2} == {"__init__.py", "__main__.py"}


def test_imports_only_go_down(imports: Imports) -> None:
    wrong = [line for name in imports.ever if name != "__main__" for line in imports.wrong(name)]
    assert not wrong, "\n".join(wrong)
    assert imports.ever["__main__"] & imports.ever.keys() == {"cli.main"}


def test_what_describes_a_run_has_no_cycle(imports: Imports) -> None:
    """It spans many folders, so the order of the folders alone does not keep it straight."""
    described = {name: found & imports.ever.keys() for name, found in imports.at_once.items()}
    TopologicalSorter({name: found for name, found in described.items() if imports.slot(name) == "config"}).prepare()


@pytest.mark.parametrize("form", ["import {0}", "from {1} import {2}", "from {0} import name"])
@pytest.mark.parametrize("target", ["train.loop", "observe.report"])
def test_an_import_up_or_sideways_is_caught(imports: Imports, target: str, form: str) -> None:
    line = form.format(f"mindmoe.{target}", *f"mindmoe.{target}".rsplit(".", 1))
    found = _named(ast.walk(ast.parse(f"def f():\n    {line}\n")), dict.fromkeys(imports.ever, ast.Module([], [])))
    assert found == {target}
    caught = list(replace(imports, ever={**imports.ever, "data.loader": found}).wrong("data.loader"))
    assert len(caught) == 1 and caught[0].endswith(f"not {target.split('.')[0]}")


def test_the_order_holds_for_every_two_packages() -> None:
    names = [f"{package}.new" for package in SLOT]
    for own in names:
        for target in names:
            made = Imports(dict.fromkeys(names, set()), {**dict.fromkeys(names, set()), own: {target}}, set(names))
            caught = any("ORDER" in line for line in made.wrong(own))
            assert caught == (own != target and SLOT[target[:-4]] >= SLOT[own[:-4]]), f"{own} imports {target}"


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("data.loader", "import mindspore", ["loads", "names"]),
        ("data.loader", "from mindspore import Tensor", ["loads", "names"]),
        ("data.loader", "def f():\n    import mindspore.ops", ["names"]),
        ("data.loader", "try:\n    import torch\nexcept ImportError: pass", ["loads"]),
        ("data.loader", "class A:\n    from mindmoe.moe import layer", ["imports", "loads"]),
        ("data.loader", "if TYPE_CHECKING:\n    from transformers import AutoModel", []),
        ("cli.train", "def run(args):\n    from mindmoe.train.loop import Loop", ["imports"]),
        ("cli.train", "def run(args):\n    from mindmoe.train.main import train", []),
    ],
)
def test_the_dry_side_is_held(modules: Modules, name: str, line: str, wrong: list[str]) -> None:
    path = Path("mindmoe", *name.split(".")).with_suffix(".py")
    caught = Imports.of({**modules, path: ast.parse(line)}).wrong(name)
    assert [problem.split()[1] for problem in caught] == wrong


def test_a_table_of_the_model_that_becomes_wet_no_longer_counts_as_config(modules: Modules) -> None:
    wet = Imports.of({**modules, Path("mindmoe/parallel/legality.py"): ast.parse("import mindspore")})
    assert wet.slot("parallel.legality") == "parallel" and list(wet.wrong("config.run"))
    assert {"config.run", "config.load", "cli.launch"} & wet.wet == {"config.run", "config.load"}


def test_a_cycle_of_what_describes_a_run_is_caught(imports: Imports) -> None:
    at_once = {**imports.at_once, "optim.config": {"config.run"}}
    with pytest.raises(CycleError):
        test_what_describes_a_run_has_no_cycle(replace(imports, at_once=at_once))


def test_the_core_names_the_lab_in_one_file(modules: Modules) -> None:
    """What a run may take from the lab is loaded by name, so the core also works where there is none."""
    naming = {
        str(path)
        for path, tree in modules.items()
        if path.parts[1] not in ("lab", "cli")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "mindmoe.lab" in node.value
    }
    assert naming == {"mindmoe/config/plugins.py"}


def test_package_inits_are_empty(modules: Modules) -> None:
    full = [str(path) for path, tree in modules.items() if path.name == "__init__.py" and tree.body]
    assert not full, f"the import path is the name: empty {full}"


def _loaded_after(code: str, root: Path) -> set[str]:
    """The top-level packages that a fresh interpreter holds after running `code`."""
    probe = f"{code}\nimport sys\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_dry_modules_load_nothing_heavy(imports: Imports, root: Path) -> None:
    """What the syntax trees say is so, and nothing that they cannot see loads it either."""
    dry = sorted(imports.ever.keys() - imports.wet - {"__main__"})
    loaded = _loaded_after("\n".join(f"import mindmoe.{name}" for name in dry), root)
    assert not loaded & HEAVY, f"a dry module imports {sorted(loaded & HEAVY)} at import time"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "prepare", "--help"]])
def test_help_loads_nothing_it_does_not_need(arguments: list[str], root: Path) -> None:
    code = f"from mindmoe.cli.main import main\ntry: main({arguments!r})\nexcept SystemExit as end: assert not end.code"
    loaded = _loaded_after(code, root)
    unneeded = loaded & (HEAVY | {"pydantic", "numpy", "rich", "yaml"})
    assert not unneeded, f"mindmoe {' '.join(arguments)} loads {sorted(unneeded)}"
