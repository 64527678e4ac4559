"""`fedround model`: what is trained, version by version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedround.v1.event_pb2 import RoundKind
from fedround.v1.model_pb2 import MetricReport, Model
from fedround_client.command.output import Columns, Format, FormatOption, progress, show, show_all, state_name, when
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="Upload, list and download models.")

ModelId = Annotated[str, typer.Argument(metavar="MODEL_ID", help="UUID of the model.")]

_COLUMNS: Columns[Model] = {
    "MODEL_ID": lambda model: model.model_id,
    "NAME": lambda model: model.name,
    "VERSION": lambda model: model.version,
    "BYTES": lambda model: model.size_bytes,
    "CHANGED": lambda model: when(model.update_time),
}

_METRIC_COLUMNS: Columns[MetricReport] = {
    "ROUND": lambda report: report.round,
    "KIND": lambda report: state_name(RoundKind.Name(report.kind)),
    "VERSION": lambda report: report.model_version,
    "REPORTER": lambda report: report.reporter_id or "all",
    "EXAMPLES": lambda report: report.num_examples,
    "METRICS": lambda report: ", ".join(f"{name}={value:.6g}" for name, value in sorted(report.metrics.items())),
}


@app.command()
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A safetensors file; `fedround convert` makes one of a .pt file.")],
    name: Annotated[str, typer.Option(help="For people; the file's name by default.")] = "",
    description: Annotated[str, typer.Option(help="For people.")] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Store a model file as version 0 of a new model."""
    with client_of(context) as client, progress("upload") as report:
        model = client.upload_model(file, name=name or file.stem, description=description, progress=report)
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
def download(
    context: typer.Context,
    model_id: ModelId,
    version: Annotated[int | None, typer.Option(min=0, help="The latest one by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write; MODEL_ID.safetensors by default.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Fetch a version of a model as a safetensors file, and print its path."""
    with client_of(context) as client, progress("download") as report:
        path = client.download_model(model_id, version, to=output or Path(f"{model_id}.safetensors"), progress=report)
    typer.echo(json.dumps({"path": str(path)}) if form is Format.JSON else str(path))


@app.command()
def remove(context: typer.Context, model_id: ModelId) -> None:
    """Remove a model with all its versions."""
    with client_of(context) as client:
        client.remove_model(model_id)
    typer.echo(f"Model {model_id} is removed.", err=True)


@app.command()
def metrics(context: typer.Context, model_id: ModelId, form: FormatOption = Format.TABLE) -> None:
    """List the metrics reported on a model, by round."""
    with client_of(context) as client:
        show_all(client.metrics(model_id), _METRIC_COLUMNS, form)
