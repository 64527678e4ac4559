"""Runs jobs in processes of their own; the server's process never loads torch."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol, Self

from cachetools import LRUCache

from fedround_server.blobs import BlobFiles
from fedround_server.counters import Counters
from fedround_server.domain.limits import DEFAULTS
from fedround_server.domain.model import VersionFile
from fedround_server.domain.prediction import Prediction
from fedround_server.domain.privacy import Mechanism
from fedround_server.engine import worker
from fedround_server.engine.jobs import AggregationJob, CheckJob, CheckResult, PredictionJob, Replay, StagedResult
from fedround_server.engine.process import Worker, WorkerLost

__all__ = ["Engine", "WorkerEngine", "WorkerLost"]


EPSILONS = 4096
"""How many values of epsilon are remembered."""


class Engine(Protocol):
    """What the coordinator asks for. Jobs are pure functions of the blobs that they refer to.

    Each raises `WorkerLost` if the job cannot be done, and `WorkerKilled` if it cannot be done now.
    """

    async def check(self, job: CheckJob) -> CheckResult:
        """Looks for NaN and Inf in a safetensors file, and measures how far it is from its origin.

        Raises:
            BlobDamaged: The origin is not what was stored.
        """

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        """Aggregates the updates of a round into a new file, forced to disk, which the caller commits.

        Raises:
            AggregationFailed: The result has values that the model's dtype cannot hold.
            BlobDamaged: The model or an update is not what was stored.
        """

    async def replay(self, job: AggregationJob, recorded: VersionFile | None) -> Replay:
        """Aggregates the updates of a round once more, and keeps nothing.

        Args:
            job: The aggregation.
            recorded: The version to measure the distance from; None for no distance.

        Raises:
            AggregationFailed: As for `aggregate`.
            BlobDamaged: A file is not what was stored.
        """

    async def epsilon(self, mechanism: Mechanism, rounds: int) -> float:
        """Returns epsilon of a number of rounds with differential privacy.

        Raises:
            AccountingMissing: What computes it is not installed.
        """

    async def affordable_rounds(self, mechanism: Mechanism, budget: float) -> int:
        """Returns how many rounds cost at most a budget of epsilon; MAX_ROUNDS stands for any number.

        Raises:
            AccountingMissing: What computes it is not installed.
        """

    async def predict(self, job: PredictionJob) -> Prediction:
        """Predicts within limits of time and memory.

        Raises:
            PredictionFault: The inputs, the weights and the architecture do not fit, or memory ran out.
            TimeoutError: It takes too long.
            BlobDamaged: A model or the posterior is not what was stored.
        """

    def process_ids(self) -> Mapping[str, int]:
        """Returns the ids of the processes that were started, by the names of their queues in `Counters`."""


class WorkerEngine:
    """An engine in spawned processes, which are replaced when they die. Open it with `with`, before any gRPC server.

    Predictions have a process of their own, started for the first one: it runs the operator's code, and is ended when
    that takes too long. So has the accounting of privacy, which needs no torch and must not wait for aggregations.
    """

    def __init__(
        self,
        files: BlobFiles,
        predict_seconds: float = DEFAULTS.predict_seconds,
        predict_bytes: int = DEFAULTS.predict_bytes,
        aggregation_threads: int = 1,
        *,
        no_sync: bool = False,
        counters: Counters | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            files: Where the files of jobs are.
            predict_seconds: How long a prediction may take.
            predict_bytes: How much memory the operator's code and a prediction may take, beside torch.
            aggregation_threads: How many threads compute an aggregation.
            no_sync: Whether nothing is forced to disk.
            counters: Where jobs are counted; None for counters of its own.
        """
        self._files = files
        queues = (counters or Counters()).queues
        self._worker = Worker(partial(worker.prepare, no_sync=no_sync), queues["worker"])
        self._predictor = Worker(partial(worker.prepare_predictions, predict_bytes), queues["predictor"])
        self._accountant = Worker(worker.prepare_accounting, queues["accountant"])
        self._accounts = False
        self._epsilons: LRUCache[tuple[Mechanism, int], float] = LRUCache(EPSILONS)
        self._predicting: asyncio.Lock | None = None
        self._predict_seconds = predict_seconds
        self._aggregation_threads = aggregation_threads

    def __enter__(self) -> Self:
        """Starts the worker, without waiting until it has loaded torch."""
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes without waiting for a job."""
        self._worker.end()
        self._predictor.end()
        self._accountant.end()

    async def check_architectures(self, architectures: Iterable[str]) -> None:
        """Builds the operator's architectures once, so that mistakes show at the start.

        Raises:
            PredictionFault: One cannot be built.
        """
        for architecture in architectures:
            self._start_predictor()
            await self._predictor.run(worker.check_architecture, architecture)

    async def check(self, job: CheckJob) -> CheckResult:
        """Checks a file's numbers."""
        return await self._worker.run(worker.run_check, self._files, job)

    async def aggregate(self, job: AggregationJob) -> StagedResult:
        """Aggregates a round."""
        return await self._worker.run(worker.run_aggregation, self._files, job, self._aggregation_threads)

    async def replay(self, job: AggregationJob, recorded: VersionFile | None) -> Replay:
        """Aggregates a round once more."""
        return await self._worker.run(worker.run_replay, self._files, job, recorded)

    async def epsilon(self, mechanism: Mechanism, rounds: int) -> float:
        """Returns epsilon of a number of rounds."""
        key = mechanism, rounds
        if key not in self._epsilons:
            self._start_accountant()
            self._epsilons[key] = await self._accountant.run(worker.run_epsilon, mechanism, rounds)
        return self._epsilons[key]

    async def affordable_rounds(self, mechanism: Mechanism, budget: float) -> int:
        """Returns how many rounds a budget allows."""
        self._start_accountant()
        return await self._accountant.run(worker.run_affordable_rounds, mechanism, budget)

    async def predict(self, job: PredictionJob) -> Prediction:
        """Predicts, one job after the other; a job's time starts with its turn."""
        async with self._start_predictor():
            # A new process loads torch for seconds, which do not count.
            await self._predictor.run(worker.load_torch)
            try:
                async with asyncio.timeout(self._predict_seconds):
                    return await self._predictor.run(worker.run_prediction, self._files, job)
            except (TimeoutError, asyncio.CancelledError):
                # The result is not needed any more, and the job would delay the next one.
                self._predictor.replace()
                raise

    def process_ids(self) -> Mapping[str, int]:
        """Returns the ids of the processes that were started."""
        workers = {"worker": self._worker, "predictor": self._predictor, "accountant": self._accountant}
        return {name: one.process_id for name, one in workers.items() if one.process_id is not None}

    def _start_accountant(self) -> None:
        if not self._accounts:
            self._accounts = True
            self._accountant.start()

    def _start_predictor(self) -> asyncio.Lock:
        if self._predicting is None:
            self._predicting = asyncio.Lock()
            self._predictor.start()
        return self._predicting
