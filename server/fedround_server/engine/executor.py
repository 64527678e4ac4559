"""Runs engine jobs in processes of their own: the only way into torch."""

import asyncio
import resource
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from fedround_server.domain.limits import DEFAULTS
from fedround_server.domain.model import BlobRef
from fedround_server.domain.prediction import Prediction
from fedround_server.domain.swag_moments import SWAG_MOMENTS
from fedround_server.engine.jobs import AggregationJob, Examination, Origin, PredictionJob
from fedround_server.engine.process import Worker, WorkerLost
from fedround_server.host.page_cache import drop_cached_pages

__all__ = ["Engine", "WorkerEngine", "WorkerLost"]


class Engine(Protocol):
    """What the coordinator asks for; jobs are pure functions of files."""

    async def examine(self, path: Path, origin: Origin | None = None) -> Examination:
        """Looks for NaN and Inf in a safetensors file, and measures how far it is from the model that it was made from.

        Raises:
            WorkerLost: The job cannot be done.
            WorkerKilled: Not now.
        """

    async def aggregate(self, job: AggregationJob, target: Path) -> BlobRef:
        """Aggregates the updates of a round into a new file, forced to disk.

        Raises:
            AggregationFailed: The result has values that the model's dtype cannot hold.
            WorkerLost: The job cannot be done.
            WorkerKilled: Not now.
        """

    async def predict(self, job: PredictionJob) -> Prediction:
        """Predicts within bounds of time and memory.

        Raises:
            PredictionFailed: The inputs, the weights and the architecture don't fit, or memory ran out.
            TimeoutError: It takes too long.
            WorkerLost: The job cannot be done.
            WorkerKilled: Not now.
        """


class WorkerEngine:
    """An engine in spawned processes, which are replaced when they die. Open it with `with`, before any gRPC server.

    Predictions have a process of their own, made for the first one: it runs the operator's code, and is ended when
    that takes too long.
    """

    def __init__(
        self, predict_seconds: float = DEFAULTS.predict_seconds, predict_bytes: int = DEFAULTS.predict_bytes
    ) -> None:
        """Starts nothing yet.

        Args:
            predict_seconds: How long a prediction may take.
            predict_bytes: How much memory the operator's code and a prediction may take, beside torch.
        """
        self._worker = Worker(_prepare)
        self._predictor = Worker(_Bounds(predict_bytes))
        self._predicting: asyncio.Lock | None = None
        self._predict_seconds = predict_seconds

    def __enter__(self) -> Self:
        """Starts the worker, without waiting until it has loaded torch."""
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the processes; a job under way is not waited for."""
        self._worker.end()
        self._predictor.end()

    async def check_architectures(self, architectures: Iterable[str]) -> None:
        """Builds the operator's architectures once, so that mistakes show at the start.

        Raises:
            PredictionFailed: One cannot be built.
        """
        for architecture in architectures:
            self._start_predictor()
            await self._predictor.run(_check, architecture)

    async def examine(self, path: Path, origin: Origin | None = None) -> Examination:
        """Looks at a file's numbers."""
        return await self._worker.run(_examine, path, origin)

    async def aggregate(self, job: AggregationJob, target: Path) -> BlobRef:
        """Aggregates a round; target is made by a job that came to its end only."""
        return await self._worker.run(_aggregate, job, target)

    async def predict(self, job: PredictionJob) -> Prediction:
        """Predicts, one job after the other; the time counts from its turn."""
        async with self._start_predictor():
            # A new process loads torch for seconds, which is not the prediction's time.
            await self._predictor.run(_load_torch)
            try:
                async with asyncio.timeout(self._predict_seconds):
                    return await self._predictor.run(_predict, job)
            except (TimeoutError, asyncio.CancelledError):
                # Nobody waits for it any more, and it would keep the next one waiting.
                self._predictor.replace()
                raise

    def _start_predictor(self) -> asyncio.Lock:
        if self._predicting is None:
            self._predicting = asyncio.Lock()
            self._predictor.start()
        return self._predicting


class _Bounds:
    """Prepares a process for predictions."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def __call__(self) -> None:
        _load_torch()
        status = Path("/proc/self/status")
        if not status.exists():
            return
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
        used = int(line.split()[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + self._max_bytes, resource.RLIM_INFINITY))


def _prepare() -> None:
    """Prepares a process for files.

    One thread: two share a block in 50 microseconds if each has a core to itself, which makes 1.3 times the speed. On
    busy cores each block waits until both had their turn, which makes a tenth.
    """
    import torch

    _load_torch()
    torch.set_num_threads(1)


def _load_torch() -> None:
    import torch

    torch.set_grad_enabled(False)


def _examine(path: Path, origin: Origin | None) -> Examination:
    from fedround_server.engine.check import examine

    return examine(path, origin)


def _aggregate(job: AggregationJob, target: Path) -> BlobRef:
    from fedround_server.engine.aggregation import aggregate
    from fedround_server.engine.uncertainty.moments import collect

    # A worker that died in an earlier attempt may have left a part; the next start sweeps it.
    part = target.with_name(f"{target.name}.{uuid.uuid4()}")
    try:
        blob = (collect if job.algorithm == SWAG_MOMENTS else aggregate)(job, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    for path in job.updates:
        drop_cached_pages(path)
    return blob


def _check(architecture: str) -> None:
    from fedround_server.engine.prediction import check

    check(architecture)


def _predict(job: PredictionJob) -> Prediction:
    from fedround_server.engine.prediction import predict

    return predict(job)
