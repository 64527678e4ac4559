"""The training of the demo, from the actor's side: starts the participants, and follows their progress."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue

import fedround_client as fr
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_TRAIN, Event
from fedround.v1.user_pb2 import User
from fedround_client.demo import network
from fedround_client.demo.data import Split, pooled
from fedround_client.demo.display import ClientRow, Dashboard
from fedround_client.demo.messages import Message
from fedround_client.demo.report import Outcome
from fedround_client.demo.settings import ARCHITECTURE, Settings
from fedround_client.demo.uncertainty import METHOD, predict_rotated
from fedround_client.embedded.processes import ProcessGroup
from fedround_client.errors import from_event

TICK_SECONDS = 0.1

Notification = Event | tuple[int, Message] | Exception
"""An event of the training, a message of a participant (with its position), or an error of the watching thread."""


@dataclass(frozen=True)
class ClientAccount:
    """Id and token of a client's user."""

    user_id: str
    token: str

    @classmethod
    def of(cls, user: User, token: str) -> "ClientAccount":
        """Returns the account of a new user."""
        return cls(user.user_id, token)


class Federation:
    """A training of the demo's network, from creation to the last round."""

    def __init__(self, actor: fr.Client, address: str, settings: Settings, split: Split, dashboard: Dashboard) -> None:
        """Stores the arguments; `run` does the work.

        Args:
            actor: The client of the training's actor.
            address: HOST:PORT of the server, for the participants.
            settings: The demo's options.
            split: The images of each client.
            dashboard: Displays the progress.
        """
        self._actor = actor
        self._address = address
        self._settings = settings
        self._split = split
        self._dashboard = dashboard
        self._start = network.initial_state(settings.seed)
        self._notifications: SimpleQueue[Notification] = SimpleQueue()
        self._federated = [network.accuracy(self._start, split.held_out)]
        self._alone: dict[int, list[float]] = {}
        self._positions: dict[str, int] = {}
        self._model_id = ""
        self._training_rounds: dict[int, int] = {}
        self._finished = False

    def run(self, processes: ProcessGroup, accounts: Sequence[ClientAccount], folder: Path) -> Outcome:
        """Creates the training, starts the participants, and waits for the end.

        Args:
            processes: Starts processes.
            accounts: The accounts of the clients, in the order of the split.
            folder: Folder for the files with the images.

        Raises:
            ProcessExited: A process ended unexpectedly.
            FedroundError: A call or the training failed.
        """
        settings = self._settings
        training = self._actor.create_training(
            self._start,
            name="handwritten digits",
            target_num_updates=settings.rounds,
            client_ids=[account.user_id for account in accounts],
            metric_names=["accuracy"],
            selection=fr.Selection("accuracy", "MAXIMIZE"),
            architecture=ARCHITECTURE,
            uncertainty=METHOD,
        )
        self._model_id = training.model_id
        self._positions = {account.user_id: position for position, account in enumerate(accounts)}
        self._start_participants(processes, accounts, training.training_id, folder)
        threading.Thread(target=self._watch, args=(training.training_id,), name="watch", daemon=True).start()
        self._actor.start_training(training.training_id)

        seed = network.derive_seed(settings.seed, len(accounts))
        in_one_place = network.learning_curve(
            self._start, pooled(self._split.clients), self._split.held_out, settings.rounds, settings.local_epochs, seed
        )
        centralised: list[float] = []
        while not self._finished or len(self._alone) < len(accounts):
            try:
                self._handle(self._notifications.get(timeout=TICK_SECONDS))
            except Empty:
                processes.check()
                # Nothing to handle: time for a round of the training on all images in one place.
                centralised += islice(in_one_place, 1)
        centralised += in_one_place
        self._dashboard.set_phase("Predicting rotated digits, to measure the uncertainty")
        return Outcome(
            federated=self._federated,
            alone=[curve for _, curve in sorted(self._alone.items())],
            centralised=centralised,
            images=[len(images) for images in self._split.clients],
            model_id=self._model_id,
            model_sha256=self._actor.get_model(self._model_id).sha256,
            rotated=predict_rotated(self._actor, self._model_id, self._split.held_out, settings.seed),
        )

    def _start_participants(
        self, processes: ProcessGroup, accounts: Sequence[ClientAccount], training_id: str, folder: Path
    ) -> None:
        self._split.held_out.save(folder / "held-out.npz")
        parts = zip(accounts, self._split.clients, self._split.shares, strict=True)
        for position, (account, images, share) in enumerate(parts):
            name = f"client {position + 1}"
            images.save(folder / f"{position}.npz")
            share.save(folder / f"{position}-share.npz")
            options = {
                "server": self._address,
                "training-id": training_id,
                "images": folder / f"{position}.npz",
                "share": folder / f"{position}-share.npz",
                "held-out": folder / "held-out.npz",
                "number": position,
                "seed": self._settings.seed,
                "rounds": self._settings.rounds,
                "local-epochs": self._settings.local_epochs,
            }
            self._dashboard.clients.append(ClientRow(name, images))
            processes.start(
                name,
                "fedround_client.demo.participant",
                [f"--{option}={value}" for option, value in options.items()],
                on_line=partial(self._receive, position),
                token=account.token,
                may_finish=True,
            )

    def _receive(self, position: int, line: str) -> None:
        self._notifications.put((position, Message.read(line)))

    def _watch(self, training_id: str) -> None:
        try:
            for event in self._actor.watch(training_id):
                self._notifications.put(event)
        except Exception as error:  # raised by the main thread
            self._notifications.put(error)

    def _handle(self, notification: Notification) -> None:
        match notification:
            case Exception():
                raise notification
            case (position, message):
                self._handle_message(position, message)
            case event:
                self._handle_event(event)

    def _handle_message(self, position: int, message: Message) -> None:
        row = self._dashboard.clients[position]
        match message.activity:
            case "training":
                self._dashboard.phase = "Training together"
                row.advance(message.round, 0, "training")
            case "trained":
                row.accuracy = message.accuracies[0]
            case "alone":
                row.advance(self._settings.rounds, 0, "training alone")
            case "done":
                row.advance(self._settings.rounds, 1, "done")
                row.alone = message.accuracies[-1]
                self._alone[position] = list(message.accuracies)

    def _handle_event(self, event: Event) -> None:
        error = from_event(event)
        if error is not None:
            raise error
        match event.WhichOneof("payload"):
            case "round_started":
                started = event.round_started
                if started.kind == ROUND_KIND_TRAIN:
                    self._training_rounds[started.round] = started.model.version
                    self._dashboard.round(started.model.version)
            case "update_accepted":
                accepted = event.update_accepted
                number = self._training_rounds.get(accepted.round)
                if number is not None:
                    self._dashboard.round(number).arrived = accepted.updates_arrived
                    self._dashboard.clients[self._positions[accepted.participant_id]].advance(number, 1, "uploaded")
            case "round_closed" if event.round_closed.kind == ROUND_KIND_EVALUATE:
                # Each client evaluates on its share of the held-out images: the weighted mean is the accuracy on all.
                self._federated.append(event.round_closed.metrics["accuracy"])
                self._dashboard.record_accuracy(event.round_closed.model_version - 1, self._federated[-1])
            case "training_finished":
                self._finished = True
                self._dashboard.set_phase("Each client trains alone, for comparison")
