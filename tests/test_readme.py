"""Markdown files tell the truth: links lead somewhere, files exist, and commands parse. Nothing is run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from draftmill.producer.cli.main import main as draftmill

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != "out"]
FOLDER_NAMES = {folder.name for folder in FOLDERS}
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")
TARGET = re.compile(r"^([\w-]+):", re.MULTILINE)
HERE_DOCUMENT = re.compile(r"(<<'?(\w+)'?[^\n]*\n).*?^\2$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"\w+=")
FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.(py|lua|metal|h|sh|conf|yml|yaml|plist|crontab|service)")

OPERATORS, REDIRECTIONS = frozenset("();<>|&"), ("<", ">", ">>", "<<")
BEFORE_A_COMMAND = ("sudo", "do", "then", "export")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    """What stands between backticks in running text."""
    return [" ".join(span.split()) for span in CODE.findall(prose(page))]


def shell_commands(page: Path) -> Iterator[list[str]]:
    """The simple commands of all blocks of shell."""
    for _, language, block in FENCE.findall(page.read_text("utf-8")):
        if language == "sh":
            text = HERE_DOCUMENT.sub(r"\1", textwrap.dedent(block)).replace("\\\n", " ")
            for line in text.splitlines():
                yield from simple_commands(line)


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line: pipes, lists and substitutions are taken apart, redirections left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    is_file = False
    for word in lexer:
        if word in REDIRECTIONS:
            is_file = True
        elif OPERATORS.issuperset(word):
            yield from filter(None, [bare(command)])
            command, is_file = [], False
        elif is_file:
            is_file = False
        else:
            command.append(word)
    yield from filter(None, [bare(command)])


def bare(command: list[str]) -> list[str]:
    """A command without what may stand before its name."""
    while command and (command[0] in BEFORE_A_COMMAND or ASSIGNMENT.match(command[0])):
        command = command[1:]
    return command


def check(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Raise click's own error unless `words` are what `command` takes. Files that they name need not exist."""
    context = click.Context(command, info_name=command.name, parent=parent)
    if context.command_path.endswith("cron add") and "submit" in words:  # a command within a command
        first = words.index("submit")
        check(draftmill, words[first:])
        words = [*words[:first], "submit"]
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.get_params(context):
        given = parameter.name in values and not parameter.value_is_missing(values[parameter.name])
        if parameter.required and not given:
            raise click.MissingParameter(ctx=context, param=parameter)
        if given and not isinstance(parameter.type, click.Path | click.File):
            parameter.type_cast_value(context, values[parameter.name])
    if isinstance(command, click.Group) and rest:
        _, chosen, rest = command.resolve_command(context, rest)
        assert chosen is not None
        check(chosen, rest, context)
    elif rest:
        raise click.UsageError(f"unexpected argument {rest[0]!r}", context)


def check_names(command: click.Command, words: list[str]) -> None:
    """The same for a command that is only named: which commands and options there are, not what they need."""
    context = click.Context(command, info_name=command.name)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    known = {name for parameter in command.get_params(context) for name in parameter.opts + parameter.secondary_opts}
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise click.NoSuchOption(word, ctx=context)


def fault(check: Any, words: list[str]) -> str | None:
    """What is wrong with a draftmill command, in one line."""
    try:
        check(draftmill, words[1:])
    except click.ClickException as error:
        return f"{shlex.join(words)}: {error.format_message()}"
    return None


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(prose(page)):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return not target.exists() or (anchor != "" and anchor not in anchors(target))


def exists(folder: Path, name: str) -> bool:
    """Whether there is a file `name` below the root or `folder`; a bare name may be deeper in `folder`."""
    deeper = "/" not in name and folder != ROOT and any(folder.rglob(name))
    return deeper or (folder / name).exists() or (ROOT / name).exists()


def missing_module(words: list[str]) -> str | None:
    """The module or the script that a python command names, if there is none."""
    if not words or not re.fullmatch(r"python[\d.]*", Path(words[0]).name) or len(words) < 2:
        return None
    if words[1] == "-m":
        return None if importlib.util.find_spec(words[2]) else f"python -m {words[2]}"
    return words[1] if words[1].endswith(".py") and not (ROOT / words[1]).exists() else None


def test_pages_are_found() -> None:
    assert ROOT / "README.md" in PAGES
    assert len(PAGES) > 5


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = [link or source for link, source in LINK.findall(CODE.sub("", prose(page)))]
    assert [link for link in links if not link.startswith(("http://", "https://")) and broken(page, link)] == []


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    """In text a file is named from its page's folder, from the root, or by its bare name; in shell from the root."""
    in_text = [span for span in spans(page) if FILE.fullmatch(span)]
    in_shell = [word for words in shell_commands(page) for word in words if word.split("/")[0] in FOLDER_NAMES]
    assert [name for name in in_text if not exists(page.parent, name)] == []
    assert [name for name in in_shell if "/" in name and not (ROOT / name).exists()] == []


@every_page
def test_draftmill_takes_each_command(page: Path) -> None:
    commands = [words for words in shell_commands(page) if Path(words[0]).name == "draftmill"]
    named = [span.split() for span in spans(page) if span.startswith("draftmill ")]
    faults = [fault(check, words) for words in commands] + [fault(check_names, words) for words in named]
    assert [text for text in faults if text] == []


@every_page
def test_make_has_each_target_and_python_each_module(page: Path) -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    commands = [*shell_commands(page), *(bare(span.split()) for span in spans(page))]
    wanted = [words[1] for words in commands if len(words) > 1 and words[0] == "make"]
    assert [target for target in wanted if target not in targets] == []
    assert [name for words in commands if (name := missing_module(words))] == []


@pytest.mark.parametrize(
    "line",
    [
        "draftmill rum x.csv -o y.csv",
        "draftmill run x.csv",
        "draftmill run x.csv -o y.csv --max-token 3",
        "draftmill run x.csv -o y.csv --max-tokens many",
        "draftmill run x.csv y.csv -o z.csv",
        "zcat x | REDIS_URL=redis://h draftmill submit - --priority urgent | cat",
        "batch=$(draftmill submit) && draftmill status",
        "draftmill workers pair mini --form 22:00",
        "draftmill cron add notes --every 1h submit notes.jsonl --max-token 3",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    found = [words for words in simple_commands(line) if words[0] == "draftmill"]
    assert [text for words in found if (text := fault(check, words))]


def test_a_wrong_name_is_noticed() -> None:
    assert fault(check_names, ["draftmill", "cron", "delete"])
    assert fault(check_names, ["draftmill", "run", "--draught"])
    assert fault(check_names, ["draftmill", "run", "INPUT", "-o", "OUT"]) is None


def test_a_wrong_link_is_noticed() -> None:
    assert broken(ROOT / "README.md", "nowhere.md")
    assert broken(ROOT / "README.md", "#no-such-heading")
    assert not broken(ROOT / "README.md", "LICENSE")


def test_a_wrong_module_is_noticed() -> None:
    assert missing_module(["python", "-m", "tests.benchmarks.nothing"]) == "python -m tests.benchmarks.nothing"
    assert missing_module([".venv/bin/python", "tests/nothing.py"]) == "tests/nothing.py"
    assert missing_module(["python", "-m", "tests.farm.soak", "NAME"]) is None
