"""Options for the uncertainty of predictions, for the commands that have them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import typer

from fedround.v1.aggregation_pb2 import Ensemble, EnsembleMember, McDropout, NoUncertainty, Swag
from fedround_client.client import Client
from fedround_client.command import names
from fedround_client.options import UncertaintyOption


class Method(StrEnum):
    """Methods of uncertainty estimation."""

    NONE = "none"
    MC_DROPOUT = "mc-dropout"
    SWAG = "swag"
    ENSEMBLE = "ensemble"


MethodOption: TypeAlias = Annotated[
    Method | None,
    typer.Option("--uncertainty", case_sensitive=False, help="Method to estimate the uncertainty."),
]
SamplesOption: TypeAlias = Annotated[
    int, typer.Option("--samples", min=0, max=1000, help="Forward passes of mc-dropout, or samples of swag; 0 for 30.")
]
SoftmaxOption: TypeAlias = Annotated[
    bool, typer.Option("--softmax", help="The outputs are logits: average probabilities, and print entropies.")
]
MemberOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--member",
        metavar="MODEL[:VERSION]",
        help="Another model of the ensemble, by name or id; repeat for more.",
        autocompletion=names.complete_models,
    ),
]
LastVersionsOption: TypeAlias = Annotated[
    int,
    typer.Option("--last-versions", min=0, max=100, help="How many of the model's latest versions the ensemble has."),
]

_MESSAGES: Mapping[Method, type[NoUncertainty | McDropout | Swag | Ensemble]] = {
    Method.NONE: NoUncertainty,
    Method.MC_DROPOUT: McDropout,
    Method.SWAG: Swag,
    Method.ENSEMBLE: Ensemble,
}


def uncertainty_option(method: Method | None, **options: Any) -> UncertaintyOption | None:
    """Returns the message of a method and its options.

    Args:
        method: The method; None for the server's default.
        options: Fields of the method's message; those that are zero or empty were not given.

    Raises:
        BadParameter: An option does not belong to the method, or a member is malformed.
    """
    given = {name: value for name, value in options.items() if value}
    if method is None:
        if given:
            raise typer.BadParameter(f"{', '.join(given)}: needs an --uncertainty")
        return None
    message: Any = _MESSAGES[method]
    if wrong := given.keys() - message.DESCRIPTOR.fields_by_name.keys():
        raise typer.BadParameter(f"{', '.join(sorted(wrong))}: not an option of --uncertainty {method}")
    if "members" in given:
        given["members"] = [_member(text) for text in given["members"]]
    option: UncertaintyOption = message(**given)
    return option


def _member(text: str) -> EnsembleMember:
    model, colon, version = text.rpartition(":")
    if colon and not version.isdecimal():
        raise typer.BadParameter(f"--member {text}: the version is not a number")
    return EnsembleMember(model_id=model, version=int(version)) if colon else EnsembleMember(model_id=text)


def with_member_ids(client: Client, option: UncertaintyOption | None) -> UncertaintyOption | None:
    """Replaces the names and prefixes of ids of an ensemble's members by ids, and returns the option."""
    if isinstance(option, Ensemble):
        for member in option.members:
            member.model_id = names.model_id(client, member.model_id)
    return option
