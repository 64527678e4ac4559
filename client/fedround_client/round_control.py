"""Control variates of participants: `round.control`, which corrects the gradients of local training."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from fedround_client.casting import read_numbers
from fedround_client.safetensors_header import TensorInfo
from fedround_client.safetensors_stream import ArraySource, TensorSource
from fedround_client.tensors import array_sources

CONTROL = "control/"
"""What precedes the name of a tensor in the name of the tensor of the change of its control variate."""

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class LocalTraining:
    """How an update was trained; `Update` describes the fields."""

    num_examples: int
    local_steps: int | None
    learning_rate: float | None


@dataclass(frozen=True)
class Change:
    """What training has made of a control variate.

    Attributes:
        sent: What the update has beside the tensors of the model.
        own: The new control variate of the participant, which counts once the update is accepted; empty if it stays.
    """

    sent: Sequence[TensorSource] = ()
    own: Sequence[TensorSource] = ()


@dataclass(frozen=True)
class ComputedSource:
    """A tensor whose numbers are computed when they are read, so that one tensor at a time is in memory."""

    info: TensorInfo
    compute: Callable[[], Numbers]

    def numbers(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Returns the numbers, flat, in the tensor's dtype; a complex one has two for each element."""
        # What the dtype cannot hold is found by the server, which refuses it.
        with np.errstate(over="ignore", invalid="ignore"):
            return self.compute().astype("<f8" if self.info.dtype == "F64" else "<f4")

    def pieces(self, offset: int) -> Iterator[memoryview]:
        """Yields the data from an offset in bytes as one piece."""
        yield self.numbers().view(np.uint8).data[offset:]


@dataclass(eq=False)
class Control(ABC):
    """What a participant remembers of its rounds, and what it changes in local training.

    A train function adds one line to its loop, whatever the rule:

        gradients = round.control.correct(gradients, weights)

    Attributes:
        infos: Names, dtypes and shapes of its tensors: one for each trained floating tensor that is no buffer.
        own: What the participant remembers, by name: c_i of SCAFFOLD, g_k of FedDyn; zeros at first.
        load_start: Returns the tensors of the round's model as they were before training.
    """

    infos: Mapping[str, TensorInfo]
    own: Mapping[str, Any] = field(repr=False)
    load_start: Callable[[], Mapping[str, Any]] = field(repr=False)

    @cached_property
    def start(self) -> Mapping[str, Any]:
        """The tensors of the round's model as they were before training, by name."""
        return self.load_start()

    @abstractmethod
    def correct(self, gradients: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns what a local step goes along instead of the gradients.

        Args:
            gradients: Arrays or tensors by the names of the model, on any device. Those without a control variate, and
                None, are returned as they are.
            weights: The present weights by name; not needed by SCAFFOLD.

        Raises:
            ValueError: The weights are needed, and not given.
        """

    @abstractmethod
    def change(self, update: Mapping[str, ArraySource], training: LocalTraining) -> Change:
        """Returns what training has made of the control variate; nothing is computed yet.

        Args:
            update: The tensors of the update, by name.
            training: How it was trained.

        Raises:
            ValueError: The update does not say what is needed.
        """

    def _moved(self, update: Mapping[str, ArraySource], name: str) -> Numbers:
        """Returns how far training has moved a tensor, flat; 0 where the round's model is not finite."""
        if name not in update:
            raise ValueError(f"The update has no tensor {name!r}, which the training updates.")
        start = numbers_of(self.start, name)
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(start), read_numbers(update[name]) - start, 0.0)


