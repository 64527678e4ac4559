"""The calls of ModelService: models on the server and their versions."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

from fedround.v1 import model_pb2
from fedround.v1.event_pb2 import ModelInfo
from fedround.v1.model_pb2 import DownloadModelRequest, MetricReport, Model, ModelSpec, ModelVersion, UploadModelRequest
from fedround_client.download import Sink, download, file_sha256
from fedround_client.payload import ModelSource, Payload, Progress
from fedround_client.retry import ATTEMPTS
from fedround_client.rpc import Rpc
from fedround_client.safetensors_reader import SafetensorsReader
from fedround_client.tensor_types import Framework
from fedround_client.upload import upload

PartName: TypeAlias = Literal["MODEL", "POSTERIOR", "DELTA", "BASE"]


class ModelCalls:
    """The calls of ModelService."""

    _rpc: Rpc

    def upload_model(
        self,
        model: ModelSource,
        *,
        name: str = "",
        description: str = "",
        architecture: str = "",
        allow_non_finite_buffers: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """Stores a model file as version 0 of a new model; resumes after a lost connection. For actors.

        Args:
            model: A state dict of numpy arrays, torch tensors or arrays of other libraries, or the path of a
                safetensors file.
            name: A name for people, at most 200 characters.
            description: A description for people, at most 10,000 characters.
            architecture: The architecture that `predict` uses, by the name that the operator registered.
            allow_non_finite_buffers: Accept Inf and NaN, for example in the buffer of a mask. A training of the model
                needs the option, too.
            progress: Called with the bytes sent and the bytes in all.

        Raises:
            TensorError: The model is none, or cannot be written as safetensors; the message says what to write.
            ModelFormat: The file is not safetensors, or not in the form that the server accepts.
            ModelTooLarge: The file is larger than the server allows.
        """
        payload = Payload.of(model, names_framework=True)
        upload_id = str(uuid.uuid4())

        def first(offset: int) -> UploadModelRequest:
            spec = ModelSpec(
                name=name,
                description=description,
                architecture=architecture,
                allow_non_finite_buffers=allow_non_finite_buffers,
                sha256=payload.sha256,
                size_bytes=payload.size_bytes,
                upload_id=upload_id,
                offset=offset,
            )
            return UploadModelRequest(spec=spec)

        return upload(
            self._rpc,
            self._rpc.models.UploadModel,
            payload,
            upload_id,
            first,
            UploadModelRequest,
            progress=progress,
        ).model

    def get_model(self, model_id: str) -> Model:
        """Returns a model: its latest version, and the names, shapes and dtypes of its tensors.

        Raises:
            ModelNotFound: You have no such model.
        """
        return self._rpc.unary(self._rpc.models.GetModel, model_pb2.GetModelRequest(model_id=model_id)).model

    def models(self) -> Iterator[Model]:
        """Iterates over your models, the newest first; fetches them page by page."""
        for page in self._rpc.pages(self._rpc.models.GetModels, model_pb2.GetModelsRequest()):
            yield from page.models

    def model_versions(self, model_id: str) -> Iterator[ModelVersion]:
        """Iterates over the versions of a model with their tags and metrics, the newest first.

        Raises:
            ModelNotFound: You have no such model.
        """
        request = model_pb2.GetModelVersionsRequest(model_id=model_id)
        for page in self._rpc.pages(self._rpc.models.GetModelVersions, request):
            yield from page.versions

    def tag_model(self, model_id: str, version: int, tag: str) -> ModelVersion:
        """Adds a tag to a version of a model of yours; a tagged version keeps its file.

        Args:
            model_id: UUID of the model.
            version: Number of the version.
            tag: "pinned", which any number of versions may have, or a tag of your own, which moves from one version of
                the model to another; lower case, at most 50 characters. The server itself sets "last" and "best".

        Raises:
            ModelNotFound: You own no such model, it has no such version, or the version has lost its file.
            FieldInvalid: The tag is not valid.
        """
        return self._tag(model_id, version, tag, remove=False)

    def untag_model(self, model_id: str, version: int, tag: str) -> ModelVersion:
        """Removes a tag from a version; does nothing if the version does not have it.

        Raises:
            ModelNotFound: You own no such model, it has no such version, or the version has lost its file.
            FieldInvalid: The tag is not valid.
        """
        return self._tag(model_id, version, tag, remove=True)

    def _tag(self, model_id: str, version: int, tag: str, *, remove: bool) -> ModelVersion:
        request = model_pb2.TagModelVersionRequest(model_id=model_id, version=version, tag=tag, remove=remove)
        return self._rpc.unary(self._rpc.models.TagModelVersion, request).version

    @overload
    def download_model(
        self,
        model_id: str,
        version: int | None = None,
        *,
        tag: str = "",
        part: PartName = "MODEL",
        tensors: Iterable[str] = (),
        to: None = None,
        framework: Framework = "numpy",
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> dict[str, Any]: ...
    @overload
    def download_model(
        self,
        model_id: str,
        version: int | None = None,
        *,
        tag: str = "",
        part: PartName = "MODEL",
        tensors: Iterable[str] = (),
        to: str | PathLike[str],
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> Path: ...
    def download_model(
        self,
        model_id: str,
        version: int | None = None,
        *,
        tag: str = "",
        part: PartName = "MODEL",
        tensors: Iterable[str] = (),
        to: str | PathLike[str] | None = None,
        framework: Framework = "numpy",
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> dict[str, Any] | Path:
        """Downloads a version of a model, and verifies its SHA-256; resumes after a lost connection.

        Args:
            model_id: UUID of a model of yours, or of a training in which you participate.
            version: Number of updates of the global model so far; None for the latest one.
            tag: Instead of a version: the latest one that has this tag, for example "best".
            part: "POSTERIOR" for the SWAG posterior of the version: float64 arrays mean/NAME and second/NAME, and
                float32 arrays deviation/K/NAME for the low-rank part. Of a version that is stored as a base and a
                delta: "DELTA" for the tensors that replace those of the base, "BASE" for the base.
            tensors: Globs of the names of the tensors to download, such as "encoder.*"; all by default.
            to: Path of a safetensors file to write. It is replaced once the download is complete, and nothing is
                downloaded if it already has these bytes. None to return the tensors.
            framework: "numpy" for arrays, "torch" for tensors.
            attempts: How many attempts in a row may fail without progress; None for any number.
            progress: Called with the bytes received and the bytes in all.

        Returns:
            np.ndarray or torch.Tensor by name; or the path, if one was given.

        Raises:
            ModelNotFound: You have no such model, it has no such version, or the version has no file or no posterior.
            DigestMismatch: The received bytes do not have the announced SHA-256.
            TensorError: The model has tensors of a dtype that numpy does not have (bfloat16, float8); use "torch".
            OSError: The file cannot be written.
        """

        have, globs = "" if to is None else file_sha256(Path(to)), tuple(tensors)

        def request(offset: int, info: ModelInfo | None) -> DownloadModelRequest:
            # A resumed download needs the same version, even if another one is the latest, or has the tag, by now.
            return DownloadModelRequest(
                model_id=model_id,
                version=version if info is None else info.version,
                tag=tag if info is None else "",
                part=model_pb2.ModelPart.Value(f"MODEL_PART_{part}"),
                offset=offset,
                have_sha256=have,
                tensors=globs,
                compression=self._rpc.compression,
            )

        def fetch(sink: Sink) -> ModelInfo:
            method = self._rpc.models.DownloadModel
            return download(self._rpc, method, request, sink, have=have, attempts=attempts, progress=progress)

        if to is None:
            reader = SafetensorsReader(framework)
            fetch(reader)
            return reader.tensors()
        target = Path(to)
        incomplete = target.with_name(f".{target.name}.{uuid.uuid4()}.part")
        try:
            with incomplete.open("xb") as file:
                fetched = fetch(file)
            return target if fetched.sha256 == have else incomplete.replace(target)
        finally:
            incomplete.unlink(missing_ok=True)

    def remove_model(self, model_id: str) -> None:
        """Removes a model with all its versions, unless a training that has not ended needs it.

        Raises:
            ModelNotFound: You have no such model.
            ModelInUse: A training that has not ended needs it.
        """
        self._rpc.unary(self._rpc.models.RemoveModel, model_pb2.RemoveModelRequest(model_id=model_id))

    def metrics(self, model_id: str) -> Iterator[MetricReport]:
        """Iterates over the metrics reported on a model, round by round; the weighted means of a round come first.

        The means of a model of yours have a `spread` by metric: min, median and max over the participants, and means by
        label of their users.

        Raises:
            ModelNotFound: You have no such model.
        """
        request = model_pb2.GetMetricsRequest(model_id=model_id)
        for page in self._rpc.pages(self._rpc.models.GetMetrics, request):
            yield from page.reports
