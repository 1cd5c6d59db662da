# SPDX-License-Identifier: Apache-2.0
"""What README.md and docs/*.md tell to run does run, and what they name is there."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest
import tomllib
from doc_pages import PAGES, ROOT, Block, Page, read

from capibara_axion import cli

sys.path.insert(0, str(ROOT / "tests" / "server"))

from faults import FakeServerProcess

# Commands that are looked at and not run: they change the environment, take minutes, or do not end.
LOOKED_AT = re.compile(r"(make|pip|git clone|capibara-axion (bench|serve))\b")

each_page = pytest.mark.parametrize(
    "page", [read(path) for path in PAGES], ids=[path.stem for path in PAGES]
)


def blocks(*languages: str) -> list[Block]:
    return [block for path in PAGES for block in read(path).of(*languages)]


def with_python() -> list[Page]:
    pages = map(read, PAGES)
    return [page for page in pages if any(b.reason is None for b in page.of("python"))]


def each_block(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(*languages), ids=str)


def environment(home: Path) -> dict[str, str]:
    """That of a user with this environment activated, and no settings of ours."""
    own = {name: text for name, text in os.environ.items() if "CAPIBARA_AXION" not in name}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return own | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PATH": path}


def run(command: list[str], folder: Path, home: Path, what: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{what}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServerProcess]:
    """The real gateway over fake workers, which are called as the demo experts are."""
    folder = tmp_path_factory.mktemp("server")
    names = ["phi4_fast", "mistral_balanced", "qwen_coder"]
    experts = [{"expert_id": name, "model_path": "/nowhere"} for name in names]
    config = folder / "config.json"
    config.write_text(json.dumps({"experts": experts}))
    process = FakeServerProcess(config, folder / "log.txt")
    yield process
    process.close()


def to_this(server: FakeServerProcess, command: str) -> str:
    """The command with the ports that this server listens on: others may have 8082 and 8083."""
    for port, here in ((8082, server.port), (8083, server.stream_port)):
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{here}")
    return command


@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.path.stem)
def test_python_runs(page: Page, tmp_path: Path) -> None:
    """All blocks of a page in order, in one namespace; lines keep their numbers."""
    lines = [""] * len(page.path.read_text().splitlines())
    for block in page.of("python"):
        if block.reason is None:
            for number, line in enumerate(block.text.splitlines(), block.line - 1):
                lines[number] = line
    script = tmp_path / f"{page.path.stem}.py"
    script.write_text("\n".join(lines))
    run([sys.executable, str(script)], tmp_path, tmp_path, str(page.path))


@each_page
def test_commands_run(page: Page, tmp_path: Path, server: FakeServerProcess) -> None:
    """One by one, in one folder for the page."""
    (tmp_path / ".curlrc").write_text("fail\nmax-time 20\n")  # an answer of 4xx is a failure
    for block in page.of("sh"):
        if block.reason is not None:
            continue
        for command in block.commands():
            if not LOOKED_AT.match(command):
                what = f"{block}: {command}"
                run(["bash", "-c", to_this(server, command)], tmp_path, tmp_path, what)


@each_block("json")
def test_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    content = json.loads(block.text)
    if "experts" in content:
        (tmp_path / "config.json").write_text(block.text)
        run(["capibara-axion", "check-config", "config.json"], tmp_path, tmp_path, str(block))


@each_block("sh", "python", "json")
def test_what_is_not_run_says_why(block: Block) -> None:
    if block.reason is None:
        return
    assert len(block.reason.split()) >= 3, f"{block}: {block.reason!r} is no reason"
    folder = ROOT
    for named in re.findall(r"[\w/]+\.py", block.reason):
        # "tests/vllm/test_a.py and test_b.py": in the same folder.
        path = ROOT / named if "/" in named else folder / named
        assert path.is_file(), f"{block}: there is no {named}"
        folder = path.parent


def test_each_language_is_known() -> None:
    known = {"sh", "python", "json", "nginx", ""}
    unknown = [
        f"{block} {block.language}"
        for path in PAGES
        for block in read(path).blocks
        if block.language not in known
    ]
    assert not unknown


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    broken = []
    for link in page.links:
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        is_page = target.suffix == ".md" and target.is_file()
        if not target.exists() or (anchor and not (is_page and anchor in read(target).anchors)):
            broken.append(link)
    assert not broken


def test_the_index_has_every_page() -> None:
    index = read(ROOT / "docs" / "README.md")
    pages = {path.name for path in PAGES if path.parent.name == "docs"} - {"README.md"}
    assert pages <= set(index.links)


@each_page
def test_make_has_the_targets(page: Page) -> None:
    targets = {name for code in page.code for name in re.findall(r"\bmake ([a-z][a-z0-9-]*)", code)}
    for target in sorted(targets):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@each_page
def test_variables_are_read_somewhere(page: Page) -> None:
    named = {name for code in page.code for name in re.findall(r"CAPIBARA_AXION_[A-Z_]+", code)}
    assert named <= variables() | {"CAPIBARA_AXION_"}


@cache
def variables() -> set[str]:
    sources = [*(ROOT / "python").rglob("*.py"), *(ROOT / "csrc").rglob("*.cc")]
    text = "\n".join(path.read_text() for path in sources)
    return set(re.findall(r"\"(CAPIBARA_AXION_[A-Z_]+)\"", text))


@each_page
def test_extras_are_there(page: Page) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"])
    named = {
        extra
        for code in page.code
        for extras in re.findall(r"(?:\.whl|\.|capibara-axion)\[([a-z,]+)\]", code)
        for extra in extras.split(",")
    }
    assert named <= known


class _Refusal(Exception):
    pass


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise _Refusal(f"{parser.prog}: {message}")


@each_block("sh")
def test_options_are_accepted(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(argparse.ArgumentParser, "error", _refuse)
    for command in block.commands():
        words = shlex.split(command, comments=True)
        if words[0] == "capibara-axion" and not {"--help", "-h"} & set(words):
            cli._parser().parse_args(words[1:])


@each_page
def test_options_in_the_text_are_there(page: Page) -> None:
    """Of `capibara-axion SUB --option`, whatever else stands there for people to fill in."""
    wrong = []
    for code in page.code:
        for line in code.replace("\\\n", " ").splitlines():
            for text in re.findall(r"(?<!\w)capibara-axion ([a-z].*)", line):
                words = text.split("#")[0].split()
                parser = subparser(words)
                options = {re.sub(r"=.*", "", word).strip("[]'\"|.,;)") for word in words}
                unknown = {word for word in options if word.startswith("--")} - options_of(parser)
                if unknown or parser.prog == "capibara-axion":
                    wrong.append(text)
    assert not wrong


def subparser(words: list[str]) -> argparse.ArgumentParser:
    parser = cli._parser()
    for word in words:
        choices = commands_of(parser)
        if word not in choices:
            break
        parser = choices[word]
    return parser


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next((dict(action.choices) for action in actions), {})


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}
