"""Draws docs/terminal.svg: what commands print about a small training, which this runs on a server of its own."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

import fedround_client as fr
from fedround_client.embedded.processes import ProcessGroup
from fedround_client.embedded.server import Server

PICTURE = Path(__file__).parent.parent / "docs/terminal.svg"
COMMANDS = ("fedround training watch circle", "fedround metrics circle", "fedround training show circle")
COLUMNS = 100
LINES = 12
"""Of what a command prints, at most; the last ones."""


def train(model, round):
    return {"weight": model["weight"] + np.float32(1)}, 100


def evaluate(model, round):
    return {"accuracy": 1 - 0.4 / float(model["weight"][0] + 1)}, 20


def take_part(address: str, token: str) -> None:
    with fr.connect(address, token) as client:
        client.participate(train, evaluate)


def create_training(address: str, admin_token: str) -> str:
    """Creates users and a training, starts its participants, and returns the token of the actor."""
    with fr.connect(address, admin_token) as admin:
        _, actor_token = admin.create_user("alice", role="ACTOR")
        sites = [admin.create_user(f"site {number}") for number in (1, 2, 3)]
    for _, token in sites:
        threading.Thread(target=take_part, args=(address, token), daemon=True).start()
    with fr.connect(address, actor_token) as actor:
        training = actor.create_training(
            {"weight": np.zeros(1, np.float32)},
            name="circle",
            target_num_updates=3,
            client_ids=[user.user_id for user, _ in sites],
            metric_names=["accuracy"],
            selection=fr.Selection("accuracy", "MAXIMIZE"),
        )
        actor.start_training(training.training_id)
    return actor_token


def main() -> None:
    """Runs the training and the commands, and draws what they print."""
    console = Console(record=True, width=COLUMNS, file=sys.stderr, force_terminal=True)
    with tempfile.TemporaryDirectory() as name, ProcessGroup(Path(name)) as processes:
        server = Server(processes, Path(name) / "data")
        address = server.wait()
        token = create_training(address, server.admin_token())
        environment = {**os.environ, "FEDROUND_SERVER": address, "FEDROUND_TOKEN": token, "COLUMNS": str(COLUMNS)}
        for command in COMMANDS:
            words = [sys.executable, "-m", "fedround_client", *command.split()[1:]]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            console.print(Text(f"$ {command}", style="bold"))
            lines = done.stdout.splitlines()
            console.print(Text.from_ansi("\n".join(lines[-LINES:]) + "\n"))
    # The reader's own font: pages load nothing from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", console.export_svg(title="fedround"), flags=re.DOTALL)
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
