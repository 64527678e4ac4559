"""`fedround model`: models and their versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedround.v1.audit_pb2 import Contribution
from fedround.v1.model_pb2 import Model, ModelVersion
from fedround_client.command.output import UINT32, Columns, Format, FormatOption, progress, show, show_all, when
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="Upload, list, tag and download models and their versions.")

ModelId = Annotated[str, typer.Argument(metavar="MODEL_ID", help="UUID of the model.")]

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
    "ROUND": lambda one: one.round,
    "PARTICIPANT": lambda one: one.user_name,
    "USER_ID": lambda one: one.user_id,
    "UPDATE_ID": lambda one: one.update_id,
    "EXAMPLES": lambda one: one.num_examples,
    "WEIGHT": lambda one: one.weight or "assigned",
    "SHA256": lambda one: one.sha256,
}


@app.command()
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A safetensors file; `fedround convert` makes one from a .pt file.")],
    name: Annotated[str, typer.Option(help="A name for people; the name of the file by default.")] = "",
    description: Annotated[str, typer.Option(help="A description for people.")] = "",
    architecture: Annotated[str, typer.Option(help="Registered architecture that predictions use.")] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Store a model file as version 0 of a new model."""
    with client_of(context) as client, progress("upload") as report:
        model = client.upload_model(
            file, name=name or file.stem, description=description, architecture=architecture, progress=report
        )
    show(model, form)


@app.command("list")
def list_(context: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List your models, the newest first."""
    with client_of(context) as client:
        show_all(client.models(), _COLUMNS, form)


@app.command("show")
def show_(context: typer.Context, model_id: ModelId, form: FormatOption = Format.TABLE) -> None:
    """Show a model and its tensors."""
    with client_of(context) as client:
        show(client.get_model(model_id), form)


@app.command()
def versions(context: typer.Context, model_id: ModelId, form: FormatOption = Format.TABLE) -> None:
    """List the versions of a model with their tags and metrics, the newest first."""
    with client_of(context) as client:
        show_all(client.model_versions(model_id), _VERSION_COLUMNS, form)


@app.command()
def contributions(
    context: typer.Context,
    model_id: ModelId,
    version: Annotated[int | None, typer.Option(min=0, max=UINT32, help="The latest one by default.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the updates that a version of a model was aggregated from, each with its weight."""
    with client_of(context) as client:
        origin, contributions = client.contributions(model_id, version)
    if form is Format.TABLE:
        source = f"round {origin.round} of training {origin.training_id}" if origin.training_id else "an upload"
        typer.echo(f"Version {origin.version} was made by {source}: audit entry {origin.sequence}.", err=True)
    show_all(contributions, _CONTRIBUTION_COLUMNS, form)


@app.command()
def tag(
    context: typer.Context,
    model_id: ModelId,
    version: Annotated[int, typer.Argument(min=0, max=UINT32, help="The version.")],
    tag: Annotated[str, typer.Argument(help="pinned, or a tag of your own; only the server sets best and last.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tag instead.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Add a tag to a version; a tagged version keeps its file."""
    with client_of(context) as client:
        change = client.untag_model if remove else client.tag_model
        show(change(model_id, version, tag), form)


@app.command()
def download(
    context: typer.Context,
    model_id: ModelId,
    version: Annotated[int | None, typer.Option(min=0, max=UINT32, help="The latest one by default.")] = None,
    tag: Annotated[str, typer.Option(help="Instead of --version: the one with this tag, such as best.")] = "",
    posterior: Annotated[bool, typer.Option("--posterior", help="Download the SWAG posterior of the version.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="The file to write; MODEL_ID[.posterior].safetensors by default.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Download a version of a model as a safetensors file, and print its path."""
    if tag and version is not None:
        raise typer.BadParameter("--version and --tag both select a version: choose one")
    target = output or Path(f"{model_id}.posterior.safetensors" if posterior else f"{model_id}.safetensors")
    with client_of(context) as client, progress("download") as report:
        path = client.download_model(
            model_id, version, tag=tag, part="POSTERIOR" if posterior else "MODEL", to=target, progress=report
        )
    typer.echo(json.dumps({"path": str(path)}) if form is Format.JSON else str(path))


@app.command()
def remove(context: typer.Context, model_id: ModelId) -> None:
    """Remove a model with all its versions."""
    with client_of(context) as client:
        client.remove_model(model_id)
    typer.echo(f"Model {model_id} is removed.", err=True)
