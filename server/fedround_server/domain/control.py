"""Control variates: what updates of some rules have beside the tensors of the model.

A participant with a control variate sends its change with each update. In the file of the update, the change of that of
tensor NAME is the tensor `control/NAME`, as long as NAME is trained, floating, and no buffer.
"""

from collections.abc import Mapping

from fedround_server.domain.aggregation import Aggregation
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import MAX_NAME, MAX_TENSORS, Dtype, Manifest, TensorSpec
from fedround_server.domain.tensor_selection import matcher, some

CONTROL = "control/"
"""What precedes the name of a tensor in the name of the tensor of the change of its control variate."""
PRECISE = (Dtype.F64, Dtype.C64)
"""Types of which states and control variates have numbers in the same type; of others they have float32."""


def state_tensors(trained: Manifest) -> dict[str, TensorSpec]:
    """Returns the tensors of a state, for the trained floating tensors of a model that are no buffers."""
    return {
        name: TensorSpec(spec.dtype if spec.dtype in PRECISE else Dtype.F32, spec.shape)
        for name, spec in trained.items()
    }


def control_tensors(aggregation: Aggregation, trained: Manifest) -> Mapping[str, TensorSpec]:
    """Returns the tensors that updates have beside those that a training updates: none, unless its rule wants them."""
    if aggregation.rule.control is None:
        return {}
    is_buffer = matcher(aggregation.buffers)
    floating = {name: spec for name, spec in trained.items() if spec.dtype.is_floating and not is_buffer(name)}
    return {CONTROL + name: spec for name, spec in state_tensors(floating).items()}


def check_control(aggregation: Aggregation, model: Manifest, trained: Manifest) -> None:
    """Checks that updates can have what the rule of an aggregation wants beside the tensors of the model.

    Raises:
        FieldInvalid: Names are taken or too long, or there are too many tensors.
    """
    tensors = control_tensors(aggregation, trained)
    if not tensors:
        return
    field, name = f"spec.aggregation.{aggregation.rule.name}", aggregation.rule.name
    if taken := [one for one in model if one.startswith(CONTROL)]:
        raise FieldInvalid(
            field,
            f"does not go with a model whose tensors have names that begin with {CONTROL!r} ({some(taken)}): updates"
            " have control variates under such names; rename them",
        )
    if long := [one for one in tensors if len(one) > MAX_NAME]:
        raise FieldInvalid(
            field, f"makes names of more than {MAX_NAME} characters with {CONTROL!r} before them: shorten {some(long)}"
        )
    if len(trained) + len(tensors) > MAX_TENSORS:
        raise FieldInvalid(
            field,
            f"makes {len(trained) + len(tensors)} tensors of an update, with a control variate for each trained one,"
            f" and a file may have {MAX_TENSORS}: {name} needs a model with fewer, or fewer in spec.tensors.trainable",
        )
