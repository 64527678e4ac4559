"""What an installed wheel must be able to do: run by the Python of another environment, against a running server.

    python smoke.py HOST:PORT ADMIN_TOKEN

It uses nothing but the SDK and the command, and says why it fails.
"""

import json
import os
import subprocess
import sys
import threading
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

import fedround_client as fr

COMMANDS = (
    "user list",
    "training list",
    "training show smoke",
    "training watch smoke",
    "metrics smoke",
    "audit verify",
)


def train(model, round):
    """Adds 1 to what the server sent."""
    return {"weight": model["weight"] + np.float32(1)}, 1


def evaluate(model, round):
    """Reports the first value."""
    return {"first": float(model["weight"][0])}, 1


def take_part(address: str, token: str) -> None:
    """A participant, until the training ends."""
    with fr.connect(address, token) as client:
        client.participate(train, evaluate)


def run_training(address: str, admin_token: str) -> None:
    """Two participants train a model in two rounds, which an actor downloads."""
    with fr.connect(address, admin_token) as admin:
        clients = [admin.create_user(f"site {number}") for number in (1, 2)]
        threads = [threading.Thread(target=take_part, args=(address, token)) for _, token in clients]
        training = admin.create_training(
            {"weight": np.zeros(3, np.float32)},
            name="smoke",
            target_num_updates=2,
            client_ids=[user.user_id for user, _ in clients],
            metric_names=["first"],
        )
        for thread in threads:
            thread.start()
        admin.start_training(training.training_id)
        admin.wait(training.training_id)
        for thread in threads:
            thread.join()
        model = admin.download_model(training.model_id)
        assert model["weight"].tolist() == [2, 2, 2], model


def run_commands(address: str, admin_token: str) -> None:
    """Commands print what they should, and their help."""
    environment = {**os.environ, "FEDROUND_SERVER": address, "FEDROUND_TOKEN": admin_token}

    def fedround(*words: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("fedround"), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"fedround {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    assert fedround("--version").strip() == distribution("fedround").version
    assert "--target-num-updates" in fedround("training", "create", "--help")
    assert json.loads(fedround("training", "show", "smoke", "--format", "json"))["model_version"] == 2
    for words in COMMANDS:
        assert fedround(*words.split()).strip(), words
    fedround("doctor")


if __name__ == "__main__":
    assert "site-packages" in str(fr.__file__), f"not the installed package: {fr.__file__}"
    run_training(*sys.argv[1:])
    run_commands(*sys.argv[1:])
