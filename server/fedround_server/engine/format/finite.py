"""Checks the numbers of a file while it arrives, with numpy alone: the server's own process has no torch.

The bits of a floating number, read as an integer, sort finite numbers before infinity, and infinity before NaN. Signed
integers sort positive numbers last, unsigned ones negative numbers: so two maxima show whether all are finite, for each
type, and numpy computes them at the speed of the memory.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from threading import Lock

from cachetools import LRUCache, cached

from fedround_server.domain.model import Dtype, Manifest
from fedround_server.domain.transport import INT8_LIMIT, SCALES
from fedround_server.engine.format.manifest import Layout
from fedround_server.engine.jobs import CheckResult

NEGATIVE_SCALE = "tensor {!r} has a negative scale; scales are >= 0"
OUT_OF_RANGE = "tensor {!r} has the value -128; int8 differences are -127 to 127"
CACHED_TENSORS = 40_000
"""How many tensors the files have together whose sections are cached; their layouts are kept, too."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What the numbers of a tensor must be.

    Attributes:
        size: Bytes of a number.
        infinity: The bits of infinity, or of NaN where there is none: a floating number must be smaller. None for
            integers.
        dtype: The numpy type of numbers that have a minimum; empty for others.
        minimum: The smallest that is allowed.
        problem: What to say of smaller ones.
    """

    size: int
    infinity: int | None
    dtype: str = ""
    minimum: int = 0
    problem: str = ""


F32 = _Rule(4, 0x7F80_0000)
FINITE: Mapping[Dtype, _Rule] = {
    Dtype.F64: _Rule(8, 0x7FF0 << 48),
    Dtype.F32: F32,
    # Complex numbers are pairs of real ones.
    Dtype.C64: F32,
    Dtype.F16: _Rule(2, 0x7C00),
    Dtype.BF16: _Rule(2, 0x7F80),
    Dtype.F8_E4M3: _Rule(1, 0x7F),
    Dtype.F8_E5M2: _Rule(1, 0x7C),
}
"""The rules of floating numbers; integers and booleans may be anything."""


@dataclass(slots=True)
class _Section:
    """Adjacent tensors under one rule.

    Attributes:
        rule: What their numbers must be.
        names: Their names, in the order of the file.
        begins: Where each begins in the file, in bytes.
        end: Where the last one ends.
    """

    rule: _Rule
    names: list[str]
    begins: list[int]
    end: int

    def owner(self, position: int) -> str:
        """Returns the name of the tensor that has a byte of the file."""
        return self.names[bisect_right(self.begins, position) - 1]


class NumberCheck:
    """Looks for NaN and Inf in a file, and for int8 differences and scales that are out of range.

    Attributes:
        found: The first of them in the file, by the name of its tensor, once its bytes have been fed.
    """

    def __init__(
        self, layout: Callable[[], Layout | None], scaled: Callable[[Manifest], Collection[str]] = lambda _: ()
    ) -> None:
        """Begins before the first byte of the file.

        Args:
            layout: Returns what the header says; None at most until the header has been fed.
            scaled: Returns the names of the tensors of int8 differences, each of which has scales.
        """
        self.found = CheckResult()
        self._layout = layout
        self._scaled = scaled
        # Those that have not been fed to their end.
        self._sections: deque[_Section] | None = None
        self._position = 0
        # The first bytes of a number whose others have not been fed.
        self._cut = b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the file, any number of them. Other threads run meanwhile."""
        start, self._position = self._position, self._position + len(data)
        if self._sections is None:
            if (layout := self._layout()) is None:
                return
            _, sections = _divide(layout, frozenset(self._scaled(layout.manifest)))
            self._sections = deque(sections)
        while self._sections and self._sections[0].begins[0] < self._position:
            section = self._sections[0]
            begin, end = max(section.begins[0], start), min(section.end, self._position)
            self._check(section, data, start, begin - start, end - start)
            if self.found != CheckResult():
                self._sections.clear()
            elif section.end > self._position:
                break
            else:
                self._sections.popleft()

    def _check(self, section: _Section, data: bytes, start: int, begin: int, end: int) -> None:
        """Checks the bytes [begin, end) of data that starts at a position of the file."""
        size = section.rule.size
        if self._cut:
            missing = data[begin : min(begin + size - len(self._cut), end)]
            self._cut += missing
            begin += len(missing)
            if len(self._cut) < size:
                return
            self._check_whole(section, self._cut, 0, 1, start + begin - size)
        count = (end - begin) // size
        if count and self.found == CheckResult():
            self._check_whole(section, data, begin, count, start + begin)
        self._cut = data[begin + count * size : end]

    def _check_whole(self, section: _Section, data: bytes, offset: int, count: int, position: int) -> None:
        """Checks whole numbers of data, from an offset on that is a position of the file."""
        # Not with the server, which needs it only when a file arrives.
        import numpy as np

        rule = section.rule
        if rule.infinity is not None:
            signed = np.frombuffer(data, f"<i{rule.size}", count, offset)
            unsigned = np.frombuffer(data, f"<u{rule.size}", count, offset)
            sign = 1 << 8 * rule.size - 1
            if signed.max() >= rule.infinity or unsigned.max() >= sign | rule.infinity:
                first = int((unsigned & (sign - 1) >= rule.infinity).argmax())
                self.found = CheckResult(not_finite=section.owner(position + first * rule.size))
                return
        if rule.dtype and np.frombuffer(data, rule.dtype, count, offset).min() < rule.minimum:
            self.found = CheckResult(problem=rule.problem)


def find_not_finite(layout: Layout, data: bytes) -> str | None:
    """Returns the name of the first tensor that has NaN or Inf; None if all numbers are finite.

    Args:
        layout: What the file's header says.
        data: The whole file.
    """
    numbers = NumberCheck(lambda: layout)
    numbers.feed(data)
    return numbers.found.not_finite


@cached(LRUCache(CACHED_TENSORS, getsizeof=itemgetter(0)), lock=Lock())
def _divide(layout: Layout, scaled: frozenset[str]) -> tuple[int, Sequence[_Section]]:
    """Returns how many tensors a file has, at least 1, and what is to be checked of them, in its order.

    Equal headers have the same layout, while it is cached.
    """
    rules: dict[str, _Rule] = {}
    for name in scaled:
        rules[name] = _Rule(1, None, "i1", -INT8_LIMIT, OUT_OF_RANGE.format(name))
        scales = name + SCALES
        rules[scales] = _Rule(F32.size, F32.infinity, "<f4", 0, NEGATIVE_SCALE.format(scales))
    sections: list[_Section] = []
    for name, begin in sorted(layout.offsets.items(), key=itemgetter(1)):
        spec = layout.manifest[name]
        rule = rules.get(name) or FINITE.get(spec.dtype)
        size = spec.num_bytes
        if rule is None or not size:
            continue
        if sections and sections[-1].rule is rule and sections[-1].end == begin:
            sections[-1].names.append(name)
            sections[-1].begins.append(begin)
            sections[-1].end += size
        else:
            sections.append(_Section(rule, [name], [begin], begin + size))
    return max(len(layout.manifest), 1), sections
