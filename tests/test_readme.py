"""The README says what the program does: its commands parse, its task table is the task table, its paths exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tasks import TASKS, cli
from tasks.story import Story, parse_prompt
from train import cli as train_cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PARSERS = {"avpoet": cli.build_parser, "avpoet-train": train_cli.parser}


def commands() -> list[list[str]]:
    """The words of every command of ours in the shell blocks, `.venv/bin/avpoet` included."""
    found = []
    for language, block in BLOCKS:
        if language not in ("bash", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&| \| ", line):
                words = shlex.split(command, comments=True)
                if words and Path(words[0]).name in PARSERS:
                    found.append([Path(words[0]).name, *words[1:]])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    arguments = PARSERS[words[0]]().parse_args(words[1:])
    assert arguments.command == words[1]
    if arguments.command == "extend":
        Story([parse_prompt(prompt) for prompt in arguments.prompt or ()], arguments.seconds)


def test_both_programs_are_shown() -> None:
    assert {words[0] for words in commands()} == set(PARSERS)
    shown = {words[1] for words in commands() if words[0] == "avpoet"}
    assert shown == {"generate", "extend", "reconstruct", "superres", "tasks", "info"}


def test_the_python_examples_compile() -> None:
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_task_table_is_the_task_table() -> None:
    table = README.split("| task | from | to |\n")[1].split("\n\n")[0]
    rows = {}
    for line in table.splitlines()[1:]:
        name, given, made = (cell.strip() for cell in line.strip("|").split("|"))
        assert re.fullmatch(r"`[a-z-]+`", name), name
        rows[name.strip("`")] = (set() if given == "–" else set(given.split(", ")), made)
    assert list(rows) == [task.command for task in TASKS.values()]
    for task in TASKS.values():
        given, made = rows[task.command]
        wanted = {b.argument + "?" * b.optional for b in task.inputs}
        wanted |= {a.name + "?" * (not a.required) for a in task.arguments}
        assert given == wanted, task.command
        assert ("image" in made) == task.is_image, task.command
        assert ("sound" in made) == (task.output("audio") is not None), task.command


def test_no_command_names_a_task_that_is_not_there() -> None:
    assert set(re.findall(r"avpoet generate ([a-z-]+)", README)) <= {task.command for task in TASKS.values()}


def test_the_tree_shows_the_folders_that_are_there() -> None:
    tree = next(block for language, block in BLOCKS if not language and "tokenizers_av/" in block)
    shown = re.findall(r"^(\w+)/", tree, flags=re.MULTILINE)
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert len(shown) == len(set(shown)) and set(shown) == there
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", README):
        assert (ROOT / path).is_file(), path
