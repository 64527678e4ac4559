"""Models: stored on the server, version by version."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

from fedround.v1 import model_pb2
from fedround.v1.event_pb2 import ModelInfo
from fedround.v1.model_pb2 import DownloadModelRequest, MetricReport, Model, ModelSpec, ModelVersion, UploadModelRequest
from fedround_client.rpc import ATTEMPTS, Rpc
from fedround_client.tensors import Framework, SafetensorsReader
from fedround_client.transfer import ModelSource, Payload, Progress, Sink, digest_of, download, upload

PartName: TypeAlias = Literal["MODEL", "POSTERIOR"]


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
        progress: Progress | None = None,
    ) -> Model:
        """Stores a model as version 0 of a new one; a cut upload goes on where it was. For actors.

        Args:
            model: A state dict of numpy arrays or torch tensors, or the path of a safetensors file.
            name: For people, at most 200 characters.
            description: For people, at most 10,000 characters.
            architecture: What `predict` builds for the model: a name that the operator registered.
            progress: Told how many bytes of how many are sent.

        Raises:
            TensorError: The state dict cannot be written as safetensors.
            ModelFormat: The file is not safetensors as the server takes it.
            ModelTooLarge: It is larger than the server takes.
        """
        payload = Payload.of(model)
        upload_id = str(uuid.uuid4())

        def first(offset: int) -> UploadModelRequest:
            spec = ModelSpec(
                name=name,
                description=description,
                architecture=architecture,
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
        """Answers what a model is: its latest version, its tensors' names, shapes and dtypes.

        Raises:
            ModelNotFound: You have no such model.
        """
        return self._rpc.unary(self._rpc.models.GetModel, model_pb2.GetModelRequest(model_id=model_id)).model

    def models(self) -> Iterator[Model]:
        """Iterates over your models, the newest first, fetching page after page."""
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
        """Puts a tag on a version of a model of yours; a tagged version keeps its file.

        Args:
            model_id: UUID of the model.
            version: Updates of the global model that made the version.
            tag: "pinned", which any number of versions may carry, or a word of your own, which moves from one version
                of the model to the other; lower case, at most 50 characters. The server itself moves "last" and "best".

        Raises:
            ModelNotFound: You own no such model, or the version or its file is not there.
            FieldInvalid: The tag is refused.
        """
        return self._tag(model_id, version, tag, remove=False)

    def untag_model(self, model_id: str, version: int, tag: str) -> ModelVersion:
        """Takes a tag from a version, if it carries it.

        Raises:
            ModelNotFound: You own no such model, or the version or its file is not there.
            FieldInvalid: The tag is refused.
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
        to: str | PathLike[str] | None = None,
        framework: Framework = "numpy",
        attempts: int | None = ATTEMPTS,
        progress: Progress | None = None,
    ) -> dict[str, Any] | Path:
        """Fetches a version of a model and verifies its SHA-256; a cut download goes on where it was.

        Args:
            model_id: UUID of a model of yours, or of a training that you take part in.
            version: Number of updates of the global model so far; None for the latest one.
            tag: The version that carries this tag instead, such as "best"; of several the latest.
            part: "POSTERIOR" for the SWAG posterior around the version: float64 arrays mean/NAME and second/NAME, and
                float32 arrays deviation/K/NAME for a low-rank part.
            to: Path of a safetensors file to write; it appears once it is complete, and is not fetched again if it is
                there. None to get the tensors.
            framework: "numpy" for arrays, "torch" for tensors.
            attempts: How many in a row may fail without progress; None for any number.
            progress: Told how many bytes of how many have arrived.

        Returns:
            np.ndarray or torch.Tensor by name; or the path, if there is one.

        Raises:
            ModelNotFound: You have no such model, it has no such version, or the version no file or posterior.
            DigestMismatch: The bytes were damaged.
            TensorError: The model has tensors (bfloat16) that numpy cannot hold; ask for "torch".
            OSError: The file cannot be written.
        """

        have = "" if to is None else digest_of(Path(to))

        def request(offset: int, info: ModelInfo | None) -> DownloadModelRequest:
            # After a cut the same version is asked for again, even if the latest or the tagged one is another by now.
            return DownloadModelRequest(
                model_id=model_id,
                version=version if info is None else info.version,
                tag=tag if info is None else "",
                part=model_pb2.ModelPart.Value(f"MODEL_PART_{part}"),
                offset=offset,
                have_sha256=have,
                packing=self._rpc.packing,
            )

        def fetch(sink: Sink) -> ModelInfo:
            method = self._rpc.models.DownloadModel
            return download(self._rpc, method, request, sink, have=have, attempts=attempts, progress=progress)

        if to is None:
            arrival = SafetensorsReader(framework)
            fetch(arrival)
            return arrival.tensors()
        target = Path(to)
        incomplete = target.with_name(f".{target.name}.{uuid.uuid4()}.part")
        try:
            with incomplete.open("xb") as file:
                fetched = fetch(file)
            return target if fetched.sha256 == have else incomplete.replace(target)
        finally:
            incomplete.unlink(missing_ok=True)

    def remove_model(self, model_id: str) -> None:
        """Removes a model with all its versions; refused while a training that has not ended needs it.

        Raises:
            ModelNotFound: You have no such model.
            ModelInUse: A training needs it.
        """
        self._rpc.unary(self._rpc.models.RemoveModel, model_pb2.RemoveModelRequest(model_id=model_id))

    def metrics(self, model_id: str) -> Iterator[MetricReport]:
        """Iterates over the metrics reported on a model, by round; a round's weighted means come first.

        Raises:
            ModelNotFound: You have no such model.
        """
        request = model_pb2.GetMetricsRequest(model_id=model_id)
        for page in self._rpc.pages(self._rpc.models.GetMetrics, request):
            yield from page.reports
