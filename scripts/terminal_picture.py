"""Draws docs/terminal.svg: what commands print about a small training, which this runs on a server of its own."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from rich.console import Console
from rich.text import Text

import fedround_client as fr
from fedround_client.client import Client
from fedround_client.command.event_lines import EventLines
from fedround_client.command.watching.situation import Situation
from fedround_client.command.watching.view import View
from fedround_client.embedded.processes import ProcessGroup
from fedround_client.embedded.server import Server
from fedround_client.observer import Observation, Observer

PICTURE = Path(__file__).parent.parent / "docs/terminal.svg"
WATCH = "fedround training watch circle"
COMMANDS = ("fedround metrics circle", "fedround training show circle")
COLUMNS = 100
LINES = 14
"""Of what a command prints, at most; the last ones."""
VIEW_LINES = 18
SHOWN_ROUND = 6
"""The round in which the live view is drawn, from 0: site 2 waits in it until that is done, and site 3 fails in it."""

drawn = threading.Event()


def take_part(address: str, token: str, site: int) -> None:
    def train(model, round):
        time.sleep(0.8 * site)
        if round.number == SHOWN_ROUND and site == 2:
            drawn.wait()
        if round.number == SHOWN_ROUND and site == 3:
            raise RuntimeError("CUDA out of memory")
        return {"weight": model["weight"] + np.float32(1)}, 100

    def evaluate(model, round):
        return {"accuracy": 1 - 0.4 / float(model["weight"][0] + 1)}, 20

    with fr.connect(address, token) as client:
        while not drawn.is_set():
            try:
                client.participate(train, evaluate)
            except RuntimeError as error:
                print(f"site {site}: {error}", file=sys.stderr)


def start_training(address: str, admin_token: str) -> str:
    """Creates users and a training, and starts it and its participants; returns the token of the actor."""
    with fr.connect(address, admin_token) as admin:
        _, actor_token = admin.create_user("alice", role="ACTOR")
        sites = [admin.create_user(f"site {number}") for number in (1, 2, 3, 4)]
    for number, (_, token) in enumerate(sites, 1):
        threading.Thread(target=take_part, args=(address, token, number), daemon=True).start()
    with fr.connect(address, actor_token) as actor:
        training = actor.create_training(
            {"weight": np.zeros(1, np.float32)},
            name="circle",
            target_num_updates=5,
            client_ids=[user.user_id for user, _ in sites],
            metric_names=["accuracy"],
            selection=fr.Selection("accuracy", "MAXIMIZE"),
            deadline=60,
        )
        actor.start_training(training.training_id)
    return actor_token


def live_view(actor: Client) -> list[Text]:
    """Returns the live view in the middle of the round that is drawn."""
    (training,) = actor.trainings()
    observations: SimpleQueue[Observation] = SimpleQueue()
    situation = Situation(training)
    observer = Observer(actor._rpc, training, EventLines(actor, several=False, is_short=True).line, observations)
    try:
        while situation.number < SHOWN_ROUND or situation.arrived != (2, 3) or len(situation.missing) != 2:
            situation.add(observations.get(timeout=60), time.time())
        return View().lines(situation, COLUMNS, VIEW_LINES, time.time())
    finally:
        observer.close()


def main() -> None:
    """Runs the training and the commands, and draws what they print."""
    console = Console(record=True, width=COLUMNS, file=sys.stderr, force_terminal=True)

    def draw(command: str, *lines: Text) -> None:
        for line in (Text(f"$ {command}", style="bold"), *lines, Text()):
            console.print(line)

    with tempfile.TemporaryDirectory() as name, ProcessGroup(Path(name)) as processes:
        server = Server(processes, Path(name) / "data")
        address = server.wait()
        token = start_training(address, server.admin_token())
        with fr.connect(address, token) as actor:
            draw(WATCH, *live_view(actor))
            drawn.set()
            actor.wait(next(iter(actor.trainings())).training_id)
        environment = {**os.environ, "FEDROUND_SERVER": address, "FEDROUND_TOKEN": token, "COLUMNS": str(COLUMNS)}
        for command in COMMANDS:
            words = [sys.executable, "-m", "fedround_client", *command.split()[1:]]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
            draw(command, *map(Text.from_ansi, done.stdout.splitlines()[-LINES:]))
    # The reader's own font: pages load nothing from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", console.export_svg(title="fedround"), flags=re.DOTALL)
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
