"""The functions of simulated clients: where they come from, and what they must be."""

from __future__ import annotations

import importlib
import pickle
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

from fedround_client.participation import Callbacks, Evaluate, Train

Functions: TypeAlias = Train | tuple[Train] | tuple[Train, Evaluate] | tuple[Train, Evaluate | None, Train]
"""What `Client.participate` takes: train, or (train, evaluate), or (train, evaluate, swag)."""

MakeClient: TypeAlias = Callable[[int], Functions]
"""Returns the functions of the client with an index, from 0."""


class SimulationFailed(Exception):
    """A simulation cannot begin, or cannot continue.

    Attributes:
        message: Why.
        details: The traceback of an exception of the user's code; empty if there is none.
    """

    def __init__(self, message: str, details: str = "") -> None:
        """Stores the arguments."""
        super().__init__(message, details)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        """Returns the message, and the traceback below it."""
        return f"{self.message}\n{self.details}" if self.details else self.message


def load(target: str) -> Any:
    """Returns what a module defines.

    Args:
        target: "module:name".

    Raises:
        SimulationFailed: It cannot be imported.
    """
    module_name, separator, name = target.partition(":")
    if not (module_name and separator and name):
        raise SimulationFailed(f"{target!r} is not MODULE:FUNCTION, such as my_project:make_client.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise SimulationFailed(f"The module {module_name} cannot be imported: {error}.") from error
        raise SimulationFailed(
            f"There is no module {module_name}: run the command in the folder of {module_name}.py, or set PYTHONPATH."
        ) from None
    except Exception as error:
        raise SimulationFailed(f"The module {module_name} cannot be imported.", _traceback(error)) from None
    try:
        return getattr(module, name)
    except AttributeError:
        raise SimulationFailed(f"The module {module_name} has no {name}.") from None


def check_portable(make_client: MakeClient) -> None:
    """Checks that worker processes can import a function.

    Raises:
        SimulationFailed: They cannot.
    """
    if not callable(make_client):
        raise SimulationFailed(f"make_client must be a function, not a {type(make_client).__name__}.")
    try:
        pickle.dumps(make_client)
    except Exception as error:
        raise SimulationFailed(
            f"The worker processes cannot import make_client: define it at the top level of a module ({error})."
        ) from None


def make_callbacks(make_client: MakeClient, index: int) -> Callbacks:
    """Returns the functions of a client.

    Raises:
        SimulationFailed: make_client raised an exception, or returned something else; the message names the index.
    """
    try:
        made = make_client(index)
    except Exception as error:
        message = f"make_client({index}) raised {type(error).__name__}: {error}"
        raise SimulationFailed(message, _traceback(error)) from None
    functions = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(functions) <= 3 or not callable(functions[0]) or not all(map(_is_optional, functions[1:])):
        raise SimulationFailed(
            f"make_client({index}) must return train, or (train, evaluate), or (train, evaluate, swag); it returned a"
            f" {type(made).__name__}."
        )
    return Callbacks(*functions)


def _traceback(error: BaseException) -> str:
    """Returns the traceback of an exception, without the frame of the caller."""
    trace = error.__traceback__
    lines = traceback.format_exception(type(error), error, trace.tb_next if trace else None)
    return "".join(lines).rstrip()


def _is_optional(function: object) -> bool:
    return function is None or callable(function)
