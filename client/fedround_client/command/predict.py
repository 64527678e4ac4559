"""`fedround predict`: predict with a stored model on the server."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer

from fedround_client.command import names
from fedround_client.command.failures import fail
from fedround_client.command.files import ForceOption, check_new
from fedround_client.command.output import UINT32, Format, FormatOption, as_dict, echo, echo_json, show_table
from fedround_client.command.session import client_of
from fedround_client.command.uncertainty import (
    LastVersionsOption,
    MemberOption,
    MethodOption,
    SamplesOption,
    SoftmaxOption,
    uncertainty_option,
    with_member_ids,
)
from fedround_client.errors import ResponseInvalid
from fedround_client.inference import Prediction
from fedround_client.tensor_types import TensorError

_ARRAYS = ("mean", "variance", "std", "predictive_entropy", "expected_entropy", "mutual_information")


def predict(
    context: typer.Context,
    model: names.Model,
    inputs: Annotated[Path, typer.Argument(help="A .npy file with the inputs along the first dimension.")],
    version: Annotated[int | None, typer.Option(min=0, max=UINT32, help="The latest one by default.")] = None,
    tag: Annotated[str, typer.Option(help="Instead of --version: the one with this tag, such as best.")] = "",
    architecture: Annotated[str, typer.Option(help="Registered architecture; that of the model by default.")] = "",
    uncertainty: MethodOption = None,
    samples: SamplesOption = 0,
    softmax: SoftmaxOption = False,
    last_versions: LastVersionsOption = 0,
    member: MemberOption = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**62, help="Seed of the random numbers.")] = None,
    output: Annotated[Path | None, typer.Option(help="A .npz file to write all arrays to.")] = None,
    force: ForceOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Predict with a stored model on the server, and print the uncertainty."""
    option = uncertainty_option(
        uncertainty, samples=samples, softmax=softmax, last_versions=last_versions, members=member
    )
    if tag and version is not None:
        raise typer.BadParameter("--version and --tag both select a version: choose one")
    if output is not None:
        check_new(output, force)
    try:
        array = _read(inputs)
        with client_of(context) as client:
            prediction = client.predict(
                names.model_id(client, model),
                array,
                version=version,
                tag=tag,
                architecture=architecture,
                uncertainty=with_member_ids(client, option),
                seed=seed,
            )
    except TensorError as error:
        fail("INPUTS", str(error), code=grpc.StatusCode.INVALID_ARGUMENT)
    if output is not None:
        with output.open("wb") as file:
            np.savez(file, **_arrays(prediction))
        if form is Format.JSON:
            echo_json({"path": str(output)}, indent=None)
        else:
            echo(str(output))
    elif form is Format.JSON:
        echo_json(_as_dict(prediction))
    else:
        columns = _columns(prediction, array)
        show_table(columns, zip(*columns.values(), strict=True))


def _read(path: Path) -> np.ndarray[Any, Any]:
    with path.open("rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise TensorError(f"{path} is not a .npy file of numbers: {error}") from error


def _arrays(prediction: Prediction) -> dict[str, Any]:
    arrays = {name: getattr(prediction, name) for name in _ARRAYS}
    return {name: array for name, array in arrays.items() if array is not None}


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    return {
        "model_id": prediction.model_id,
        "model_version": prediction.model_version,
        "samples": prediction.samples,
        "uncertainty": as_dict(prediction.uncertainty),
        **dict.fromkeys(_ARRAYS),
        **{name: array.tolist() for name, array in _arrays(prediction).items()},
    }


def _columns(prediction: Prediction, inputs: Sized) -> dict[str, list[str]]:
    """Returns the columns of the table, one row per input. The variance is left out, since the table has its root."""
    if any(array.shape[:1] != (len(inputs),) for array in _arrays(prediction).values()):
        text = "The server's answer holds arrays that do not have one row per input."
        raise ResponseInvalid(grpc.StatusCode.INTERNAL, "RESPONSE_INVALID", text)
    columns = {"INPUT": [str(number) for number in range(len(inputs))]}
    if prediction.predictive_entropy is not None and prediction.mean.ndim > 1:
        columns["CLASS"] = _texts(prediction.mean.argmax(-1))
    for name, array in _arrays(prediction).items():
        if name != "variance":
            columns[name.upper()] = _texts(array)
    return columns


def _texts(array: np.ndarray[Any, Any]) -> list[str]:
    return [" ".join(f"{value:.4g}" for value in np.ravel(row)) for row in array]