@dataclass(eq=False)
class ScaffoldControl(Control):
    """SCAFFOLD (Karimireddy et al., ICML 2020, arXiv 1910.06378), algorithm 1, option II.

    The gradients are corrected by c - c_i. After K local steps with the learning rate eta, c_i becomes
    c_i - c + (x - y) / (K eta), where x is the round's model and y the update, which must say what K and eta are:
    `Update(model, num_examples, local_steps=K, learning_rate=eta)`.

    Attributes:
        server: c by name; zeros at first.
    """

    server: Mapping[str, Any] = field(repr=False)

    @cached_property
    def correction(self) -> dict[str, Any]:
        """c - c_i by name, to be added to gradients: in float32, in float64 for tensors of that type."""
        return {name: self.server[name] - self.own[name] for name in self.infos}

    def correct(self, gradients: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the gradients plus c - c_i; `Control` describes the arguments."""
        return {
            name: gradient
            if gradient is None or name not in self.infos
            else gradient + like(self.correction[name], gradient)
            for name, gradient in gradients.items()
        }

    def change(self, update: Mapping[str, ArraySource], training: LocalTraining) -> Change:
        """Returns the change of c_i, which is sent, and the new c_i."""
        steps, rate = training.local_steps, training.learning_rate
        if training.num_examples and (steps is None or rate is None):
            raise ValueError(
                "SCAFFOLD needs the number of local steps and their learning rate: return Update(model, num_examples,"
                " local_steps=..., learning_rate=...)"
            )
        length = (steps or 1) * (rate or 1.0) if training.num_examples else None
        sent = [
            ComputedSource(
                TensorInfo(CONTROL + name, info.dtype, info.shape), partial(self._change, update, name, length)
            )
            for name, info in self.infos.items()
        ]
        own = [
            ComputedSource(info, partial(self._renewed, one))
            for info, one in zip(self.infos.values(), sent, strict=True)
        ]
        return Change(sent, own if training.num_examples else ())

    def _change(self, update: Mapping[str, ArraySource], name: str, length: float | None) -> Numbers:
        """Returns the change of c_i of a tensor; `length` is K eta, None for an update without weight."""
        if length is None:
            return np.zeros_like(numbers_of(self.own, name))
        return -self._moved(update, name) / length - numbers_of(self.server, name)

    def _renewed(self, sent: ComputedSource) -> Numbers:
        # With what is sent, as it is rounded: so the server's sum is that of the participants.
        total: Numbers = sent.numbers().astype(np.float64)
        return total + numbers_of(self.own, sent.info.name.removeprefix(CONTROL))


@dataclass(eq=False)
class FedDynControl(Control):
    """FedDyn (Acar et al., ICLR 2021, arXiv 2111.04263), algorithm 1.

    The gradients get alpha (w - x) - g_k, where w are the present weights and x the round's model. After training,
    g_k becomes g_k - alpha (y - x), where y is the update.

    Attributes:
        alpha: The weight of the regularizer.
    """

    alpha: float

    def correct(self, gradients: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the gradients plus alpha (w - x) - g_k; `Control` describes the arguments."""
        if weights is None:
            raise ValueError("FedDyn needs the present weights: round.control.correct(gradients, weights)")
        return {
            name: gradient
            if gradient is None or name not in self.infos
            else gradient + self._term(name, gradient, weights)
            for name, gradient in gradients.items()
        }

    def change(self, update: Mapping[str, ArraySource], training: LocalTraining) -> Change:
        """Returns the new g_k; nothing is sent."""
        if not training.num_examples:
            return Change()

        return Change(
            (), [ComputedSource(info, partial(self._renewed, update, name)) for name, info in self.infos.items()]
        )

    def _renewed(self, update: Mapping[str, ArraySource], name: str) -> Numbers:
        return numbers_of(self.own, name) - self.alpha * self._moved(update, name)

    def _term(self, name: str, gradient: Any, weights: Mapping[str, Any]) -> Any:
        moved = like(weights[name], gradient) - like(self.start[name], gradient)
        return self.alpha * moved - like(self.own[name], gradient)


def numbers_of(tensors: Mapping[str, Any], name: str) -> Numbers:
    """Returns the numbers of a tensor, flat; a complex one has two for each element."""
    (source,) = array_sources({name: tensors[name]})
    return read_numbers(source)


def like(value: Any, other: Any) -> Any:
    """Returns an array or tensor as one of the framework, the dtype and the device of another one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(other, torch.Tensor):
        return torch.as_tensor(value).detach().to(other)
    return np.asarray(value, getattr(other, "dtype", None))
