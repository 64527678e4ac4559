"""What runs in the engine's processes: the only functions that load torch, and dp-accounting."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedround_server.blobs import BlobFiles, StagedBlob
from fedround_server.domain.model import BlobRef, VersionFile
from fedround_server.domain.prediction import Prediction
from fedround_server.domain.privacy import Mechanism
from fedround_server.domain.swag_moments import SwagMoments
from fedround_server.engine.jobs import AggregationJob, CheckJob, CheckResult, PredictionJob, Replay, StagedResult
from fedround_server.host.page_cache import drop_cached_pages
from fedround_server.host.sync import skip_syncs

if TYPE_CHECKING:
    from fedround_server.engine.computation import Spread


def load_torch() -> None:
    """Loads torch, which takes seconds."""
    import torch

    torch.set_grad_enabled(False)


def prepare(*, no_sync: bool = False) -> None:
    """Prepares a process for checks and aggregations.

    torch uses one thread: two share a block in 50 microseconds if each has a core to itself, which is 1.3 times as
    fast. On busy cores each block waits until both were scheduled, which is a tenth as fast. An aggregation has threads
    that compute a block each.

    Args:
        no_sync: Whether nothing is forced to disk.
    """
    import torch

    if no_sync:
        skip_syncs()
    load_torch()
    torch.set_num_threads(1)


def prepare_predictions(max_bytes: int) -> None:
    """Prepares a process for predictions: loads torch, and limits the memory beside it where the system has /proc."""
    load_torch()
    status = Path("/proc/self/status")
    if not status.exists():
        return
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
    used = int(line.split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + max_bytes, resource.RLIM_INFINITY))


def run_check(files: BlobFiles, job: CheckJob) -> CheckResult:
    """Checks a file's numbers.

    Raises:
        BlobDamaged: The origin is not what was stored.
    """
    from fedround_server.engine.check import check_numbers
    from fedround_server.engine.check_sums import check_sums
    from fedround_server.engine.format.versions import open_version

    if job.sums is not None:
        return check_sums(files.local_path(job.file), job.sums)
    with ExitStack() as stack:
        origin = None if job.origin is None else stack.enter_context(open_version(files, job.origin))
        model = None if job.model is None else stack.enter_context(open_version(files, job.model))
        return check_numbers(files.local_path(job.file), origin, job.prefix, model, job.block_sizes, job.beside)


def run_aggregation(
    files: BlobFiles, job: AggregationJob, threads: int = 1, spread: Spread | None = None
) -> StagedResult:
    """Aggregates the updates of a round into a staged file; `aggregate` describes the arguments.

    Raises:
        AggregationFailed: The result has values that the model's dtype cannot hold.
        BlobDamaged: The model or an update is not what was stored.
    """
    from fedround_server.engine.aggregation import aggregate
    from fedround_server.engine.uncertainty.moments import collect

    begin = time.time_ns()
    files.prepare(job.updates)
    paths = [files.local_path(update) for update in job.updates]
    with ExitStack() as stack:
        staged, path = stack.enter_context(files.stage())
        if isinstance(job.aggregation, SwagMoments):
            posterior = collect(files, job, path)
            result = StagedResult(staged, posterior, posterior, begin_time=begin)
        else:
            slots = {slot: stack.enter_context(files.stage()) for slot in job.aggregation.slots}
            targets = {slot: slot_path for slot, (_, slot_path) in slots.items()}
            made = aggregate(files, job, path, targets, threads, spread)
            blob = made.made if isinstance(made.made, BlobRef) else made.made.delta
            state = {slot: StagedBlob(slots[slot][0], blob) for slot, blob in made.slots.items()}
            result = StagedResult(staged, blob, made.made, state, made.steps, made.report, begin)
    for path in paths:
        drop_cached_pages(path)
    return result


def run_replay(
    files: BlobFiles,
    job: AggregationJob,
    recorded: VersionFile | None,
    threads: int = 1,
    spread: Spread | None = None,
) -> Replay:
    """Aggregates the updates of a round once more, and removes the files that it has made.

    Raises:
        AggregationFailed: The result has values that the model's dtype cannot hold, or the rule finds no result.
        BlobDamaged: A file is not what was stored.
    """
    from fedround_server.engine.aggregation import aggregate
    from fedround_server.engine.check import check_numbers
    from fedround_server.engine.format.versions import open_version

    files.prepare(job.updates)
    with ExitStack() as stack:
        paths = {slot: stack.enter_context(files.stage())[1] for slot in ("", *job.aggregation.slots)}
        for path in paths.values():
            stack.callback(path.unlink, missing_ok=True)
        target = paths.pop("")
        made = aggregate(files, job, target, paths, threads, spread).made
        if recorded is None:
            return Replay(made.sha256, None)
        origin = stack.enter_context(open_version(files, recorded))
        return Replay(made.sha256, check_numbers(target, origin, model=origin).norm)


def prepare_accounting() -> None:
    """Prepares a process for accounting: whether its package is there shows with the first job."""
    with suppress(ImportError):
        import dp_accounting.pld.privacy_loss_distribution  # noqa: F401 - loads it


def run_epsilon(mechanism: Mechanism, rounds: int) -> float:
    """Returns epsilon of a number of rounds.

    Raises:
        AccountingMissing: dp-accounting is not installed.
    """
    from fedround_server.engine.accountant import epsilon

    return epsilon(mechanism, rounds)


def run_affordable_rounds(mechanism: Mechanism, budget: float) -> int:
    """Returns how many rounds cost at most a budget.

    Raises:
        AccountingMissing: dp-accounting is not installed.
    """
    from fedround_server.engine.accountant import affordable_rounds

    return affordable_rounds(mechanism, budget)


def run_prediction(files: BlobFiles, job: PredictionJob) -> Prediction:
    """Predicts outputs for inputs.

    Raises:
        PredictionFault: The inputs, the weights and the architecture do not fit, or memory ran out.
        BlobDamaged: A model or the posterior is not what was stored.
    """
    from fedround_server.engine.prediction import predict

    return predict(files, job)


def check_architecture(architecture: str) -> None:
    """Builds an architecture, to see whether it can be built.

    Raises:
        PredictionFault: It cannot.
    """
    from fedround_server.engine.prediction import build_architecture

    build_architecture(architecture)
