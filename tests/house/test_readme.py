"""What the documents tell a reader to type exists, and the two languages say the same."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindmoe.checkpoint.config import CheckpointConfig
from mindmoe.cli.main import build_parser
from mindmoe.config.load import load_config, load_section
from mindmoe.data.config import PrepareConfig
from mindmoe.lab.ablate.config import AblateConfig

SHELL_WORDS = {"cd", "git", "source"}  # taken as they are


def _blocks(text: str) -> list[str]:
    """The contents of the shell code blocks of a Markdown text."""
    return re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands(shell: str) -> Iterator[list[str]]:
    """The simple commands of a piece of shell, as words without comments."""
    for line in shell.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if words := shlex.split(part, comments=True):
                yield words


def _problem(words: list[str], root: Path) -> str | None:
    """What is wrong with a command, None if it would be accepted."""
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.MULTILINE))
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"the Makefile has no {missing}" if missing else None
    if words[0] == "mindmoe":
        return _cli_problem(words[1:], root)
    return None if words[0] in SHELL_WORDS else f"{words[0]} is not a command that this test knows"


def _cli_problem(argv: list[str], root: Path) -> str | None:
    try:
        args, late = build_parser().parse_known_args(argv)
    except SystemExit as end:
        return f"the command line refuses it (exit {end.code})" if end.code else None
    if any(word.startswith("-") for word in late):
        return f"unknown {late}"
    overrides = [word for word in [*_words(args), *late] if "=" in word]
    try:
        if hasattr(args, "report"):
            load_section(AblateConfig, overrides, root / args.config)
        elif getattr(args, "config", None):
            load_config(root / args.config, overrides)
        else:
            load_section(CheckpointConfig if argv[0] == "ckpt" else PrepareConfig, overrides)
    except ValueError as error:
        return str(error)
    return None


def _words(args: argparse.Namespace) -> list[str]:
    return getattr(args, "words", [])


def _texts(root: Path) -> dict[str, str]:
    """Shell text by where it stands: code blocks of documents, comments of configs, and the quick start."""
    documents = [root / "README.md", root / "README.zh-CN.md", *sorted((root / "docs").glob("*.md"))]
    found = {str(path.relative_to(root)): "\n".join(_blocks(path.read_text("utf-8"))) for path in documents}
    for path in sorted((root / "configs").rglob("*.yaml")):
        found[str(path.relative_to(root))] = "\n".join(re.findall(r"^# +(mindmoe .*)$", path.read_text(), re.MULTILINE))
    quickstart = root / "scripts" / "quickstart.sh"
    found["scripts/quickstart.sh"] = "\n".join(re.findall(r"^ *(mindmoe .*)$", quickstart.read_text(), re.MULTILINE))
    return found


def test_every_command_exists(root: Path) -> None:
    wrong = [
        f"{place}: {shlex.join(words)}: {problem}"
        for place, shell in _texts(root).items()
        for words in _commands(shell)
        if (problem := _problem(words, root))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "make quickstrat",
        "mindmoe launch configs/quickstart.yaml",
        "mindmoe launch configs/quickstart.yaml --card 2",
        "mindmoe train configs/quickstart.yaml train.step=5",
        "mindmoe train configs/missing.yaml",
        "mindmoe data prepare python-stdlib --out data/x vocabulary=1",
        "curl example.org",
    ],
)
def test_the_command_rule_catches(line: str, root: Path) -> None:
    assert _problem(shlex.split(line), root)


def test_the_readme_names_the_two_commands(root: Path) -> None:
    first_block = _blocks((root / "README.md").read_text("utf-8"))[0]
    assert ["make", "quickstart"] in list(_commands(first_block))
    assert ["make", "test"] in list(_commands(first_block))


def test_both_languages_have_the_same_skeleton(root: Path) -> None:
    english, chinese = ((root / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert _skeleton(english) == _skeleton(chinese)
    assert [_without_comments(block) for block in _blocks(english)] == [
        _without_comments(block) for block in _blocks(chinese)
    ]


def _skeleton(text: str) -> list[str]:
    """The levels of the headings and the kinds of the blocks and tables, in order."""
    marks = re.findall(r"^(#+(?= )|```\w*|\|(?=[-: |]+\|$))", text, re.MULTILINE)
    return [mark for mark in marks if mark]


def _without_comments(block: str) -> list[list[str]]:
    return list(_commands(block))


def test_the_file_tree_is_complete(root: Path, tracked: list[Path]) -> None:
    """Every folder at the top and every package is in the tree of the README, and nothing else."""
    tree = re.search(r"^```text\n(.*?)^```", (root / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert tree
    listed = set(re.findall(r"^ *([\w./-]+)/ ", tree[1], re.MULTILINE))
    top = {path.parts[0] for path in tracked if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    packages = {path.parts[1] for path in tracked if path.parts[0] == "mindmoe" and len(path.parts) > 2}
    assert listed == top | packages


def test_the_tour_passes_every_package(root: Path, tracked: list[Path]) -> None:
    linked = set(re.findall(r"\]\(\.\./mindmoe/(\w+)/?", (root / "docs" / "tour.md").read_text("utf-8")))
    assert linked == {path.parts[1] for path in tracked if path.parts[0] == "mindmoe" and len(path.parts) > 2}


def test_links_lead_somewhere(root: Path) -> None:
    broken = [
        f"{path.relative_to(root)} -> {target}"
        for path in [root / "README.md", root / "README.zh-CN.md", root / "CHANGELOG.md", *(root / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8"))
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)
