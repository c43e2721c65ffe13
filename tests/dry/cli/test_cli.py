"""The command line: help, exit codes, and where words and options may stand."""

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from mindmoe.cli import config as config_command
from mindmoe.cli.main import COMMANDS, build_parser, main
from mindmoe.config.load import load_config

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = "configs/quickstart.yaml"
GROUPS = {"config": ["show", "validate", "import-mindformers", "schema"], "data": ["prepare", "inspect"]}
GROUPS["ckpt"] = ["ls", "show", "verify", "diff", "prune", "pin", "unpin", "reshard", "place", "repair", "torture"]
SINGLE = [name for name in COMMANDS if name not in GROUPS] + [f"{g} {name}" for g in GROUPS for name in GROUPS[g]]
OWN = {"mindmoe", "mindmoe.cli", "mindmoe.cli.main", "mindmoe.cli.answers", "mindmoe.cli.arguments"}
OWN |= {"mindmoe.host", "mindmoe.host.errors", "mindmoe.host.files"}
MODULES = 80  # half again as many as help imports beyond what the interpreter starts with


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mindmoe", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def _exit_code(*args: str) -> int:
    """The code of a command that argparse ends."""
    with pytest.raises(SystemExit) as info:
        main(args)
    assert isinstance(info.value.code, int)
    return info.value.code


def _imported(*args: str) -> set[str]:
    """The modules that a fresh interpreter imports, in this very command."""
    done = subprocess.run([sys.executable, "-X", "importtime", *args], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_is_instant_for_it_imports_next_to_nothing(words: list[str]) -> None:
    """Imports are nearly all that it does; unlike seconds, they are the same on a busy machine."""
    added = _imported("-m", "mindmoe", *words) - _imported("-c", "pass")
    own = {name for name in added if name.split(".")[0] == "mindmoe"}
    assert "mindmoe.cli.main" in own and own <= OWN | {f"mindmoe.cli.{word}" for word in words}
    assert {name.split(".")[0] for name in added - own} <= sys.stdlib_module_names
    assert len(added) <= MODULES
    assert "example:" in _run(*words).stdout


@pytest.mark.parametrize("command", SINGLE)
def test_every_command_has_help_with_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(*command.split(), "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.partition("example: mindmoe ")[2]
    assert example.startswith(command)
    build_parser().parse_known_args(shlex.split(example))


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("mindmoe ")


def test_a_user_error_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", QUICKSTART, "optim.lrr=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "mindmoe: 1 error in the config\n  override optim.lrr=1: unknown key; did you mean optim.lr?\n"
    )


def test_a_user_error_shows_no_stack_trace_from_the_shell() -> None:
    done = _run("launch", "gone.yaml", "--cards", "2")
    assert (done.returncode, done.stderr) == (2, "mindmoe: gone.yaml does not exist: check the path\n")


def test_an_interrupt_is_code_130_and_a_bug_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    def broken(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(config_command, "schema", interrupted)
    assert main(["config", "schema"]) == 130
    monkeypatch.setattr(config_command, "schema", broken)
    with pytest.raises(ZeroDivisionError):
        main(["config", "schema"])


def test_show_prints_a_config_that_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", QUICKSTART, "optim.lr=0.5"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config(QUICKSTART, ["optim.lr=0.5"])


def test_overrides_may_stand_after_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a", "--cards", "2", "b"], ["--cards", "2", "a", "b"], ["a", "b", "--cards", "2"]):
        words = [{"a": "name=first", "b": "name=second"}.get(word, word) for word in words]
        assert main(["config", "show", QUICKSTART, *words]) == 0
        out = capsys.readouterr().out
        assert "name: second\n" in out and "dp: 2\n" in out


def test_validate_says_what_it_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", QUICKSTART]) == 0
    assert main(["config", "validate", "configs/gpt-oss-120b.yaml", "--cards", "512"]) == 0
    assert main(["config", "validate", "configs/gpt-oss-120b.yaml", "--cards", "6"]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{QUICKSTART}: valid\nconfigs/gpt-oss-120b.yaml: valid on 512 cards, dp=128\n"
    assert "cards=6 must be a multiple of tp*pp*cp=4 (1*4*1)" in captured.err


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "RunConfig"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["config"], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: CONFIG"),
        (["launch", QUICKSTART], "the following arguments are required: --cards"),
        (["launch", QUICKSTART, "--cards", "0"], "0 must be at least 1"),
        (["launch", QUICKSTART, "--cards", "two"], "'two' must be a whole number, 0 or more"),
        (["launch", QUICKSTART, "--card", "2"], "the following arguments are required: --cards"),
        (["train", QUICKSTART, "--lr", "3"], "unrecognized arguments: --lr 3"),
        (["eval", "runs/x", "seed=1"], "unrecognized arguments: seed=1"),
        (["generate", "runs/x"], "the following arguments are required: --prompt"),
        (["generate", "runs/x", "--prompt", "a", "--temperature", "nan"], "'nan' must be a number, 0 or more"),
        (["generate", "runs/x", "--prompt", "a", "--max-new-tokens", "-5"], "must be a whole number, 0 or more"),
        (["data", "inspect", "x", "--samples", "1.5"], "'1.5' must be a whole number, 0 or more"),
        (["data", "prepare", "x"], "the following arguments are required: --out"),
    ],
)
def test_wrong_arguments_are_code_2(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(*args) == 2
    assert message in capsys.readouterr().err


def test_a_command_is_a_file_of_a_screen() -> None:
    shared = {"__init__", "main", "answers", "arguments"}
    files = {path.stem: path.read_text() for path in (ROOT / "mindmoe" / "cli").glob("*.py")}
    assert {name.rstrip("_") for name in set(files) - shared} == set(COMMANDS)
    assert {name: text.count("\n") for name, text in files.items() if text.count("\n") > 120} == {}


def test_no_option_is_a_config_key() -> None:
    """An option that doubles a config key would be a second way to say the same."""
    from mindmoe.config.run import RunConfig

    keys = {"prompt": False, **{key: True for key in _leaves(RunConfig)}}
    options = {
        node.value.removeprefix("--").replace("-", "_")
        for path in (ROOT / "mindmoe" / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--")
    }
    assert {"cards", "prompt", "out"} <= options
    # `seed` and `data` of generate and eval, and `hardware` of plan, are of one call, not of the run they read.
    assert {option for option in options if keys.get(option)} <= {"seed", "data", "hardware"}


def _leaves(cls: type[BaseModel]) -> set[str]:
    found = set(cls.model_fields)
    for field in cls.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _leaves(field.annotation)
    return found


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "invalid choice: 'trian'; did you mean mindmoe train?"),
        (["pretrain"], "did you mean mindmoe train?"),
        (["checkpoint", "ls"], "did you mean mindmoe ckpt?"),
        (["ckpt", "lst"], "did you mean mindmoe ckpt ls?"),
        (["ckpt", "list"], "did you mean mindmoe ckpt ls?"),
        (["data", "prepair"], "did you mean mindmoe data prepare?"),
        (["config", "check"], "did you mean mindmoe config validate?"),
        (["zzzzzz"], "use one of train, launch, node"),
        (["\x1b[2J"], r"'\x1b[2J'"),
    ],
)
def test_an_unknown_command_gets_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert _exit_code(*words) == 2
    said = capsys.readouterr().err
    assert hint in said and "\x1b" not in said
