"""Options of `fedround training create` about who takes part in rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

import typer

from fedround.v1.training_pb2 import Cohort
from fedround_client.command.labels import parse_labels
from fedround_client.command.output import UINT32

FractionOption: TypeAlias = Annotated[
    float | None, typer.Option(help="Part of the participants that a round needs, more than 0 and at most 1.")
]
SizeOption: TypeAlias = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="Number of participants that a round needs.")
]
MinAvailableOption: TypeAlias = Annotated[
    int, typer.Option(min=0, max=10_000, help="A round opens once so many participants are connected.")
]
OverSelectionOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Ask so many times more participants than a round needs, at least 1: it closes with what it needs."
    ),
]
LabelOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Only participants whose user has this label; repeat for more."),
]
AvailableOnlyOption: TypeAlias = Annotated[
    bool, typer.Option("--available-only", help="Only participants that are connected when a round opens.")
]
SeedOption: TypeAlias = Annotated[
    int | None, typer.Option(min=0, max=2**64 - 1, help="Seed of the draws; the server draws one by default.")
]
WaitAfterMinOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=365 * 86_400,
        help="Seconds that a round with --min-updates waits for those that are under way; by default a tenth of the"
        " median time of earlier rounds, and at least 5.",
    ),
]
EvaluationMinUpdatesOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=UINT32,
        help="Number of reports that closes an evaluation round; by default as --min-updates, or all if there is a"
        " metric to --minimize or to --maximize.",
    ),
]


def cohort_option(
    fraction: float | None,
    size: int | None,
    *,
    min_available: int,
    over_selection: float | None,
    labels: Iterable[str],
    available_only: bool,
    seed: int | None,
) -> Cohort | None:
    """Returns the cohort for the options; None if none is given.

    Raises:
        typer.BadParameter: A label is not valid.
    """
    cohort = Cohort(
        fraction=fraction,
        size=size,
        min_available=min_available,
        over_selection=over_selection,
        labels=parse_labels(labels),
        available_only=available_only,
        seed=seed,
    )
    return cohort if cohort != Cohort() else None
