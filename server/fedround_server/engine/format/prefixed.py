"""Tensors of a file that belong to others of the same name, with a prefix before it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from fedround_server.engine.format.manifest import Layout

V = TypeVar("V")


def divided(layout: Layout, prefix: str) -> tuple[Layout, Layout]:
    """Returns a layout without the tensors whose names have a prefix, and one of these alone."""
    names = layout.manifest.keys()
    return _of(layout, [one for one in names if not one.startswith(prefix)]), _of(
        layout, [one for one in names if one.startswith(prefix)]
    )


def unprefixed(layout: Layout, prefix: str) -> Layout:
    """Returns a layout of the tensors whose names have a prefix, under their names without it."""
    return replace(layout, manifest=_Unprefixed(layout.manifest, prefix), offsets=_Unprefixed(layout.offsets, prefix))


def _of(layout: Layout, names: list[str]) -> Layout:
    return replace(
        layout,
        manifest={name: layout.manifest[name] for name in names},
        offsets={name: layout.offsets[name] for name in names},
    )


class _Unprefixed(Mapping[str, V]):
    """Looks up names with a prefix before them; a copy for each of a thousand updates would take much memory."""

    def __init__(self, values: Mapping[str, V], prefix: str) -> None:
        self._values = values
        self._prefix = prefix

    def __getitem__(self, name: str) -> V:
        return self._values[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._values if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
