"""Adjacent tensors, processed as one: most of the many tensors of a model are small."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from fedround_server.domain.model import Dtype
from fedround_server.engine.format.manifest import Layout


@dataclass(frozen=True, slots=True)
class Run:
    """Tensors of one dtype that follow each other in the same order in each of several files.

    Attributes:
        dtype: Their type in the first file. In another file all of them may have a different type.
        names: Their names. Numbers of the run are counted from the first tensor's start.
        ends: For each tensor, the index after its last number.
    """

    dtype: Dtype
    names: Sequence[str]
    ends: Sequence[int]

    @property
    def first(self) -> str:
        """Name of the run's first tensor."""
        return self.names[0]

    @property
    def num_numbers(self) -> int:
        """Number of real numbers of all its tensors."""
        return self.ends[-1]

    def owner(self, element: int) -> str:
        """Returns the name of the tensor that a number belongs to."""
        return self.names[bisect_right(self.ends, element)]


def runs(
    layout: Layout, others: Collection[Layout] = (), *, apart: Callable[[str], object] | None = None
) -> Iterator[Run]:
    """Divides files with the same tensors into runs, in the order of the first file.

    Only floating tensors are joined: the others are not computed with.

    Args:
        layout: The first file's layout.
        others: Layouts of the other files; equal objects are processed once.
        apart: Returns of which sort a tensor is: those of different sorts are not joined.
    """
    layouts = [layout, *{id(other): other for other in others}.values()]
    names: list[str] = []
    ends: list[int] = []
    for name in sorted(layout.offsets, key=layout.offsets.__getitem__):
        joined = apart is None or not names or apart(names[-1]) == apart(name)
        if names and not (joined and all(_are_adjacent(one, names[-1], name) for one in layouts)):
            yield Run(layout.manifest[names[0]].dtype, names, ends)
            names, ends = [], []
        names.append(name)
        ends.append((ends[-1] if ends else 0) + layout.manifest[name].num_numbers)
    if names:
        yield Run(layout.manifest[names[0]].dtype, names, ends)


def singly(layout: Layout) -> Iterator[Run]:
    """Divides a file into runs of one tensor each."""
    for name, spec in layout.manifest.items():
        yield Run(spec.dtype, [name], [spec.num_numbers])


def _are_adjacent(layout: Layout, name: str, following: str) -> bool:
    spec = layout.manifest[name]
    return (
        spec.dtype.is_floating
        and spec.dtype is layout.manifest[following].dtype
        and layout.offsets[following] == layout.offsets[name] + spec.num_bytes
    )
