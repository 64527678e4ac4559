"""The model of a round as a participant gets it: downloaded or cached, and merged of its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from fedround.v1 import model_pb2
from fedround.v1.event_pb2 import ModelInfo, RoundStarted
from fedround.v1.model_pb2 import DownloadModelRequest
from fedround_client.cache import SPOOL_BYTES, ModelCache, SharedFile
from fedround_client.control_store import ControlStore
from fedround_client.download import Tee, download, file_sha256
from fedround_client.errors.client_side import BaseMissing
from fedround_client.logs import get_logger
from fedround_client.payload import Progress
from fedround_client.round_request import needs_model_again
from fedround_client.rpc import Rpc
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.safetensors_stream import ArraySource
from fedround_client.tensor_selection import PrivateTensors, TensorSelection, matches, read_file
from fedround_client.tensor_types import Framework, StateDict, TensorError
from fedround_client.tensors import array_sources, metadata_of

logger = get_logger(__name__)


@dataclass(frozen=True)
class RoundModel:
    """The model of a round.

    Attributes:
        tensors: New arrays, which the user may change: those of the global model, of the external base, and the private
            ones.
        names: The names of the global model's tensors.
        selection: Which of them an update has.
        private_file: Where the private tensors are kept; None if there are none.
    """

    tensors: dict[str, Any]
    names: frozenset[str]
    selection: TensorSelection
    private_file: Path | None = None

    def of_update(self, update: StateDict) -> tuple[list[ArraySource], list[ArraySource]]:
        """Divides the result of training into the tensors to send and those to keep.

        Of the others, those that the model has are dropped. Names that it does not have are sent, so that the server
        says what is wrong with them.

        Raises:
            TensorError: Nothing is left to send, or the update is no state dict.
        """
        sources = array_sources(update)
        if not self.selection.is_partial and self.names >= self.tensors.keys():
            return sources, []
        sent, kept = [], []
        for source in sources:
            name = source.info.name
            if self.selection.keeps(name):
                kept.append(source)
            elif (name in self.names and self.selection.trains(name)) or name not in self.tensors:
                sent.append(source)
        if not sent:
            globs = ", ".join(self.selection.trainable) or "all but the private ones"
            raise TensorError(f"The update has none of the tensors that the training updates ({globs}).")
        return sent, kept


class RoundModels:
    """Fetches the models of rounds.

    Attributes:
        user_id: UUID of the participant.
    """

    def __init__(
        self,
        rpc: Rpc,
        framework: Framework | None,
        cache: ModelCache,
        bases: ModelCache,
        private: PrivateTensors,
        external_base: str | PathLike[str] | None,
    ) -> None:
        """Creates it.

        Args:
            rpc: Calls the server.
            framework: Framework of the models; None for that of their files.
            cache: Cache of whole models and deltas.
            bases: Cache of bases.
            private: The private tensors.
            external_base: A file of tensors that the server does not have.
        """
        self.user_id = ""
        self._rpc = rpc
        self._framework = framework
        self._cache = cache
        self._bases = bases
        self._private = private
        self._external_base = None if external_base is None else Path(external_base)
        # Size and time of the external base when it had its digest.
        self._verified: tuple[str, int, int] | None = None
        # Whether the model of the present round is small, or probably needed again: others are not written to the disk.
        self._is_read_again = True

    def fetch(self, training_id: str, started: RoundStarted, progress: Progress | None) -> RoundModel:
        """Returns the global model of a round, merged with the external base and the private tensors.

        The file of the global model is the cached one, the one in the event, or a downloaded one.

        Raises:
            BaseMissing: The participant does not have the external base.
            TensorError: A file is damaged, or no tensor is private.
            FedroundError: The server answered with an error that is not transient.
        """
        selection = TensorSelection.of(started)
        self._is_read_again = started.model.size_bytes <= SPOOL_BYTES or needs_model_again(started)
        external: dict[str, Any] = {}
        if started.external_base_sha256:
            external = read_file(self._check_base(training_id, started.external_base_sha256), self._framework)
        model = self._fetch_global(started, selection, progress)
        names = frozenset(model)
        framework: Framework = "torch" if metadata_of(model) else "numpy"
        merged = external | model
        if not selection.private:
            return RoundModel(merged, names, selection)
        if missing := [glob for glob in selection.private if not any(matches(name, (glob,)) for name in merged)]:
            raise TensorError(f"The training keeps tensors private that match {missing[0]!r}, and no tensor does.")
        path = self._private.path(self.user_id, training_id)
        kept = {name: one for name, one in self._private.load(path, framework).items() if selection.keeps(name)}
        return RoundModel(merged | kept, names, selection, path)

    def keep(self, model: RoundModel, tensors: Iterable[ArraySource], update: StateDict) -> None:
        """Keeps the private tensors of an update for the next round, also over a restart.

        Raises:
            OSError: They cannot be written.
        """
        kept = list(tensors)
        if model.private_file is None or not kept:
            return
        # Those that the update does not have stay as they are.
        names = {source.info.name for source in kept}
        before = {name: one for name, one in model.tensors.items() if model.selection.keeps(name) and name not in names}
        others = array_sources(before) if before else []
        self._private.save(model.private_file, [*kept, *others], metadata_of(update))

    def control_store(self, training_id: str) -> ControlStore:
        """Returns where the participant keeps its control variates in a training, beside its private tensors."""
        return ControlStore(self._private.path(self.user_id, training_id).with_suffix(".control"))

    def open(self, info: ModelInfo, selection: TensorSelection) -> SharedFile | None:
        """Returns the file that has the tensors of a model that updates have; None if it is not cached."""
        if info.delta_sha256:
            return self._cache.open(info.delta_sha256)
        return self._cache_of_whole(selection).open(info.sha256)

    def _fetch_global(
        self, started: RoundStarted, selection: TensorSelection, progress: Progress | None
    ) -> dict[str, Any]:
        info = started.model
        if not info.delta_sha256:
            cache, file = self._cache_of_whole(selection), started.inline_model
            return self._load(info, model_pb2.MODEL_PART_MODEL, info.sha256, cache, progress, file)
        base = self._load(info, model_pb2.MODEL_PART_BASE, info.base_sha256, self._bases, progress)
        return base | self._load(info, model_pb2.MODEL_PART_DELTA, info.delta_sha256, self._cache, progress)

    def _cache_of_whole(self, selection: TensorSelection) -> ModelCache:
        # The file of the first version is the base of those that follow.
        return self._bases if selection.is_partial else self._cache

    def _load(
        self,
        info: ModelInfo,
        part: model_pb2.ModelPart.ValueType,
        sha256: str,
        cache: ModelCache,
        progress: Progress | None,
        inline: bytes = b"",
    ) -> dict[str, Any]:
        """Returns the tensors of a file of a version; downloads it unless it is cached, or came with the round."""
        cached = cache.load(sha256, self._framework)
        if cached is not None:
            return cached
        reader = SafetensorsReader(self._framework)
        if inline and self._take(inline, sha256, reader, cache, progress):
            return reader.tensors()
        with cache.writer(sha256, is_read_again=self._is_read_again) as cache_writer:
            download(
                self._rpc,
                self._rpc.models.DownloadModel,
                lambda offset, _: DownloadModelRequest(
                    model_id=info.model_id,
                    version=info.version,
                    offset=offset,
                    compression=self._rpc.compression,
                    part=part,
                ),
                Tee(reader, cache_writer),
                attempts=None,
                progress=progress,
            )
        return reader.tensors()

    def _take(
        self, inline: bytes, sha256: str, reader: SafetensorsReader, cache: ModelCache, progress: Progress | None
    ) -> bool:
        """Reads and caches the file that came with a round; returns False if it is another one."""
        with self._rpc.traces.span("download"):
            if hashlib.sha256(inline).hexdigest() != sha256:
                logger.warning("The model that came with the round has another SHA-256, and is downloaded")
                return False
            reader.write(inline)
            cache.add(sha256, inline)
            if progress is not None:
                progress(len(inline), len(inline))
            return True

    def _check_base(self, training_id: str, sha256: str) -> Path:
        """Returns the file of the external base, after a comparison with its digest, which is made once."""
        path = self._external_base
        if path is None:
            raise _base_missing(
                training_id, f"needs a safetensors file with SHA-256 {sha256}: pass its path, participate(base=...)"
            )
        if not path.is_file():
            raise _base_missing(training_id, f"needs a base, and there is no file {path}: its SHA-256 is {sha256}")
        status = path.stat()
        found = (sha256, status.st_size, status.st_mtime_ns)
        if self._verified != found:
            digest = file_sha256(path)
            if digest != sha256:
                raise _base_missing(
                    training_id, f"needs a base with SHA-256 {sha256}, and {path} has {digest}: get the right file"
                )
            self._verified = found
        return path


def _base_missing(training_id: str, problem: str) -> BaseMissing:
    message = f"Training {training_id} {problem}"
    return BaseMissing(grpc.StatusCode.FAILED_PRECONDITION, "BASE_MISSING", message, {"training_id": training_id})
