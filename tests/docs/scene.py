"""What the code of a page finds: a server, its users, and names that stand for the reader's own."""

import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

import fedround_client as fr
from fedround_client.command import app

MODEL = {
    "weight": np.zeros((2, 3), np.float32),
    "bias": np.zeros(2, np.float32),
    "norm.running_mean": np.zeros(2, np.float32),
}
# Commands of the admin; all others are the actor's.
ADMINS = ("audit", "user")


class Network:
    """In place of a network of PyTorch: what a page does with one does not need its layers."""

    def __init__(
        self, names: tuple[str, ...] = ("encoder.weight", "head.weight", "head.bias", "bn1.running_mean")
    ) -> None:
        self._state = {name: np.zeros((8, 8), np.float32) for name in names}

    def state_dict(self) -> dict[str, np.ndarray]:
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        self._state.update(state)


class PageClient:
    """A client whose calls may have `...` in place of what a page leaves out."""

    def __init__(self, scene: "Scene", client: fr.Client) -> None:
        self._scene = scene
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_training(self, *args: Any, **options: Any) -> Any:
        """Creates the training with defaults for what is left out."""
        model = [one for one in args if one is not ...]
        if "model_id" not in options and not model:
            model = [MODEL]
        # Commands of the page name the one that a command has made.
        options["name"] = f"{options.get('name', '')} in Python".strip()
        needed = {"target_num_updates": 3, "client_ids": self._scene.client_ids}
        return self._client.create_training(*model, **{**needed, **options})

    def participate(self, *functions: Any, **options: Any) -> fr.Participation:
        """Takes part in one round of a training that needs what the functions do."""
        return self._scene.take_part(*functions, **options)


class Scene:
    """A server with an actor and two clients, "site 1" and "site 2"."""

    def __init__(self, address: str, admin_token: str, data_dir: Path) -> None:
        self.address = address
        self.data_dir = data_dir
        self._admin_token = admin_token
        self._clients: list[fr.Client] = []
        self.admin = self.connect(admin_token)
        _, self._actor_token = self.admin.create_user("alice", role="ACTOR")
        self.actor = self.connect(self._actor_token)
        self.sites = [self.admin.create_user(name) for name in ("site 1", "site 2")]
        self.client_ids = [user.user_id for user, _ in self.sites]
        self._trained: dict[str, str] = {}
        self._participants = 0
        self.model = MODEL
        self.training: dict[str, Any] = {}
        page_client = PageClient(self, self.actor)
        self.names: dict[str, Any] = {"fr": fr, "np": np, "client": page_client, "actor": page_client, "model": MODEL}

    def connect(self, token: str) -> fr.Client:
        """A client that is closed with the scene."""
        client = fr.connect(self.address, token)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def take_part(self, *functions: Any, **options: Any) -> fr.Participation:
        """A participant of its own runs the functions in a training with `self.model` and `self.training`."""
        self._participants += 1
        user, token = self.admin.create_user(f"participant {self._participants}")
        asked = {"name": "taking part", "target_num_updates": 1, "client_ids": [user.user_id], **self.training}
        if len(functions) < 2:
            asked.pop("metric_names", None)  # there is no function that evaluates
        training = self.actor.create_training(self.model, **asked)
        self.actor.start_training(training.training_id)
        return self.connect(token).participate(*functions, training_id=training.training_id, **options)

    def wait_for_trainings(self) -> None:
        """Starts a participant for each site, which takes part in all trainings until the first has ended."""
        for _, token in self.sites:
            client = self.connect(token)
            thread = threading.Thread(target=client.participate, args=(train_nothing, report), daemon=True)
            thread.start()

    def train(self, name: str, *, model: Any = None, **options: Any) -> Any:
        """A training of both sites, to its end."""
        self.wait_for_trainings()
        asked = {"name": name, "target_num_updates": 4, "client_ids": self.client_ids, **options}
        training = self.actor.create_training(MODEL if model is None else model, **asked)
        self.actor.start_training(training.training_id)
        self._trained[name] = training.training_id
        return self.actor.wait(training.training_id)

    def type(self, command: str) -> str:
        """Runs a `fedround` command in this process; returns what it prints."""
        words = shlex.split(command)
        token = self._admin_token if words[1] in ADMINS else self._actor_token
        environment = {"FEDROUND_SERVER": self.address, "FEDROUND_TOKEN": token}
        if ">" in words:
            words = words[: words.index(">")]
        ended = CliRunner().invoke(app, words[1:], env=environment)
        assert ended.exit_code == 0, f"{command}\n{ended.output}\n{ended.exception!r}"
        if words[1:3] == ["training", "create"] and words[words.index("--name") + 1] in self._trained:
            # The page goes on with the training that was prepared, which has come to its end.
            for training in list(self.actor.trainings()):
                if training.training_id not in self._trained.values():
                    self.actor.remove_training(training.training_id)
        return ended.output


def train_nothing(model: Any, round: fr.Round) -> fr.Update:
    """Returns those tensors of the model that are trained where a training has a selection."""
    return fr.Update({name: model[name] for name in model if name != "encoder.weight"} or model, 1)


def report(model: Any, round: fr.Round) -> tuple[dict[str, float], int]:
    """Reports an accuracy for any version."""
    return {"accuracy": 0.5}, 1
