"""`fedround model`: models and their versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fedround.v1.audit_pb2 import Contribution
from fedround.v1.model_pb2 import Model, ModelVersion, TensorInfo
from fedround_client.command import names
from fedround_client.command.files import ForceOption, check_new
from fedround_client.command.output import (
    UINT32,
    Columns,
    Format,
    FormatOption,
    echo,
    echo_json,
    progress,
    show,
    show_all,
    show_fields,
    show_removed,
    when,
)
from fedround_client.command.session import client_of
from fedround_client.model import PartName
from fedround_client.round_number import round_text

app = typer.Typer(no_args_is_help=True, help="Upload, list, tag and download models and their versions.")

NonFiniteOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-non-finite-buffers", help="Accept Inf and NaN that the model has, as in the buffer of a mask."
    ),
]

_COLUMNS: Columns[Model] = {
    "MODEL_ID": lambda model: model.model_id,
    "NAME": lambda model: model.name,
    "VERSION": lambda model: model.version,
    "BYTES": lambda model: model.size_bytes,
    "ARCHITECTURE": lambda model: model.architecture,
    "CHANGED": lambda model: when(model.update_time),
}

_VERSION_COLUMNS: Columns[ModelVersion] = {
    "VERSION": lambda version: version.version,
    "TAGS": lambda version: ", ".join(version.tags),
    "METRICS": lambda version: ", ".join(f"{name}={value:.6g}" for name, value in sorted(version.metrics.items())),
    "POSTERIOR": lambda version: f"rank {version.posterior.rank}" if version.HasField("posterior") else "",
    "STORED": lambda version: "yes" if version.stored else "dropped",
    "BYTES": lambda version: version.size_bytes,
    "MADE": lambda version: when(version.create_time),
}

_CONTRIBUTION_COLUMNS: Columns[Contribution] = {
    "ROUND": lambda one: one.round + 1,
    "PARTICIPANT": lambda one: one.user_name,
    "USER_ID": lambda one: one.user_id,
    "UPDATE_ID": lambda one: one.update_id,
    "EXAMPLES": lambda one: one.num_examples,
    "WEIGHT": lambda one: one.weight or "assigned",
    "SHA256": lambda one: one.sha256,
}

_TENSOR_COLUMNS: Columns[TensorInfo] = {
    "TENSOR": lambda tensor: tensor.name,
    "DTYPE": lambda tensor: tensor.dtype,
    "SHAPE": lambda tensor: " x ".join(map(str, tensor.shape)) or "scalar",
}


@app.command()
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A safetensors file; `fedround convert` makes one from a .pt file.")],
    name: Annotated[str, typer.Option(help="A name for people; the name of the file by default.")] = "",
    description: Annotated[str, typer.Option(help="A description for people.")] = "",
    architecture: Annotated[str, typer.Option(help="Registered architecture that predictions use.")] = "",
    allow_non_finite_buffers: NonFiniteOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Store a model file as version 0 of a new model."""
    with client_of(context) as client, progress("upload") as report:
        model = client.upload_model(
            file,
            name=name or file.stem,
            description=description,
            architecture=architecture,
            allow_non_finite_buffers=allow_non_finite_buffers,
            progress=report,
        )
    _show(model, form)


@app.command("list")
def list_(context: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List your models, the newest first."""
    with client_of(context) as client:
        show_all(client.models(), _COLUMNS, form)


@app.command("show")
def show_(context: typer.Context, model: names.Model, form: FormatOption = Format.TABLE) -> None:
    """Show a model and its tensors."""
    with client_of(context) as client:
        _show(client.get_model(names.model_id(client, model)), form)


@app.command()
def versions(context: typer.Context, model: names.Model, form: FormatOption = Format.TABLE) -> None:
    """List the versions of a model with their tags and metrics, the newest first."""
    with client_of(context) as client:
        show_all(client.model_versions(names.model_id(client, model)), _VERSION_COLUMNS, form)


@app.command()
def contributions(
    context: typer.Context,
    model: names.Model,
    version: Annotated[int | None, typer.Option(min=0, max=UINT32, help="The latest one by default.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the updates that a version of a model was aggregated from, each with its weight."""
    with client_of(context) as client:
        origin, contributions = client.contributions(names.model_id(client, model), version)
    if form is Format.TABLE:
        made_by = f"{round_text(origin.round)} of training {origin.training_id}" if origin.training_id else "an upload"
        chain = "its" if origin.chain else "the server's"
        where = f"entry {origin.sequence} of {chain} audit chain"
        echo(f"Version {origin.version} was made by {made_by}: {where}.", err=True)
    show_all(contributions, _CONTRIBUTION_COLUMNS, form)


@app.command()
def tag(
    context: typer.Context,
    model: names.Model,
    version: Annotated[int, typer.Argument(min=0, max=UINT32, help="The version.")],
    tag: Annotated[str, typer.Argument(help="pinned, or a tag of your own; only the server sets best and last.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tag instead.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Add a tag to a version; a tagged version keeps its file."""
    with client_of(context) as client:
        change = client.untag_model if remove else client.tag_model
        show(change(names.model_id(client, model), version, tag), form)


@app.command()
def download(
    context: typer.Context,
    model: names.Model,
    version: Annotated[int | None, typer.Option(min=0, max=UINT32, help="The latest one by default.")] = None,
    tag: Annotated[str, typer.Option(help="Instead of --version: the one with this tag, such as best.")] = "",
    posterior: Annotated[bool, typer.Option("--posterior", help="Download the SWAG posterior of the version.")] = False,
    delta: Annotated[
        bool, typer.Option("--delta", help="Download only the tensors that the version has in place of its base's.")
    ] = False,
    tensor: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Download only tensors with matching names; repeat for more."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to write; MODEL_ID[.posterior|.delta].safetensors by default.")
    ] = None,
    force: ForceOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Download a version of a model as a safetensors file, and print its path."""
    if tag and version is not None:
        raise typer.BadParameter("--version and --tag both select a version: choose one")
    if posterior + delta + bool(tensor) > 1:
        raise typer.BadParameter("--posterior, --delta and --tensor exclude each other: choose one")
    part: PartName = "POSTERIOR" if posterior else "DELTA" if delta else "MODEL"
    with client_of(context) as client, progress("download") as report:
        model_id = names.model_id(client, model)
        target = output or Path(f"{model_id}{'' if part == 'MODEL' else f'.{part.lower()}'}.safetensors")
        check_new(target, force)
        path = client.download_model(
            model_id, version, tag=tag, part=part, tensors=tensor or (), to=target, progress=report
        )
    if form is Format.JSON:
        echo_json({"path": str(path)}, indent=None)
    else:
        echo(str(path))


@app.command()
def remove(context: typer.Context, model: names.Model, form: FormatOption = Format.TABLE) -> None:
    """Remove a model with all its versions."""
    with client_of(context) as client:
        model_id = names.model_id(client, model)
        client.remove_model(model_id)
    show_removed("model", model_id, form)


def _show(model: Model, form: Format) -> None:
    if form is Format.JSON:
        show(model, form)
        return
    show_fields(
        (
            ("model", model.name),
            ("id", model.model_id),
            ("description", model.description),
            ("version", model.version),
            ("bytes", f"{model.size_bytes:,}"),
            ("sha256", model.sha256),
            ("architecture", model.architecture),
            ("created", when(model.create_time)),
            ("changed", when(model.update_time)),
        )
    )
    if model.tensors:
        echo("")
        show_all(model.tensors, _TENSOR_COLUMNS, form)
