"""Tensors that lie side by side, worked on as one: most of the many tensors of a model are small."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from fedround_server.domain.model import Dtype
from fedround_server.engine.format.manifest import Layout


@dataclass(frozen=True, slots=True)
class Run:
    """Tensors of one dtype, one behind the other in the same order in each of some files.

    Attributes:
        dtype: Their type in the first file; in another one they may have another one, all the same.
        names: What they are called. An element of the run is an element behind the first tensor's start.
        ends: For each the index behind its last element.
    """

    dtype: Dtype
    names: Sequence[str]
    ends: Sequence[int]

    @property
    def first(self) -> str:
        """Name of the tensor that the run starts with."""
        return self.names[0]

    @property
    def num_elements(self) -> int:
        """Elements of all its tensors."""
        return self.ends[-1]

    def owner(self, element: int) -> str:
        """Returns the name of the tensor that an element belongs to."""
        return self.names[bisect_right(self.ends, element)]


def runs(layout: Layout, others: Collection[Layout] = ()) -> Iterator[Run]:
    """Cuts files with the same tensors into runs, in the order of the first one.

    Only floating tensors are put together: nothing is computed of the others.

    Args:
        layout: Of the first file.
        others: Of the others; each is looked at once, however many files have it.
    """
    layouts = [layout, *{id(other): other for other in others}.values()]
    names: list[str] = []
    ends: list[int] = []
    for name in sorted(layout.offsets, key=layout.offsets.__getitem__):
        if names and not all(_adjoin(one, names[-1], name) for one in layouts):
            yield Run(layout.manifest[names[0]].dtype, names, ends)
            names, ends = [], []
        names.append(name)
        ends.append((ends[-1] if ends else 0) + layout.manifest[name].num_elements)
    yield Run(layout.manifest[names[0]].dtype, names, ends)


def singly(layout: Layout) -> Iterator[Run]:
    """Cuts a file into runs of one tensor each."""
    for name, spec in layout.manifest.items():
        yield Run(spec.dtype, [name], [spec.num_elements])


def _adjoin(layout: Layout, name: str, following: str) -> bool:
    spec = layout.manifest[name]
    return (
        spec.dtype.is_floating
        and spec.dtype is layout.manifest[following].dtype
        and layout.offsets[following] == layout.offsets[name] + spec.num_bytes
    )
