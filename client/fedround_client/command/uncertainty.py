"""Options that choose how uncertain predictions are, for the commands that take them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import typer

from fedround.v1.aggregation_pb2 import Ensemble, EnsembleMember, McDropout, NoUncertainty, Swag
from fedround_client.options import UncertaintyChoice


class Method(StrEnum):
    """The methods."""

    NONE = "none"
    MC_DROPOUT = "mc-dropout"
    SWAG = "swag"
    ENSEMBLE = "ensemble"


MethodOption: TypeAlias = Annotated[
    Method | None, typer.Option("--uncertainty", case_sensitive=False, help="How predictions come with an uncertainty.")
]
SamplesOption: TypeAlias = Annotated[
    int, typer.Option("--samples", min=0, max=1000, help="Passes of mc-dropout, or draws of swag; 0 for 30.")
]
SoftmaxOption: TypeAlias = Annotated[
    bool, typer.Option("--softmax", help="The outputs are logits: average probabilities, and tell entropies.")
]
MemberOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="MODEL_ID[:VERSION]", help="Votes in the ensemble too; repeat for more."),
]
LastVersionsOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--last-versions", min=0, max=100, help="So many of the model's latest versions vote in the ensemble."
    ),
]

_MESSAGES: Mapping[Method, type[NoUncertainty | McDropout | Swag | Ensemble]] = {
    Method.NONE: NoUncertainty,
    Method.MC_DROPOUT: McDropout,
    Method.SWAG: Swag,
    Method.ENSEMBLE: Ensemble,
}


def choose(method: Method | None, **options: Any) -> UncertaintyChoice | None:
    """Makes the choice of the options that were given.

    Args:
        method: The method; None leaves the choice to the server.
        options: Fields of the method's message; what is zero or empty was not given.

    Raises:
        BadParameter: An option does not belong to the method, or names no member.
    """
    given = {name: value for name, value in options.items() if value}
    if method is None:
        if given:
            raise typer.BadParameter(f"{', '.join(given)}: nothing without an --uncertainty")
        return None
    message: Any = _MESSAGES[method]
    if wrong := given.keys() - message.DESCRIPTOR.fields_by_name.keys():
        raise typer.BadParameter(f"{', '.join(sorted(wrong))}: nothing that --uncertainty {method} takes")
    if "members" in given:
        given["members"] = [_member(text) for text in given["members"]]
    choice: UncertaintyChoice = message(**given)
    return choice


def _member(text: str) -> EnsembleMember:
    model_id, colon, version = text.partition(":")
    if colon and not version.isdecimal():
        raise typer.BadParameter(f"--member {text}: the version is no number")
    return EnsembleMember(model_id=model_id, version=int(version) if colon else None)
