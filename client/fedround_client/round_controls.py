"""The control variates of a participant's rounds: fetched, kept, and renewed once an update is accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedround.v1.event_pb2 import RoundStarted
from fedround.v1.round_pb2 import UpdateSpec
from fedround_client.control_store import ControlStore
from fedround_client.round_control import Change, Control, FedDynControl, ScaffoldControl
from fedround_client.round_model import RoundModel
from fedround_client.safetensors_header import DTYPE_NAMES, TensorInfo
from fedround_client.tensor_selection import matches
from fedround_client.tensor_types import Framework
from fedround_client.tensors import array_sources

RULES = ("scaffold", "fed_dyn")
"""The rules whose participants have control variates."""
FLOATING = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "C64"})
BUFFERS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Globs of tensors that are no part of optimization, unless the aggregation has others."""


def open_control(
    started: RoundStarted,
    model: RoundModel,
    store: ControlStore,
    framework: Framework,
    *,
    load_start: Callable[[], Mapping[str, Any]],
    fetch_server: Callable[[], Mapping[str, Any]],
    was_accepted: Callable[[UpdateSpec], bool],
) -> Control:
    """Returns the control variate of a participant in a round of a rule in RULES.

    Args:
        started: The round.
        model: Its model, before training.
        store: What the participant has kept.
        framework: The framework of the model.
        load_start: Returns the tensors of the model anew.
        fetch_server: Returns the server's control variate.
        was_accepted: Returns whether an update of an earlier round was accepted.

    Raises:
        TensorError: A file is damaged.
        OSError: A file cannot be read.
        FedroundError: The server answered with an error that is not transient.
    """
    settle(store, started.round, was_accepted)
    infos = _infos(model, started.aggregation.buffers or BUFFERS)
    own = _filled(store.load(started.round, framework), infos, framework)
    if started.aggregation.HasField("scaffold"):
        return ScaffoldControl(infos, own, load_start, _filled(fetch_server(), infos, framework))
    return FedDynControl(infos, own, load_start, started.aggregation.fed_dyn.alpha)


def settle(store: ControlStore, number: int, was_accepted: Callable[[UpdateSpec], bool]) -> None:
    """Decides which control variates of rounds before one count, if the process died before that was known."""
    for undecided, request in store.undecided(number):
        if was_accepted(UpdateSpec.FromString(request)):
            store.accept(undecided)
        else:
            store.forget(undecided)


def prepared(store: ControlStore, number: int, change: Change) -> Callable[[UpdateSpec], None]:
    """Returns what keeps a new control variate before its update is sent."""
    return lambda spec: store.prepare(number, change.own, spec.SerializeToString())


def _infos(model: RoundModel, buffers: Sequence[str]) -> dict[str, TensorInfo]:
    """Returns the names of the tensors that have a control variate, with its dtype and shape."""
    infos = {}
    for source in array_sources(model.tensors):
        name, dtype, shape = source.info.name, source.info.dtype, source.info.shape
        if dtype in FLOATING and name in model.names and model.selection.trains(name) and not matches(name, buffers):
            infos[name] = TensorInfo(name, dtype if dtype in ("F64", "C64") else "F32", shape)
    return infos


def _filled(found: Mapping[str, Any], infos: Mapping[str, TensorInfo], framework: Framework) -> dict[str, Any]:
    """Returns tensors by name, zeros for those that are missing."""
    return {name: found[name] if name in found else _zeros(info, framework) for name, info in infos.items()}


def _zeros(info: TensorInfo, framework: Framework) -> Any:
    if framework == "torch":
        import torch

        return torch.zeros(info.shape, dtype=getattr(torch, DTYPE_NAMES[info.dtype]))
    return np.zeros(info.shape, DTYPE_NAMES[info.dtype])
