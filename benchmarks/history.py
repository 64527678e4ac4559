"""A part of growth.py: a training with a long log, and what calls into it take."""

import asyncio
import hashlib
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from callers import Caller
from fedround.v1.model_pb2 import GetMetricsRequest, GetModelVersionsRequest
from fedround.v1.round_pb2 import GetRoundRequest
from fedround.v1.training_pb2 import TRAINING_ROLE_CLIENT, GetTrainingRequest, GetTrainingsRequest, Training
from fedround_server.domain.model import BlobRef
from fedround_server.domain.update import NewUpdate
from fedround_server.store import Store

Figures = dict[str, Any]
Call = Callable[[], object]


def write_history(database: str | Path, training_id: str, user_ids: Sequence[str], rounds: int) -> int:
    """Has everybody's updates accepted and committed, round after round, by the store's verbs while no server runs.

    Only rows are written: there are no files of these updates and versions.

    Returns:
        The number of events in the training's log.
    """
    with Store(database) as store:
        return asyncio.run(_write(store, training_id, user_ids, rounds))


async def _write(store: Store, training_id: str, user_ids: Sequence[str], rounds: int) -> int:
    for number in range(rounds):
        for user_id in user_ids:
            update = NewUpdate(training_id, number, user_id, _blob(f"{number} {user_id}"), 1, {"loss": 0.5})
            await store.submissions.submit_update(str(uuid.uuid4()), update, datetime.now(UTC))
        task = await store.rounds.find_aggregation(training_id)
        assert task is not None
        await store.rounds.commit(training_id, number, task.round.epoch, _blob(f"{number}"), datetime.now(UTC))
    return (await store.events.views(user_ids[0], [training_id]))[0].last_sequence


def _blob(content: str) -> BlobRef:
    return BlobRef(hashlib.sha256(content.encode()).hexdigest(), 100)


def time_calls(
    actor: Caller, clients: dict[str, Caller], trainings: dict[str, Training], ends: dict[str, int], calls: int
) -> Figures:
    """Times calls into trainings, in turn.

    Args:
        actor: Who steers them all.
        clients: A participant of each, by the training's name here; the last name is of the one to compare with.
        trainings: The trainings.
        ends: The last sequence of each one's log.
        calls: How many of each.

    Returns:
        By call and training: the median and the 99th percentile in milliseconds, and the ratio of the medians.
    """
    timed = {name: _calls(actor, clients[name], trainings[name], ends[name]) for name in trainings}
    *_, fresh = trainings
    found: Figures = {}
    for method in timed[fresh]:
        times: dict[str, list[float]] = {name: [] for name in trainings}
        for _ in range(calls):
            for name, of_training in timed.items():
                begin = time.perf_counter()
                of_training[method]()
                times[name].append((time.perf_counter() - begin) * 1e3)
        found[method] = {
            name: {
                "median_ms": round(statistics.median(values), 2),
                "p99_ms": round(statistics.quantiles(values, n=100)[-1], 2),
                "ratio": round(statistics.median(values) / statistics.median(times[fresh]), 2),
            }
            for name, values in times.items()
        }
    return found


def replay(caller: Caller, training_id: str, last: int) -> Figures:
    """Reads a whole log from its start to the sequence `last`."""
    begin, count = time.perf_counter(), 0
    stream = caller.events(training_id, 0)
    for event in stream:
        count += 1
        if event.sequence >= last:
            break
    seconds = time.perf_counter() - begin
    stream.cancel()
    return {"events": count, "seconds": round(seconds, 3), "events_per_second": round(count / seconds)}


def _calls(actor: Caller, client: Caller, training: Training, end: int) -> dict[str, Call]:
    training_id, model_id = training.training_id, training.model_id
    get, versions = GetTrainingRequest(training_id=training_id), GetModelVersionsRequest(model_id=model_id)
    metrics, mine = GetMetricsRequest(model_id=model_id), GetTrainingsRequest(page_size=50, role=TRAINING_ROLE_CLIENT)

    def subscribe(caller: Caller, after: int | None) -> None:
        stream = caller.events(training_id, after)
        # At the end of the log nothing is new, and the server greets with its metadata.
        stream.initial_metadata() if after == end else next(stream)
        stream.cancel()

    return {
        "GetTraining": lambda: actor.trainings.GetTraining(get),
        "GetTraining (participant)": lambda: client.trainings.GetTraining(get),
        "GetTrainings": lambda: client.trainings.GetTrainings(mine),
        "GetRound": lambda: actor.rounds.GetRound(GetRoundRequest(training_id=training_id)),
        "GetModelVersions": lambda: actor.models.GetModelVersions(versions),
        "GetMetrics": lambda: actor.models.GetMetrics(metrics),
        "GetMetrics (participant)": lambda: client.models.GetMetrics(metrics),
        "Subscribe": lambda: subscribe(client, None),
        "Subscribe, resume at the end": lambda: subscribe(client, end),
        "Subscribe, resume at 0": lambda: subscribe(client, 0),
        "Subscribe, resume at 0 (actor)": lambda: subscribe(actor, 0),
    }
