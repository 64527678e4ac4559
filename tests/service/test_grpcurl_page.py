"""Every command of docs/debugging-with-grpcurl.md, in its order and in bash, from an empty server."""

import json
import os
import re
import shutil
import socketserver
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from fedround_client.command import app
from fedround_server.methods import METHODS
from reflection_client import CODE_OFFSET, WORDS, Answer, grpcurl
from servers import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/debugging-with-grpcurl.md"
BUF_SECTION = "## The same with buf"
BUF = shutil.which("buf") or shutil.which("buf", path=str(ROOT / ".tools/node_modules/.bin"))
EXPECTED = re.compile(r" {4}# (\w+)$")
# Sends its words, and its input if it reads some, to the test, and does what that answers.
SHIM = """#!{python} -ISE
import json, os, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
stdin = sys.stdin.read() if "@" in words or (name == "jq" and not sys.stdin.isatty()) else ""
with socket.socket(socket.AF_UNIX) as door:
    door.connect({path!r})
    door.sendall(json.dumps([os.environ["STEP"], name, words, stdin]).encode())
    door.shutdown(socket.SHUT_WR)
    code, output, error = json.load(door.makefile())
sys.stdout.write(output)
sys.stderr.write(error)
sys.exit(code)
"""


def blocks(text: str) -> list[str]:
    """The indented blocks of a page."""
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") for block in found if block.strip()]


def commands(block: str) -> Iterator[str]:
    """The commands of a block, each with all its lines."""
    lines: list[str] = []
    for line in block.splitlines():
        lines.append(line)
        text = "\n".join(lines)
        is_open = (
            line.endswith(("\\", "|")) or subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode
        )
        if text.strip() and not is_open:
            yield text
            lines = []
    assert not lines, lines


def page_commands(text: str) -> Iterator[str]:
    return (command for block in blocks(text) for command in commands(block))


@dataclass
class Terminal:
    """A folder with the programs that the commands call, which are answered by this process."""

    folder: Path
    stack: ExitStack
    calls: dict[int, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    """The methods that the commands have called, and how they were answered, by the number of the command."""

    def install(self) -> None:
        path = self.folder.parent / "door"
        terminal = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                step, name, words, stdin = json.load(self.rfile)
                answer = terminal.answer(int(step), name, words, stdin)
                self.wfile.write(json.dumps([answer.code, answer.output, answer.error]).encode())

        server = self.stack.enter_context(socketserver.ThreadingUnixStreamServer(str(path), Handler))
        self.stack.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        programs = self.folder.parent / "bin"
        programs.mkdir()
        for name in ("grpcurl", "fedround", *(() if shutil.which("jq") else ("jq",))):
            (programs / name).write_text(SHIM.format(python=sys.executable, path=str(path)))
            (programs / name).chmod(0o755)

    def answer(self, step: int, name: str, words: list[str], stdin: str) -> Answer:
        """Does what a program does."""
        if name == "jq":
            return jq(words, stdin)
        if name == "fedround":
            # The server runs already, with what the page says.
            result = CliRunner().invoke(app, words) if words[0] != "serve" else None
            return Answer() if result is None else Answer(result.exit_code, result.stdout)
        answer = grpcurl(words, stdin)
        if "/" in words[-1]:
            self.calls[step].append((f"/{words[-1]}", answer.code))
        return answer

    def run(self, lines: list[str]) -> list[tuple[int, str]]:
        """Runs commands one after the other in one shell; returns the exit code and the errors of each."""
        serve = next(line for line in lines if "fedround serve" in line)
        # The same network, in a module that the server of the test can import.
        options = [word.replace("network:", "e2e.networks:") for word in serve.partition("serve ")[2].split()]
        server = self.stack.enter_context(Server(self.folder / "fedround-data", options=tuple(options)))
        script = "set -o pipefail\nexport STEP\n"
        for step, line in enumerate(lines):
            line = line.replace("127.0.0.1:50051", server.address)
            script += f"STEP={step}\n{{ {line}\n}} 2> errors.{step}\necho $? > status.{step}\n"
        tools = [str(self.folder.parent / "bin"), os.environ["PATH"], str(Path(BUF).parent) if BUF else ""]
        environment = {**os.environ, "PATH": os.pathsep.join(filter(None, tools))}
        shell = subprocess.run(
            ["bash", "-uc", script],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        errors = {path.name: text for path in self.folder.glob("errors.*") if (text := path.read_text())}
        assert shell.returncode == 0, (shell.stderr, errors)
        found = (
            ((self.folder / f"{name}.{step}").read_text() for name in ("status", "errors"))
            for step in range(len(lines))
        )
        return [(int(status), errors) for status, errors in found]


def jq(words: list[str], stdin: str) -> Answer:
    """What `jq -r[j] PATH` does, with the paths of the page."""
    flags, path = words
    assert flags in ("-r", "-rj"), flags
    path, _, alternative = path.partition(" // ")
    assert re.fullmatch(r"(\.\w+|\[\d+\])+", path), path
    assert alternative in ("", "empty"), alternative
    found, decoder = "", json.JSONDecoder()
    while stdin := stdin.lstrip():
        value, end = decoder.raw_decode(stdin)
        stdin = stdin[end:]
        for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
            value = None if value is None else value.get(name) if name else value[int(index)]
        if value is not None or not alternative:
            found += ("null" if value is None else str(value)) + ("\n" if flags == "-r" else "")
    return Answer(output=found)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    folder = tmp_path / "empty"
    folder.mkdir()
    with ExitStack() as stack:
        made = Terminal(folder, stack)
        made.install()
        yield made


def test_every_command_of_the_page_does_what_it_says(terminal: Terminal) -> None:
    lines = list(page_commands(PAGE.read_text().partition(BUF_SECTION)[0]))
    names = {code: name for name, code in ((WORDS[one.name], CODE_OFFSET + one.value[0]) for one in grpc.StatusCode)}
    problems, called = [], set()
    for step, (line, (status, errors)) in enumerate(zip(lines, terminal.run(lines), strict=True)):
        called |= {method for method, _ in terminal.calls[step]}
        failed = {(method, names.get(code, code)) for method, code in terminal.calls[step] if code}
        expected = EXPECTED.search(line)
        if bool(expected) != bool(status) or {code for _, code in failed} != ({expected[1]} if expected else set()):
            problems.append((line, status, errors, failed))
    assert problems == []
    assert METHODS.keys() - called == set()


@pytest.mark.skipif(BUF is None, reason="buf is not here: `make test` installs it where npm is")
def test_the_commands_of_buf_do_the_same(terminal: Terminal) -> None:
    page, _, section = PAGE.read_text().partition(BUF_SECTION)
    needed = ("PYTHONPATH=. fedround serve", "SERVER=", "ADMIN_TOKEN=", "safetensors", "messages()")
    lines = [line for line in page_commands(page) if line.startswith(needed)]
    assert len(lines) == 7
    shown = list(page_commands(section))
    results = terminal.run([*lines, *shown])
    assert [(line, *result) for line, result in zip([*lines, *shown], results, strict=True) if result[0]] == []
