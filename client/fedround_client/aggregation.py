"""Aggregations: a rule that makes one model of many updates, and what comes before and after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from fedround.v1.aggregation_pb2 import (
    Adagrad,
    Adam,
    Aggregation,
    Buffering,
    Clipping,
    DifferentialPrivacy,
    Mixing,
    ServerOptimizer,
    Sgd,
)

AggregationOption: TypeAlias = Message
"""A rule, such as `FedProx(mu=0.1)`, or an Aggregation, which `aggregate` and the functions below return."""

M = TypeVar("M", bound=Message)


def aggregate(
    rule: AggregationOption | None = None,
    *,
    clipping: Message | None = None,
    mixing: Message | None = None,
    server_optimizer: Message | None = None,
    buffering: Message | None = None,
    buffers: Iterable[str] = (),
    shadows: Iterable[AggregationOption] = (),
    differential_privacy: DifferentialPrivacy | None = None,
) -> Aggregation:
    """Returns an aggregation of several stages, for `create_training(aggregation=...)`.

    The updates go through clipping, mixing, the rule and the server optimizer, in this order.

    Args:
        rule: What makes one model of many updates: FedAvg() by default, FedProx(mu=...), FedDc(...), FedNova(),
            QFedAvg(...), Median(), TrimmedMean(beta=0.1), Krum(f=1), MultiKrum(f=1, m=0), Bulyan(f=1),
            GeometricMedian(iterations=3, nu=1e-6), CenteredClipping(tau=10, iterations=1),
            FlTrust(trusted_client_id=...), Scaffold(learning_rate=1), FedDyn(alpha=0.1), or for adapters
            LoraStack(scaling=1), LoraSvd(rank=0) or FreezeA(). An Aggregation gets the other stages in addition.
        clipping: FixedClipping(norm=1): the largest L2 norm of an update's difference from the round's model. Or
            AdaptiveClipping(quantile=0.5, learning_rate=0.2, initial_norm=0.1), which follows the norms of the updates.
        mixing: NearestNeighbor(f=1) or Bucketing(size=2, seed=0): replaces the updates by averages of some of them.
        server_optimizer: Sgd(learning_rate=1, momentum=0), Adagrad(...) or Adam(...); FedAvgM, FedAdagrad, FedAdam and
            FedYogi are functions that set it.
        buffering: Buffering(size=10, max_staleness=10, exponent=0.5): an asynchronous training, in which updates count
            whatever version they started from; FedBuff and FedAsync are functions that set it.
        buffers: Globs of the names of tensors that are averaged whatever the rule, and never clipped, mixed or
            optimized; by default those of normalization layers.
        shadows: Other aggregations of the same updates, at most 8. Each has a model of its own, a side branch, which
            `Training.shadow_model_ids` names; they change nothing in the training.
        differential_privacy: DifferentialPrivacy(noise_multiplier=1, delta=1e-5, epsilon_budget=8): noise, so that
            versions reveal little about any single participant. Needs clipping, and fedround[dp] on the server.

    Raises:
        TypeError: A message is not one for its place, or buffers is a single string.
        ValueError: The rule is an Aggregation that has such a stage.
    """
    if isinstance(buffers, str):
        raise TypeError(f"buffers is a list of globs, not one: write [{buffers!r}].")
    made = Aggregation()
    if isinstance(rule, Aggregation):
        made.CopyFrom(rule)
    elif rule is not None:
        _choose(made, "algorithm", rule)
    for field, kind, stage in (
        ("clipping", Clipping, clipping),
        ("mixing", Mixing, mixing),
        ("server_optimizer", ServerOptimizer, server_optimizer),
        ("buffering", Buffering, buffering),
    ):
        if stage is None:
            continue
        if made.HasField(field):  # type: ignore[arg-type]  # the stubs want a literal
            raise ValueError(f"The aggregation has a {field} already.")
        chosen = stage if isinstance(stage, kind) else _choose(kind(), "method", stage)
        getattr(made, field).CopyFrom(chosen)
    if differential_privacy is not None:
        if made.HasField("differential_privacy"):
            raise ValueError("The aggregation has differential_privacy already.")
        made.differential_privacy.CopyFrom(differential_privacy)
    made.buffers.extend(buffers)
    made.shadow.extend(one if isinstance(one, Aggregation) else aggregate(one) for one in shadows)
    return made


def FedAvgM(  # noqa: N802 - the name that users know
    learning_rate: float = 1.0,
    momentum: float = 0.9,
    *,
    aggregation: AggregationOption | None = None,
    clipping: Message | None = None,
    mixing: Message | None = None,
    buffers: Iterable[str] = (),
) -> Aggregation:
    """Returns FedAvg with momentum on the server (Hsu et al., 2019, arXiv 1909.06335).

    v = momentum * v + d, where d is the difference of the aggregate from the model; the model goes on by
    learning_rate * v.

    Args:
        learning_rate: > 0.
        momentum: In [0, 1).
        aggregation: Another rule than FedAvg, or an aggregation without a server optimizer.
        clipping: As in `aggregate`.
        mixing: As in `aggregate`.
        buffers: As in `aggregate`.

    Raises:
        TypeError, ValueError: As `aggregate`, or an option that must be > 0 is not.
    """
    optimizer = Sgd(learning_rate=_positive("learning_rate", learning_rate), momentum=momentum)
    return aggregate(aggregation, clipping=clipping, mixing=mixing, server_optimizer=optimizer, buffers=buffers)


def FedAdagrad(  # noqa: N802 - the name that users know
    learning_rate: float = 0.1,
    tau: float = 1e-9,
    *,
    beta1: float = 0.0,
    aggregation: AggregationOption | None = None,
    clipping: Message | None = None,
    mixing: Message | None = None,
    buffers: Iterable[str] = (),
) -> Aggregation:
    """Returns FedAvg with Adagrad on the server (Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2).

    m = beta1 * m + (1 - beta1) * d and v = v + d^2, where d is the difference of the aggregate from the model; the
    model goes on by learning_rate * m / (sqrt(v) + tau).

    Args:
        learning_rate: > 0.
        tau: > 0; v begins as tau^2.
        beta1: In [0, 1).
        aggregation: Another rule than FedAvg, or an aggregation without a server optimizer.
        clipping: As in `aggregate`.
        mixing: As in `aggregate`.
        buffers: As in `aggregate`.

    Raises:
        TypeError, ValueError: As `aggregate`, or an option that must be > 0 is not.
    """
    optimizer = Adagrad(learning_rate=_positive("learning_rate", learning_rate), beta1=beta1, tau=_positive("tau", tau))
    return aggregate(aggregation, clipping=clipping, mixing=mixing, server_optimizer=optimizer, buffers=buffers)


def FedAdam(  # noqa: N802 - the name that users know
    learning_rate: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    *,
    bias_correction: bool = False,
    aggregation: AggregationOption | None = None,
    clipping: Message | None = None,
    mixing: Message | None = None,
    buffers: Iterable[str] = (),
) -> Aggregation:
    """Returns FedAvg with Adam on the server (Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2).

    As FedAdagrad, with v = beta2 * v + (1 - beta2) * d^2.

    Args:
        learning_rate: > 0.
        beta1: In [0, 1).
        beta2: In [0, 1).
        tau: > 0; v begins as tau^2.
        bias_correction: Divide m and v by 1 - beta^step, as Adam does on a single machine; the paper does not.
        aggregation: Another rule than FedAvg, or an aggregation without a server optimizer.
        clipping: As in `aggregate`.
        mixing: As in `aggregate`.
        buffers: As in `aggregate`.

    Raises:
        TypeError, ValueError: As `aggregate`, or an option that must be > 0 is not.
    """
    optimizer = ServerOptimizer(adam=_adam(learning_rate, beta1, beta2, tau, bias_correction=bias_correction))
    return aggregate(aggregation, clipping=clipping, mixing=mixing, server_optimizer=optimizer, buffers=buffers)


def FedYogi(  # noqa: N802 - the name that users know
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    *,
    bias_correction: bool = False,
    aggregation: AggregationOption | None = None,
    clipping: Message | None = None,
    mixing: Message | None = None,
    buffers: Iterable[str] = (),
) -> Aggregation:
    """Returns FedAvg with Yogi on the server (Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2).

    As FedAdagrad, with v = v - (1 - beta2) * d^2 * sign(v - d^2).

    Args:
        learning_rate: > 0.
        beta1: In [0, 1).
        beta2: In [0, 1).
        tau: > 0; v begins as tau^2.
        bias_correction: Divide m and v by 1 - beta^step; the paper does not.
        aggregation: Another rule than FedAvg, or an aggregation without a server optimizer.
        clipping: As in `aggregate`.
        mixing: As in `aggregate`.
        buffers: As in `aggregate`.

    Raises:
        TypeError, ValueError: As `aggregate`, or an option that must be > 0 is not.
    """
    optimizer = ServerOptimizer(yogi=_adam(learning_rate, beta1, beta2, tau, bias_correction=bias_correction))
    return aggregate(aggregation, clipping=clipping, mixing=mixing, server_optimizer=optimizer, buffers=buffers)


def _adam(learning_rate: float, beta1: float, beta2: float, tau: float, *, bias_correction: bool) -> Adam:
    return Adam(
        learning_rate=_positive("learning_rate", learning_rate),
        beta1=beta1,
        beta2=beta2,
        tau=_positive("tau", tau),
        bias_correction=bias_correction,
    )


def _positive(option: str, value: float) -> float:
    """Checks an option for which the API takes 0 for the default."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{option} must be a finite number > 0, not {value!r}.")
    return value


def _choose(message: M, oneof: str, option: Message) -> M:
    """Sets the member of a oneof that has the type of an option, and returns the message."""
    fields = message.DESCRIPTOR.oneofs_by_name[oneof].fields
    members = {field.name: field.message_type for field in fields if field.message_type}
    for name, kind in members.items():
        if kind.full_name == option.DESCRIPTOR.full_name:
            getattr(message, name).CopyFrom(option)
            return message
    known = ", ".join(dict.fromkeys(kind.name for kind in members.values()))
    raise TypeError(f"{type(option).__name__} is no {oneof} of {message.DESCRIPTOR.name}; known are {known}.")
