"""The layouts of many files with the same tensors."""

import hashlib
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from fedround_server.domain.adapters import AdapterPair, of_ranks_in
from fedround_server.domain.model import Manifest
from fedround_server.engine.format.compare import check_same
from fedround_server.engine.format.manifest import Layout, parse_header


class Layouts:
    """The layouts of files with the same tensors.

    A round may have a thousand updates of twenty thousand tensors each: equal headers are parsed once, and of different
    ones only the offsets are kept.
    """

    def __init__(self, *manifests: Manifest, adapters: Collection[AdapterPair] = ()) -> None:
        """Begins with none known.

        Args:
            manifests: The tensors that a file may have; without any, those of the first file.
            adapters: Adapters of which a file with the first of these may have a lower rank.
        """
        self._adapters = adapters
        self._known: dict[bytes, Layout] = {}
        self._expected = list(map(_Expected, manifests))

    def read(self, header: bytes) -> Layout:
        """Returns the layout of a file.

        Raises:
            ModelFormat: This is no acceptable header.
            UpdateMismatch: The file has other tensors than the first one.
        """
        digest = hashlib.sha256(header).digest()
        if digest not in self._known:
            self._known[digest] = self._shrink(parse_header(header, own=True))
        return self._known[digest]

    def _shrink(self, layout: Layout) -> Layout:
        if not self._expected:
            self._expected.append(_Expected(layout.manifest))
        expected = next((one for one in self._expected if one.manifest == layout.manifest), None)
        if expected is None:
            expected = _Expected(of_ranks_in(layout.manifest, self._expected[0].manifest, self._adapters))
            check_same(layout.manifest, expected.manifest)
            self._expected.append(expected)
        return replace(layout, manifest=expected.manifest, offsets=_Offsets(expected.numbers, layout.offsets))


class _Expected:
    """Tensors that a file may have, and their numbers by name."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.numbers = {name: number for number, name in enumerate(manifest)}


class _Offsets(Mapping[str, int]):
    """Offsets by name, in eight bytes each; the names are shared."""

    def __init__(self, names: Mapping[str, int], offsets: Mapping[str, int]) -> None:
        self._names = names
        self._values = array("Q", [offsets[name] for name in names])

    def __getitem__(self, name: str) -> int:
        return self._values[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
