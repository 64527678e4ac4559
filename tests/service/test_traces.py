"""Traces: one update is followed from the participant's program to the version that it is part of."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import fedround_client as fr
from calls import Person, fails_with, model_file, until
from collector import Collector, attributes
from fedround_client import traces as client_traces
from fedround_server.traces import NO_TRACES
from servers import MODULE, Server

OPTIONS = ("--traces", "--log-format", "json")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def traced(data_dir: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with Server(data_dir, options=OPTIONS, program=MODULE) as running:
        yield running


@pytest.fixture
def own_spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of the participant's program."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_an_update_is_followed_to_its_version(
    traced: Server, collector: Collector, own_spans: InMemorySpanExporter
) -> None:
    with fr.connect(traced.address, traced.admin_token) as admin:
        user, token = admin.create_user("site 1", "CLIENT")
        made = admin.create_training(
            {"w": np.zeros(4, np.float32)}, name="traced", target_num_updates=1, client_ids=[user.user_id]
        )
        admin.start_training(made.training_id)
        with fr.connect(traced.address, token, traces=True) as client:
            client.participate(lambda model, _: ({"w": model["w"] + 1}, 3), training_id=made.training_id)
        until(lambda: admin.get_training(made.training_id).model_version == 1)
    until(lambda: collector.spans("aggregation") and collector.spans("fedround.v1.RoundService/SubmitUpdate"))
    log = [json.loads(line) for line in traced.log.splitlines(keepends=True) if line.endswith("\n")]

    # The participant's program.
    own = {span.name: span for span in own_spans.get_finished_spans()}
    assert own.keys() >= {"round", "download", "train", "upload"}
    round_ = own["round"]
    about = {"fedround.training_id": made.training_id, "fedround.round": 0, "fedround.user_id": user.user_id}
    assert round_.attributes is not None
    assert about | {"fedround.kind": "TRAIN"} == dict(round_.attributes)
    assert round_.context is not None
    trace_id = f"{round_.context.trace_id:032x}"

    # The server goes on with its trace.
    (call,) = collector.spans("fedround.v1.RoundService/SubmitUpdate")
    assert call.trace_id.hex() == trace_id
    upload = own["upload"].context
    assert upload is not None
    assert call.parent_span_id.hex() == f"{upload.span_id:016x}"
    found = attributes(call)
    assert about.items() <= found.items()
    assert found["rpc.grpc.status_code"] == 0
    parts = {span.name: span for span in collector.spans() if span.parent_span_id == call.span_id}
    assert parts.keys() == {"receive", "check", "commit", "wake"}
    assert attributes(parts["receive"])["fedround.size_bytes"] > 16

    # The aggregation has a trace of its own, and is linked to those of its updates.
    (aggregation,) = collector.spans("aggregation")
    assert aggregation.trace_id != call.trace_id
    assert [link.span_id for link in aggregation.links] == [call.span_id]
    assert about.items() - {("fedround.user_id", user.user_id)} <= attributes(aggregation).items()
    parts = {span.name: span for span in collector.spans() if span.parent_span_id == aggregation.span_id}
    assert parts.keys() == {"queue", "aggregate", "write", "commit"}
    assert attributes(parts["commit"])["fedround.version"] == 1
    assert collector.services == {"fedround"}

    # The lines of the log have the ids of the traces.
    (line,) = [one for one in log if one.get("method", "").endswith("SubmitUpdate")]
    assert line["trace_id"] == trace_id
    (made_line,) = [one for one in log if one["event"] == "version_made"]
    assert made_line["trace_id"] == aggregation.trace_id.hex()
    # No names, and no tokens.
    text = "".join(map(str, collector.spans()))
    assert "site 1" not in text
    assert token not in text


def test_errors_have_a_reason_and_no_text(traced: Server, collector: Collector) -> None:
    with grpc.insecure_channel(traced.address) as channel:
        admin = Person(channel, traced.admin_token)
        with fails_with("NOT_FOUND", "TRAINING_NOT_FOUND"):
            admin.get("00000000-0000-4000-8000-000000000000")
        stranger = Person(channel, "fr_wrong")
        with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
            stranger.get("00000000-0000-4000-8000-000000000000")
        admin.subscribe().cancel()
        client = admin.make(traced.address, "CLIENT")
        made = admin.create(client_ids=[client.user_id])
        admin.start(made.training_id)
        with fails_with("DATA_LOSS", "DIGEST_MISMATCH"):
            client.submit(made.training_id, model_file(1), sha256="0" * 64)
    until(lambda: collector.spans("fedround.v1.RoundService/SubmitUpdate"))
    (failed,) = collector.spans("fedround.v1.TrainingService/GetTraining")
    assert attributes(failed)["fedround.reason"] == "TRAINING_NOT_FOUND"
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert failed.status.message == ""
    assert not failed.events
    assert attributes(failed)["rpc.grpc.status_code"] == 5
    (update,) = collector.spans("fedround.v1.RoundService/SubmitUpdate")
    assert attributes(update)["fedround.reason"] == "DIGEST_MISMATCH"
    # Subscriptions last for hours.
    assert not collector.spans("fedround.v1.RoundService/Subscribe")


def test_a_collector_that_is_gone_holds_up_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with (
        Server(data_dir, options=OPTIONS, program=MODULE) as server,
        fr.connect(server.address, server.admin_token) as admin,
    ):
        admin.create_user("site 1", "CLIENT")
    assert "the last spans are lost" in server.log


def test_without_opentelemetry_the_server_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; from fedround_server.__main__ import main; sys.exit(main())"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "--traces",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: traces: opentelemetry is not installed")
    assert "fedround[otel]" in ended.stderr


def test_without_opentelemetry_the_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"fedround\[otel\]"):
        fr.connect("127.0.0.1:1", traces=True)


def test_without_traces_no_span_is_made() -> None:
    spans = {NO_TRACES.call("/a/b", ""), NO_TRACES.span("a"), NO_TRACES.span("b"), NO_TRACES.aggregation(())}
    assert len(spans) == 1
    off = client_traces.NO_TRACES
    assert off.span("a") is off.span("b")
    assert off.headers() == ()
    code = "import sys, fedround_client, fedround_server.app; print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
