"""The demo's federation, as the one sees it who steers it: participants are started, followed and graded."""

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
from fedround_client.demo.display import Board, ClientRow
from fedround_client.demo.messages import Message
from fedround_client.demo.processes import Children
from fedround_client.demo.report import Outcome
from fedround_client.demo.server import ARCHITECTURE
from fedround_client.demo.settings import Settings
from fedround_client.demo.uncertainty import METHOD, look
from fedround_client.errors import from_event

TICK_SECONDS = 0.1

News = Event | tuple[int, Message] | Exception
"""What happened: in the training, at a participant (by position), or to the one who watches the training."""


@dataclass(frozen=True)
class Seat:
    """A client's user on the server."""

    user_id: str
    token: str

    @classmethod
    def of(cls, user: User, token: str) -> "Seat":
        """The seat of a new user."""
        return cls(user.user_id, token)


class Federation:
    """A training of the demo's network, from its creation to its last round."""

    def __init__(self, actor: fr.Client, address: str, settings: Settings, split: Split, board: Board) -> None:
        """Prepares it; `run` does the work.

        Args:
            actor: Talks to the server for the user who steers the training.
            address: HOST:PORT of the server, for the participants.
            settings: The demo's options.
            split: Who has which images.
            board: Shows what happens.
        """
        self._actor = actor
        self._address = address
        self._settings = settings
        self._split = split
        self._board = board
        self._start = network.initial_state(settings.seed)
        self._news: SimpleQueue[News] = SimpleQueue()
        self._federated = [network.accuracy(self._start, split.held_out)]
        self._alone: dict[int, list[float]] = {}
        self._positions: dict[str, int] = {}
        self._model_id = ""
        self._training_rounds: dict[int, int] = {}
        self._finished = False

    def run(self, children: Children, seats: Sequence[Seat], folder: Path) -> Outcome:
        """Creates the training, starts the participants, and follows them to the end.

        Args:
            children: Starts processes.
            seats: The clients' users, in the order of the split.
            folder: For the files with the images.

        Raises:
            ChildEnded: A process ended too early.
            FedroundError: The server refused something, or the training failed.
        """
        settings = self._settings
        training = self._actor.create_training(
            self._start,
            name="handwritten digits",
            target_num_updates=settings.rounds,
            client_ids=[seat.user_id for seat in seats],
            metric_names=["accuracy"],
            selection=fr.Selection("accuracy", "MAXIMIZE"),
            architecture=ARCHITECTURE,
            uncertainty=METHOD,
        )
        self._model_id = training.model_id
        self._positions = {seat.user_id: position for position, seat in enumerate(seats)}
        self._start_participants(children, seats, training.training_id, folder)
        threading.Thread(target=self._watch, args=(training.training_id,), name="watch", daemon=True).start()
        self._actor.start_training(training.training_id)

        seed = network.derive_seed(settings.seed, len(seats))
        in_one_place = network.learning_curve(
            self._start, pooled(self._split.clients), self._split.held_out, settings.rounds, settings.local_epochs, seed
        )
        centralised: list[float] = []
        while not self._finished or len(self._alone) < len(seats):
            try:
                self._handle(self._news.get(timeout=TICK_SECONDS))
            except Empty:
                children.check()
                # While there is no news, there is time for a step of the training on all images in one place.
                centralised += islice(in_one_place, 1)
        centralised += in_one_place
        self._board.enter("Turning digits, to see how sure the model is")
        return Outcome(
            federated=self._federated,
            alone=[curve for _, curve in sorted(self._alone.items())],
            centralised=centralised,
            images=[len(images) for images in self._split.clients],
            model_id=self._model_id,
            model_sha256=self._actor.get_model(self._model_id).sha256,
            turned=look(self._actor, self._model_id, self._split.held_out, settings.seed),
        )

    def _start_participants(self, children: Children, seats: Sequence[Seat], training_id: str, folder: Path) -> None:
        self._split.held_out.save(folder / "held-out.npz")
        parts = zip(seats, self._split.clients, self._split.shares, strict=True)
        for position, (seat, images, share) in enumerate(parts):
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
            self._board.clients.append(ClientRow(name, images))
            children.start(
                name,
                "fedround_client.demo.participant",
                [f"--{option}={value}" for option, value in options.items()],
                on_line=partial(self._hear, position),
                token=seat.token,
                may_finish=True,
            )

    def _hear(self, position: int, line: str) -> None:
        self._news.put((position, Message.read(line)))

    def _watch(self, training_id: str) -> None:
        try:
            for event in self._actor.watch(training_id):
                self._news.put(event)
        except Exception as error:  # raised where the news is read
            self._news.put(error)

    def _handle(self, news: News) -> None:
        match news:
            case Exception():
                raise news
            case (position, message):
                self._handle_message(position, message)
            case event:
                self._handle_event(event)

    def _handle_message(self, position: int, message: Message) -> None:
        row = self._board.clients[position]
        match message.activity:
            case "training":
                self._board.phase = "Training together"
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
                    self._board.round(started.model.version)
            case "update_accepted":
                accepted = event.update_accepted
                number = self._training_rounds.get(accepted.round)
                if number is not None:
                    self._board.round(number).arrived = accepted.updates_arrived
                    self._board.clients[self._positions[accepted.participant_id]].advance(number, 1, "uploaded")
            case "round_closed" if event.round_closed.kind == ROUND_KIND_EVALUATE:
                # Each client evaluates with its share of the held-out images: the mean by images is that on all.
                self._federated.append(event.round_closed.metrics["accuracy"])
                self._board.grade(event.round_closed.model_version - 1, self._federated[-1])
            case "training_finished":
                self._finished = True
                self._board.enter("Each client trains alone, for comparison")
