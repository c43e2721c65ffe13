"""Nothing that runs data as code, nothing bound to one machine, nothing outside ASCII in code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CODE = {".py", ".sh", ".h", ".hpp", ".cc", ".cpp", ".yaml", ".yml", ".toml", ".mk", ".txt", ""}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(root|home|tmp|work|opt|Users)(/|\b)")


def _dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and name of everything in a module that could run data as code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        elif isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in FORBIDDEN_CALLS:
                yield node.lineno, name
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in FORBIDDEN_KEYWORDS and not off:
                    yield node.lineno, f"{keyword.arg}={ast.unparse(keyword.value)}"


def test_no_data_runs_as_code(trees: dict[Path, ast.Module]) -> None:
    found = [f"{path}:{line} {what}" for path, tree in trees.items() for line, what in _dangers(tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=flag)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "yaml.load(text, Loader)",
        "def f():\n    global state",
    ],
)
def test_the_safety_rule_catches(source: str) -> None:
    assert len(list(_dangers(ast.parse(source)))) == 1


def test_the_safety_rule_lets_safe_code_pass() -> None:
    safe = "network.eval()\nnp.load(path, allow_pickle=False)\nyaml.safe_load(text)\nsubprocess.run([a], shell=False)"
    assert not list(_dangers(ast.parse(safe)))


# Files and messages that come from outside are opened by files.py and parsed by strict_json.py and strict_yaml.py.
READERS = {"json.load", "json.loads", "yaml.safe_load", "yaml.load"}
EXEMPT = {
    "mindmoe/host/strict_json.py",
    "mindmoe/data/records.py",  # a line of somebody's text is refused by itself, with a reason of its own
    "mindmoe/data/sources.py",  # only whether the last line of a file was cut
    "mindmoe/data/tokenizers_file.py",  # what a library says of itself
    "mindmoe/proof/measure/main.py",  # what this program's own children print
    "mindmoe/lab/tune/solver_process.py",
}


def test_what_comes_from_outside_has_one_reader(modules: dict[Path, ast.Module]) -> None:
    found = [
        f"{path}:{node.lineno} {name}"
        for path, tree in modules.items()
        if path.as_posix() not in EXEMPT
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in READERS
    ]
    assert not found, "use strict_json or strict_yaml:\n" + "\n".join(found)


def test_no_path_of_one_machine(texts: dict[Path, str]) -> None:
    found = [
        f"{path}:{number} {line.strip()[:80]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "absolute paths of one machine:\n" + "\n".join(found)


def test_the_path_rule_catches_a_path() -> None:
    assert MACHINE_PATH.search("cd " + "/" + "home/me") and MACHINE_PATH.search('"' + "/" + 'tmp"')
    assert not MACHINE_PATH.search("https://example.org" + "/" + "home/x") and not MACHINE_PATH.search("a/opt/b")


def test_code_is_ascii(texts: dict[Path, str]) -> None:
    found = [
        f"{path}:{number} {line.strip()[:60]!r}"
        for path, text in texts.items()
        if path.suffix in CODE
        for number, line in enumerate(text.splitlines(), 1)
        if not line.isascii()
    ]
    assert not found, "\n".join(found)
