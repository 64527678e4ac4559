"""Asynchronous trainings: aggregations that take updates whatever version they started from."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.message import Message

from fedround.v1 import aggregation_pb2
from fedround.v1.aggregation_pb2 import Aggregation, Buffering
from fedround_client.aggregation import AggregationOption, aggregate


def FedBuff(  # noqa: N802 - the name that users know
    size: int = 10,
    max_staleness: int = 10,
    exponent: float = 0.5,
    *,
    aggregation: AggregationOption | None = None,
    clipping: Message | None = None,
    mixing: Message | None = None,
    server_optimizer: Message | None = None,
    buffers: Iterable[str] = (),
) -> Aggregation:
    """Returns FedBuff (Nguyen et al., AISTATS 2022, arXiv 2106.06639), in which no participant waits for another.

    A version is made once `size` updates have arrived. Each counts by its difference from the version that it started
    from, multiplied by (1 + staleness)^-exponent, where the staleness is the number of versions made since.

    Args:
        size: How many updates make a version, >= 1. A participant has at most one among them.
        max_staleness: >= 1; an update with a larger staleness is discarded.
        exponent: >= 0; 0 lets all updates count alike.
        aggregation: Another rule than FedAvg, or an aggregation without buffering.
        clipping: As in `aggregate`.
        mixing: As in `aggregate`.
        server_optimizer: As in `aggregate`.
        buffers: As in `aggregate`.

    Raises:
        TypeError, ValueError: As `aggregate`, or an option is out of range.
    """
    buffering = Buffering(fed_buff=aggregation_pb2.FedBuff(), size=_at_least_one("size", size))
    _set_common(buffering, max_staleness, exponent)
    return aggregate(
        aggregation,
        clipping=clipping,
        mixing=mixing,
        server_optimizer=server_optimizer,
        buffering=buffering,
        buffers=buffers,
    )


def FedAsync(  # noqa: N802 - the name that users know
    alpha: float = 0.6,
    max_staleness: int = 10,
    exponent: float = 0.5,
    *,
    aggregation: AggregationOption | None = None,
    clipping: Message | None = None,
    server_optimizer: Message | None = None,
    buffers: Iterable[str] = (),
) -> Aggregation:
    """Returns FedAsync (Xie et al., 2019, arXiv 1903.03934), in which each update makes a version.

    x = (1 - a) * x + a * w, where x is the model, w the update, and a = alpha * (1 + staleness)^-exponent.

    Args:
        alpha: How far the model moves towards an update, 0 < alpha <= 1.
        max_staleness: As in `FedBuff`.
        exponent: As in `FedBuff`.
        aggregation: Another rule than FedAvg that takes a single update, or an aggregation without buffering.
        clipping: As in `aggregate`.
        server_optimizer: As in `aggregate`.
        buffers: As in `aggregate`.

    Raises:
        TypeError, ValueError: As `aggregate`, or an option is out of range.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be > 0 and <= 1, not {alpha!r}.")
    buffering = Buffering(fed_async=aggregation_pb2.FedAsync(alpha=alpha))
    _set_common(buffering, max_staleness, exponent)
    return aggregate(
        aggregation, clipping=clipping, server_optimizer=server_optimizer, buffering=buffering, buffers=buffers
    )


def _set_common(buffering: Buffering, max_staleness: int, exponent: float) -> None:
    if not (math.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent must be a finite number >= 0, not {exponent!r}.")
    buffering.max_staleness = _at_least_one("max_staleness", max_staleness)
    buffering.exponent = exponent


def _at_least_one(option: str, value: int) -> int:
    """Checks an option for which the API takes 0 for the default."""
    if value < 1:
        raise ValueError(f"{option} must be at least 1, not {value!r}.")
    return value
