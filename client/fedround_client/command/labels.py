"""Labels on the command line: NAME=VALUE."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def parse_labels(values: Iterable[str]) -> dict[str, str]:
    """Returns labels that are written as NAME=VALUE.

    Raises:
        typer.BadParameter: One has no name or no equals sign, or a name comes twice with different values.
    """
    labels: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is not a label: write NAME=VALUE, such as gpu=yes")
        if labels.setdefault(name, value) != value:
            raise typer.BadParameter(f"the label {name!r} has two values")
    return labels
