"""What an aggregation writes: a whole file, or the delta of a version and the digest of its whole file."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from cachetools import LRUCache

from fedround_server.aggregators.partial_sum import PartialSum
from fedround_server.blobs import BlobFiles, Slice
from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.model import BaseAndDelta, BlobRef, Manifest, VersionFile
from fedround_server.engine.format.assembly import Assembly, StoredHeader, assemble, in_order, whole_prefix
from fedround_server.engine.format.manifest import Layout, make_header
from fedround_server.engine.format.tensors import TensorFile, Tensors
from fedround_server.engine.format.writer import Hash, TensorWriter
from fedround_server.engine.jobs import AggregationJob

_hashes: LRUCache[tuple[bytes, tuple[Slice, ...]], Hash] = LRUCache(16)
"""The hashes of what precedes deltas in whole files: a base of many gigabytes is read once, not for each version."""


@dataclass(frozen=True, slots=True)
class Result:
    """The file that an aggregation writes.

    Attributes:
        header: Everything before the data of the file.
        inherited: Tensors that are copied from the model; their data comes first.
        layout: The tensors that are aggregated, as the model has them. Their data follows, in the order of their
            offsets.
        base: The base, if the file is a delta.
        prefix: What precedes the data of the delta in the whole file.
    """

    header: bytes
    inherited: tuple[str, ...]
    layout: Layout
    base: BlobRef | None = None
    prefix: Assembly | None = None

    def writer(self, files: BlobFiles, target: Path) -> "ResultWriter":
        """Returns a writer of the file, which must not exist.

        Raises:
            BlobDamaged: The base is damaged.
        """
        data_hash = None if self.prefix is None else _prefix_hash(files, self.prefix)
        return ResultWriter(self, target, data_hash)


class ResultWriter(TensorWriter):
    """Writes a result."""

    def __init__(self, result: Result, target: Path, data_hash: Hash | None) -> None:
        super().__init__(target, result.header, data_hash)
        self._result = result
        self._data_hash = data_hash

    def complete(self) -> VersionFile:
        """Forces the file to disk, and returns what was made.

        Raises:
            OSError: It could not be written.
        """
        blob, result = self.finish(), self._result
        if result.base is None or result.prefix is None or self._data_hash is None:
            return blob
        size = result.prefix.size_bytes + blob.size_bytes - len(result.header)
        return BaseAndDelta(self._data_hash.hexdigest(), size, result.base, blob)


def plan(files: BlobFiles, job: AggregationJob, model: Tensors) -> Result:
    """Returns what the aggregation of a round writes.

    Args:
        files: Where the stored files are.
        job: The aggregation.
        model: The opened model of the round.

    Raises:
        BlobDamaged: The file of the model is damaged.
    """
    trained = job.tensors.trained(model.layout.manifest)
    if isinstance(job.aggregation, Aggregation) and isinstance(job.aggregation.rule, PartialSum):
        # Its header names the number of components, which is found while it is computed.
        return Result(b"", (), _layout_of(model.layout, trained))
    if isinstance(job.aggregation, Aggregation):
        trained = job.aggregation.changed(model.layout.manifest, trained)
    if len(trained) == len(model.layout.manifest):
        # A file that was uploaded may have another form of header, which its versions keep.
        header = model.header if isinstance(model, TensorFile) else assemble(files, job.model).header
        return Result(header, (), model.layout)
    layout = _layout_of(model.layout, trained)
    if isinstance(job.model, BaseAndDelta):
        changed = in_order(StoredHeader.read(files, job.model.delta).layout)
        base, inherited = job.model.base, tuple(name for name in changed if name not in trained)
    else:
        base, inherited = job.model, ()
    manifest = {name: model.layout.manifest[name] for name in (*inherited, *in_order(layout))}
    head = StoredHeader.read(files, base)
    prefix = whole_prefix(head, base, manifest)
    return Result(make_header(manifest, head.metadata), inherited, layout, base, prefix)


def _layout_of(layout: Layout, tensors: Manifest) -> Layout:
    """Returns a layout of some of its tensors."""
    return replace(layout, manifest=tensors, offsets={name: layout.offsets[name] for name in tensors})


def _prefix_hash(files: BlobFiles, prefix: Assembly) -> Hash:
    """Returns a new hash of what precedes the data of a delta in a whole file."""
    key = hashlib.sha256(prefix.header).digest(), prefix.slices
    known = _hashes.get(key)
    if known is None:
        known = hashlib.sha256()
        with prefix.open(files) as reader:
            while data := reader.read().data:
                known.update(data)
        _hashes[key] = known
    return known.copy()
