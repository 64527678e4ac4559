"""The layouts of many files with the same tensors."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace

from fedround_server.domain.model import Dtype, Manifest, differences
from fedround_server.engine.format.compare import check_same
from fedround_server.engine.format.manifest import Layout, parse_header


class Layouts:
    """The layouts of files with the same tensors.

    A round may have a thousand updates of twenty thousand tensors each: equal headers are parsed once, and of different
    ones only the offsets are kept.
    """

    def __init__(self, narrow: Dtype | None = None, manifest: Manifest | None = None) -> None:
        """Begins with none known.

        Args:
            narrow: Files may have differences from the expected tensors in this type.
            manifest: The expected tensors; those of the first file, if None.
        """
        self._known: dict[bytes, Layout] = {}
        self._names: dict[str, int] = {}
        self._manifests: list[Manifest] = []
        self._narrow = narrow
        if manifest is not None:
            self._expect(manifest)

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
        if not self._manifests:
            self._expect(layout.manifest)
        manifest = next((known for known in self._manifests if known == layout.manifest), self._manifests[0])
        check_same(layout.manifest, manifest)
        return replace(layout, manifest=manifest, offsets=_Offsets(self._names, layout.offsets))

    def _expect(self, manifest: Manifest) -> None:
        self._names = {name: number for number, name in enumerate(manifest)}
        self._manifests = [manifest]
        if self._narrow is not None:
            self._manifests.append(differences(manifest, self._narrow))


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
