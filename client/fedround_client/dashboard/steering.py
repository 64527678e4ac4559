"""What an actor can do with a training, and an admin with the labels of users. The server decides who may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import typer
from starlette.responses import RedirectResponse, Response

from fedround.v1.training_pb2 import TRAINING_STATE_INITIAL, Training
from fedround.v1.user_pb2 import ROLE_CLIENT, User
from fedround_client.client import Client
from fedround_client.command.labels import parse_labels
from fedround_client.dashboard.reader import MAX_FILTERED, Reader, matches
from fedround_client.dashboard.sessions import Account
from fedround_client.dashboard.web import Form, Visit, Web, first, http_status
from fedround_client.dashboard.words import ENDED
from fedround_client.errors import FedroundError, Unauthenticated


@dataclass(frozen=True)
class Action:
    """Something that an actor does with a training.

    Attributes:
        name: Its name in the path.
        title: What its button says.
        text: What it does, for people.
        done: What the page says afterwards.
        is_final: Whether it cannot be undone.
        run: Does it.
        is_available: Whether a training is in a state for it.
        chooses: Whether users are chosen for it.
    """

    name: str
    title: str
    text: str
    done: str
    run: Callable[[Client, str, Form], object]
    is_available: Callable[[Training], bool]
    is_final: bool = False
    chooses: bool = False


def _is_running(training: Training) -> bool:
    return training.state not in (*ENDED, TRAINING_STATE_INITIAL)


ACTIONS = {
    action.name: action
    for action in (
        Action(
            "start",
            "Start",
            "The first round opens, and the participants are asked for their updates.",
            "The training is started.",
            lambda client, training_id, _: client.start_training(training_id),
            lambda training: training.state == TRAINING_STATE_INITIAL and training.num_participants > 0,
        ),
        Action(
            "pause",
            "Pause",
            "No further round opens until the training is resumed. A round that is open continues to its end.",
            "The training is paused.",
            lambda client, training_id, _: client.pause_training(training_id),
            lambda training: _is_running(training) and not training.paused and not training.stopped,
        ),
        Action(
            "resume",
            "Resume",
            "Rounds open again.",
            "The training is resumed.",
            lambda client, training_id, _: client.resume_training(training_id),
            lambda training: _is_running(training) and training.paused,
        ),
        Action(
            "register",
            "Register clients",
            "Clients that you choose become participants. In a running training they join when the next round opens.",
            "The clients are registered.",
            lambda client, training_id, form: client.register_clients(training_id, form.get("user", [])),
            lambda training: training.state not in ENDED,
            chooses=True,
        ),
        Action(
            "remove",
            "Remove clients",
            "Participants that you choose leave the training. Their updates in the open round do not count.",
            "The participants are removed.",
            lambda client, training_id, form: client.remove_clients(training_id, form.get("user", [])),
            lambda training: training.state not in ENDED and training.num_participants > 0,
            is_final=True,
            chooses=True,
        ),
        Action(
            "stop",
            "Stop",
            "The training ends before its target. Its versions and its record stay. It cannot be started again.",
            "The training is stopped, or stops after this round.",
            lambda client, training_id, form: client.stop_training(training_id, now=first(form, "when") == "now"),
            _is_running,
            is_final=True,
        ),
    )
}
_LABELS_DONE = "The labels are set."


def available_actions(training: Training, account: Account) -> list[Action]:
    """Returns what the account can do with a training now: nothing, unless it is the training's actor."""
    if training.actor_id != account.user.user_id:
        return []
    return [action for action in ACTIONS.values() if action.is_available(training)]


def done_text(name: str) -> str:
    """Returns what a page says after an action; empty if there is no such action."""
    return _LABELS_DONE if name == "labels" else ACTIONS[name].done if name in ACTIONS else ""


class Steering:
    """The handlers of forms that change something."""

    def __init__(self, web: Web) -> None:
        """Creates the handlers.

        Args:
            web: What the pages share.
        """
        self._web = web

    def ask(self, action: Action, visit: Visit) -> Response:
        """Returns the page that asks for a confirmation."""
        training = visit.read.training(visit.path("training_id"))
        if training.actor_id != visit.account.user.user_id:
            return self._web.problem(visit, 403, "Only the actor who created the training can do this.")
        return self._form(visit, action, training)

    def act(self, action: Action, visit: Visit, form: Form) -> Response:
        """Does what was confirmed, and returns to the training; or says why the server refused it."""
        training_id = visit.path("training_id")
        if action.chooses and not form.get("user"):
            training = visit.read.training(training_id)
            return self._form(visit, action, training, 400, "Choose at least one.")
        try:
            action.run(visit.account.client, training_id, form)
        except Unauthenticated:
            raise
        except FedroundError as error:
            training = visit.read.training(training_id)
            return self._form(visit, action, training, http_status(error), error.message)
        return RedirectResponse(f"/trainings/{training_id}?done={action.name}", 303)

    def _form(self, visit: Visit, action: Action, training: Training, status: int = 200, error: str = "") -> Response:
        text = visit.query("q").strip()
        # Who may not choose may not list users either.
        is_list = action.chooses and status != 403
        users = _candidates(visit.read, action, training, text) if is_list else []
        return self._web.page(
            visit,
            "action.html",
            status,
            action=action,
            training=training,
            error=error,
            users=users[:MAX_FILTERED],
            is_cut=len(users) > MAX_FILTERED,
            text=text,
        )

    def ask_labels(self, visit: Visit) -> Response:
        """Returns the form for the labels of a user."""
        user = visit.read.user(visit.path("user_id"))
        labels = "\n".join(f"{name}={value}" for name, value in sorted(user.labels.items()))
        return self._web.page(visit, "user.html", user=user, labels=labels, error="")

    def set_labels(self, visit: Visit, form: Form) -> Response:
        """Sets the labels of a user."""
        user_id, text = visit.path("user_id"), first(form, "labels")
        try:
            labels = parse_labels(line.strip() for line in text.splitlines() if line.strip())
            visit.account.client.update_user(user_id, labels=labels)
        except Unauthenticated:
            raise
        except (typer.BadParameter, FedroundError) as error:
            status = http_status(error) if isinstance(error, FedroundError) else 400
            user = visit.read.user(user_id)
            return self._web.page(visit, "user.html", status, user=user, labels=text, error=error.message)
        return RedirectResponse("/users?done=labels", 303)


def _candidates(reader: Reader, action: Action, training: Training, text: str) -> Sequence[User]:
    """Returns the users that can be chosen for an action, as many as are shown and one more."""
    registered = set(training.participant_ids)
    if action.name == "register":
        users = (one for one in reader.matching_users(text, ROLE_CLIENT) if one.user_id not in registered)
    else:
        users = (one for one in reader.matching_users("") if one.user_id in registered)
        users = (one for one in users if matches(text, one.name, one.user_id))
    return list(islice(users, MAX_FILTERED + 1))
