"""Types the commands of docs/first-day.md in terminals of their own, and writes what they print into the page.

With --check it writes nothing, and fails if a command now prints something else, apart from ids, tokens and numbers.

A block of the page begins with ```console and the name of its terminal. A command that runs until a training ends goes
on while other terminals are used: STARTED says what it prints once it is ready.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/first-day.md"
STARTED = {"fedround serve": "serving on", "python participant.py": "Registered in"}
SECONDS = 300
"""Time that a command may take."""
BLOCK = re.compile(r"^```console (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOKEN = re.compile(r"\bfr_[\w-]{43}")
UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
HASH = re.compile(r"\b[0-9a-f]{64}\b")
CHANGING = re.compile(r"waiting for (?!the next round|an actor)|(?:up|down)loading|: aggregating|accuracy=|peewee")
"""What depends on how fast the participants are, on which version is the best, and on the versions of the database."""


@dataclass
class Terminal:
    """A shell that runs commands one after the other.

    Attributes:
        shell: Its process.
        output: The file with all output so far.
        running: The command that goes on, and where its output begins.
    """

    shell: "subprocess.Popen[str]"
    output: Path
    running: tuple[str, int] | None = None

    def type(self, command: str) -> str:
        """Runs a command; returns what it prints, or nothing if it goes on."""
        start = len(self.output.read_bytes())
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{command}\nprintf '\\036%s\\n' \"$?\"\n")
        self.shell.stdin.flush()
        ready = STARTED.get(command)
        if ready is None:
            return self.wait_for("\x1e", start)
        self.running = (command, start)
        self.wait_for(ready, start)
        return ""

    def wait_for(self, text: str, start: int) -> str:
        """Waits for a text; returns what is printed before the end of the command."""
        ends = time.monotonic() + SECONDS
        while text not in (printed := self.output.read_bytes()[start:].decode()):
            if time.monotonic() > ends or self.shell.poll() is not None:
                raise TimeoutError(f"no {text!r} in what is printed:\n{printed}")
            time.sleep(0.05)
        return printed.partition("\x1e")[0]

    def rest(self) -> str:
        """Returns what the command that goes on prints: all of it, or of a server the lines until it serves."""
        assert self.running is not None
        command, start = self.running
        if command == "fedround serve":
            # Behind the first line about a call, everything is about calls.
            return re.split(r"^.*\[fedround\.call\]", self.wait_for(STARTED[command], start), flags=re.MULTILINE)[0]
        return self.wait_for("\x1e", start)


@dataclass
class Names:
    """The tokens of this run, in the order in which they are printed; the page has letters in their place."""

    tokens: list[str] = field(default_factory=list)

    def hide(self, text: str) -> str:
        """Replaces the tokens in what is printed."""
        for token in TOKEN.findall(text):
            if token not in self.tokens:
                self.tokens.append(token)
            text = text.replace(token, self._letters(self.tokens.index(token)))
        return text

    def fill(self, command: str) -> str:
        """Replaces the letters in a command by tokens."""
        for index, token in enumerate(self.tokens):
            command = command.replace(self._letters(index), token)
        return command

    def _letters(self, index: int) -> str:
        return "fr_" + "abcdefgh"[index] * 43


class Terminals:
    """Terminals by name, each of which opens when it is first used, in a folder that they share."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Prepares them; the stack ends what they run."""
        self._folder = folder
        self._stack = stack
        self._opened: dict[str, Terminal] = {}
        (folder / "bin").mkdir()
        (folder / "work").mkdir()
        for name, words in (("fedround", "-m fedround_client"), ("python", "")):
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            script.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FEDROUND_")}
        self._environment = inherited | {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path[1:])),
            "FEDROUND_LISTEN": self._address,
            "FEDROUND_SERVER": self._address,
            "TZ": "UTC",
        }

    def open(self, name: str) -> Terminal:
        """Returns a terminal."""
        if name not in self._opened:
            output = self._folder / f"{name}.txt"
            with output.open("wb") as file:
                shell = subprocess.Popen(
                    ["bash"],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=self._folder / "work",
                    env=self._environment,
                    start_new_session=True,
                )
            self._stack.callback(stop, shell)
            self._opened[name] = Terminal(shell, output)
        return self._opened[name]

    def hide(self, text: str) -> str:
        """Replaces what is different on each machine: the address and the folder."""
        return text.replace(self._address, "127.0.0.1:50051").replace(str(self._folder / "work"), "/srv")


def stop(shell: "subprocess.Popen[str]") -> None:
    """Ends a shell and what it runs."""
    os.killpg(shell.pid, 15)
    shell.wait()
    assert shell.stdin is not None
    shell.stdin.close()


def transcript(page: str) -> str:
    """Returns the page with what its commands print now."""
    names = Names()
    with tempfile.TemporaryDirectory(prefix="fedround-") as folder, ExitStack() as stack:
        terminals = Terminals(Path(folder), stack)

        def run(block: re.Match[str]) -> str:
            lines = []
            for command in re.findall(r"^\$ (.*)$", block[2], re.MULTILINE):
                printed = terminals.open(block[1]).type(names.fill(command))
                lines += [f"$ {command}", *names.hide(printed).rstrip().splitlines()]
            return "\n".join([f"```console {block[1]}", *lines, "```"])

        def complete(block: re.Match[str]) -> str:
            terminal = terminals.open(block[1])
            if terminal.running is None or f"$ {terminal.running[0]}\n" not in block[2]:
                return block[0]
            return "\n".join([block[0].removesuffix("\n```"), terminal.rest().rstrip(), "```"])

        return terminals.hide(BLOCK.sub(complete, BLOCK.sub(run, page)))


def comparable(page: str) -> list[str]:
    """Returns the lines of a page that are the same each time, without ids and numbers."""
    lines = [re.sub(r"\d+(?:\.\d+)?", "N", HASH.sub("HASH", UUID.sub("ID", line))) for line in page.splitlines()]
    return [re.sub(r" +", " ", line).strip() for line in lines if not CHANGING.search(line)]


def main() -> None:
    """Writes the page, or checks it."""
    old = PAGE.read_text(encoding="utf-8")
    new = transcript(old)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
        return
    before, after = comparable(old), comparable(new)
    if before != after:
        gone = [f"- {line}" for line in before if line not in after]
        come = [f"+ {line}" for line in after if line not in before]
        print("docs/first-day.md is not what its commands print: run scripts/first_day.py", *gone, *come, sep="\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
