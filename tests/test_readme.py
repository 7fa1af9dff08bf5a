"""What the README files say is what the program does: commands parse, examples compile, tables and links hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tasks import TASKS, cli
from tasks.story import Story, parse_prompt
from train import cli as train_cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
FILES = [ROOT / "README.md", *(path for package in PACKAGES for path in sorted(package.rglob("README.md")))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
README = PAGES["README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
PARSERS = {"avpoet": cli.build_parser, "avpoet-train": train_cli.parser}
# what a page shows how to add is no task yet; tests/tasks/test_adding_a_task.py adds it
ADDED = set(re.findall(r'^TASK = Task\(\s*"(\w+)"', PAGES["tasks/README.md"], flags=re.MULTILINE))


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [block for language, block in FENCED.findall(page) if language in languages]


def shown(page: str) -> list[list[str]]:
    """The words of every command in shell blocks, and of the whole ones, which have options, in running text."""
    found = []
    for block in blocks(page, "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found += [shlex.split(command, comments=True) for command in re.split(r"&&| \| ", line)]
    for code in re.findall(r"`([^`]+)`", FENCED.sub("", page)):
        if re.search(r"avpoet|python", code) and " --" in code:
            found.append(shlex.split(code))
    return found


def ours(words: list[str]) -> list[str]:
    """A command of ours without what launches it, `.venv/bin/avpoet` and `accelerate ... -m train` included, or []."""
    if "-m" in words and words[words.index("-m") + 1] == "train":
        return ["avpoet-train", *words[words.index("-m") + 2 :]]
    while words and (words[0] == "time" or "=" in words[0]):  # VARIABLE=value
        words = words[1:]
    name = Path(words[0]).name if words else ""
    return [name, *words[1:]] if name in PARSERS else []


def commands(page: str) -> list[list[str]]:
    found = [words for all_words in shown(page) if (words := ours(all_words))]
    return [words for words in found if words[1:2] != ["generate"] or words[2].replace("-", "_") not in ADDED]


COMMANDS = {" ".join(words): words for page in PAGES.values() for words in commands(page)}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_parses(words: list[str]) -> None:
    arguments = PARSERS[words[0]]().parse_args(words[1:])
    assert arguments.command == words[1]
    if arguments.command == "extend":
        Story([parse_prompt(prompt) for prompt in arguments.prompt or ()], arguments.seconds)


def test_every_command_is_shown() -> None:
    assert {words[1] for words in commands(README) if words[0] == "avpoet"} == {
        "generate", "extend", "reconstruct", "superres", "tasks", "info",
    }  # fmt: skip
    trained = {words[1] for words in COMMANDS.values() if words[0] == "avpoet-train"}
    assert trained == {*train_cli.STAGES, "tokenize", "doctor", "export", "evaluate"}


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(PAGES[name], "python")])
def test_python_examples_compile_and_import_what_is_there(name: str) -> None:
    for block in blocks(PAGES[name], "python"):
        compile(block, name, "exec")
        imports = r"^from ((?:tokenizers_av|lm|tasks|train)[\w.]*) import ([\w, ]+)$"
        for module, names in re.findall(imports, block, flags=re.MULTILINE):
            path = ROOT / module.replace(".", "/")
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            words = set(re.findall(r"\w+", source.read_text(encoding="utf-8")))  # read, for to import it takes seconds
            assert set(names.split(", ")) <= words, f"{module} has not all of {names}"


def test_benchmarks_are_called_with_options_that_they_have() -> None:
    called = [words for page in PAGES.values() for words in shown(page) if words[:1] == ["python"]]
    scripts = [words for words in called if words[1].startswith("tests/benchmarks/")]
    assert len(scripts) > 10
    for words in scripts:
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in [word for word in words[2:] if word.startswith("--")]:
            assert f'"{option}"' in source, f"{words[1]} has no {option}"


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


def test_the_preset_table_is_the_presets() -> None:
    from train.presets import CHAINS

    table = README.split("| `--preset` |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [re.findall("`(.+?)`", row[0])[0] for row in rows] == list(CHAINS)
    for row, chain in zip(rows, CHAINS.values(), strict=True):
        spec = chain.spec
        assert row[1] == f"{spec.n_frames} of {spec.size}×{spec.size}" and spec.fps == 8
        assert row[2] == f"{spec.sample_rate // 1000} kHz"
        parts = [re.findall("`(.+?)`", cell)[0] for cell in row[3:]]
        assert parts == [chain.video, chain.audio, chain.lm, chain.superres], row[0]


def test_no_command_names_a_task_that_is_not_there() -> None:
    for page in PAGES.values():
        named = {name.replace("-", "_") for name in re.findall(r"avpoet generate ([a-z][a-z-]+)", page)}
        assert named <= set(TASKS) | ADDED


def test_the_tree_shows_the_folders_that_are_there() -> None:
    tree = next(block for block in blocks(README, "") if "tokenizers_av/" in block)
    named = re.findall(r"^(\w+)/", tree, flags=re.MULTILINE)
    assert len(named) == len(set(named)) and set(named) == {package.name for package in PACKAGES}


@pytest.mark.parametrize("name", PAGES)
def test_paths_and_links_lead_somewhere(name: str) -> None:
    page, here = PAGES[name], (ROOT / name).parent
    for path in re.findall(r"\b(?:tests|train|tasks|lm|tokenizers_av)/[\w/]+\.py\b", page):
        assert (ROOT / path).is_file() or Path(path).stem in ADDED, path
    for path in re.findall(r"\btasks/models/[\w/.]+\b", page):
        assert (ROOT / path).exists(), path
    for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', page):
        path, _, heading = "".join(link).partition("#")
        target = here / path if path else ROOT / name
        assert target.is_file(), path
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, heading


def test_every_page_is_linked_from_the_first() -> None:
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#\s]+)\)", README))
