"""Names in place of ids: every command accepts a unique name, or the first characters of an id that no other id has."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Annotated, NamedTuple, NoReturn, TypeAlias

import grpc
import typer

from fedround_client.client import Client
from fedround_client.command.failures import fail
from fedround_client.command.output import UINT32
from fedround_client.command.session import client_of
from fedround_client.errors import FedroundError, ModelNotFound, RoleRequired, TrainingNotFound, UserNotFound

COMPLETION_SECONDS = 2.0
MAX_LISTED = 10
"""How many candidates an error lists."""

_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHELL_WORD = re.compile(r"[\w.@%+,:=/-]+", re.ASCII)
"""Names that a shell takes as one word without quotes."""


class Candidate(NamedTuple):
    """Something that a command can be about."""

    id: str
    name: str


def training_id(client: Client, text: str) -> str:
    """Returns the id of the training with this id, name or prefix of the id.

    Raises:
        TrainingNotFound: No training of the caller has it.
    """
    return _resolve(text, _trainings(client), "training", TrainingNotFound)


def model_id(client: Client, text: str) -> str:
    """Returns the id of the model with this id, name or prefix of the id.

    Raises:
        ModelNotFound: No model of the caller has it.
    """
    return _resolve(text, _models(client), "model", ModelNotFound)


def user_id(client: Client, text: str) -> str:
    """Returns the id of the user with this id, name or prefix of the id.

    Raises:
        UserNotFound: No user that the caller may see has it.
    """
    return user_ids(client, [text])[0]


def user_ids(client: Client, texts: Iterable[str]) -> list[str]:
    """Returns the ids of several users; lists the users once at most.

    Raises:
        UserNotFound: No user that the caller may see has one of the names or prefixes.
    """
    listed: list[Candidate] = []

    def users() -> Iterator[Candidate]:
        if not listed:
            listed.extend(_users(client))
        yield from listed

    return [_resolve(text, users(), "user", UserNotFound) for text in texts]


def user_names(client: Client) -> dict[str, str]:
    """Returns the names of the users that the caller may see, by id."""
    with suppress(FedroundError):
        return dict(_users(client))
    return {}


def participant_names(client: Client, training_id: str, user_ids: Collection[str]) -> dict[str, str]:
    """Returns the names of users of a training that the caller may see, by id.

    A viewer lists no users, but sees who takes part in the training's current round.
    """
    known = user_names(client)
    if not known.keys() >= set(user_ids):
        with suppress(FedroundError):
            known |= {one.user_id: one.name for one in client.round_participants(training_id)}
    return known


def round_number(argument: int | None, option: int | None) -> int | None:
    """Returns the API's number of a round, from 0; None if neither the argument nor the option is given."""
    if argument is not None and option is not None:
        raise typer.BadParameter(f"{option}: give the number of the round once", param_hint="'ROUND'")
    number = option if argument is None else argument
    return None if number is None else number - 1


def _resolve(text: str, candidates: Iterable[Candidate], noun: str, not_found: type[FedroundError]) -> str:
    if _ID.fullmatch(text):
        return text
    # What a server calls an id becomes the name of a file, for example: it must be one.
    known = [candidate for candidate in dict.fromkeys(candidates) if _ID.fullmatch(candidate.id)]
    found = [candidate for candidate in known if candidate.name == text]
    if not found and text:
        found = [candidate for candidate in known if candidate.id.startswith(text.lower())]
    if len(found) > 1:
        _fail_ambiguous(text, noun, found)
    if not found:
        raise not_found(
            grpc.StatusCode.NOT_FOUND,
            f"{noun.upper()}_NOT_FOUND",
            f"No {noun} that you can see has the name {text!r}, or an id that begins with it."
            f" `fedround {noun} list` shows their names and ids.",
        )
    return found[0].id


def _fail_ambiguous(text: str, noun: str, found: Sequence[Candidate]) -> NoReturn:
    listed = "; ".join(f"{candidate.id} ({candidate.name})" for candidate in found[:MAX_LISTED])
    more = f"; and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    fail(
        "NAME_AMBIGUOUS",
        f"{text!r} fits {len(found)} {noun}s: {listed}{more}. Give the id, or more of it.",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        metadata={"candidates": " ".join(candidate.id for candidate in found[:MAX_LISTED])},
    )


def _trainings(client: Client) -> Iterator[Candidate]:
    for training in client.trainings():
        yield Candidate(training.training_id, training.spec.name)
    for training in client.trainings("CLIENT"):
        yield Candidate(training.training_id, training.spec.name)


def _models(client: Client) -> Iterator[Candidate]:
    try:
        for model in client.models():
            yield Candidate(model.model_id, model.name)
    except RoleRequired:
        # A viewer has no models, and reads those of all trainings.
        for training in client.trainings():
            yield Candidate(training.model_id, training.spec.name)
    # A participant may read the model of its training, which has another owner.
    for training in client.trainings("CLIENT"):
        yield Candidate(training.model_id, training.spec.name)


def _users(client: Client) -> Iterator[Candidate]:
    try:
        for user in client.users():
            yield Candidate(user.user_id, user.name)
    except RoleRequired:
        # A participant may see itself only.
        myself = client.myself()
        yield Candidate(myself.user_id, myself.name)


def _completion(list_all: Callable[[Client], Iterable[Candidate]]) -> Callable[[typer.Context, str], list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        answer: Future[list[Candidate]] = Future()

        def ask() -> None:
            # Whatever is wrong, a shell that completes words is not the place to say it.
            with suppress(BaseException), client_of(ctx) as client:
                answer.set_result(list(list_all(client)))
            answer.cancel()

        # A daemon, so that the command ends without waiting for a server that does not answer.
        threading.Thread(target=ask, daemon=True).start()
        with suppress(BaseException):
            candidates = answer.result(COMPLETION_SECONDS)
            return _completions(candidates, incomplete)
        return []

    return complete


def _completions(candidates: Iterable[Candidate], incomplete: str) -> list[str]:
    """Returns the names that are unique and need no quotes, and the ids of the others, if they begin as given."""
    distinct = [one for one in dict.fromkeys(candidates) if _ID.fullmatch(one.id)]
    names = [one.name for one in distinct]
    words = [one.name if names.count(one.name) == 1 and _SHELL_WORD.fullmatch(one.name) else one.id for one in distinct]
    ids = [one.id for one in distinct] if incomplete else []
    return [word for word in dict.fromkeys(words + ids) if word.startswith(incomplete)]


complete_trainings = _completion(_trainings)
complete_models = _completion(_models)
complete_users = _completion(_users)

_HOW = "its name, its id, or the first characters of its id"
Training: TypeAlias = Annotated[
    str, typer.Argument(metavar="TRAINING", help=f"The training: {_HOW}.", autocompletion=complete_trainings)
]
Model: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"The model: {_HOW}.", autocompletion=complete_models)
]
User: TypeAlias = Annotated[
    str, typer.Argument(metavar="USER", help=f"The user: {_HOW}.", autocompletion=complete_users)
]
OptionalUser: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="USER", help=f"The user: {_HOW}; yourself by default.", autocompletion=complete_users),
]
RoundOption: TypeAlias = Annotated[int | None, typer.Option("--round", "--number", min=1, max=UINT32, hidden=True)]
"""What scripts may give in place of the argument ROUND."""
Users: TypeAlias = Annotated[
    list[str],
    typer.Argument(metavar="USER", help="Users: their names or ids.", autocompletion=complete_users),
]
