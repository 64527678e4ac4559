"""What the server counts: the same numbers in GetServerStatus and in a scrape, and what is said about them."""

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save

from calls import Person, download, fails_with, model_file, until
from fedround.v1 import round_pb2, server_pb2, server_pb2_grpc, training_pb2
from forked import fork_server
from ports import hold_a_port
from servers import Server

ROOT = Path(__file__).parents[2]
SERVICE = "fedround.v1.RoundService"
NAME = re.compile(r"\b(?:fedround|process)_[a-z_]+\b")
# What `sum by (...)` and matchers name.
LABELS = {"method", "code", "reason", "state", "phase", "process", "job", "kind", "le", "version", "database"}

Scrape = dict[str, dict[frozenset[tuple[str, str]], float]]


def scrape(port: int) -> tuple[Scrape, dict[str, str]]:
    """The samples of a scrape by name and labels, and the type of each metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples: Scrape = {}
    for family in families:
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return samples, {family.name: family.type for family in families}


def value(samples: Scrape, name: str, **labels: str) -> float:
    return samples[name][frozenset(labels.items())]


def status(person: Person) -> server_pb2.ServerStatus:
    stub = server_pb2_grpc.ServerServiceStub(person.channel)
    metadata = [("authorization", f"Bearer {person.token}")]
    return stub.GetServerStatus(server_pb2.GetServerStatusRequest(), metadata=metadata).status


class Watched:
    """A server with metrics in which a training took place: updates were accepted, one was rejected, one failed."""

    def __init__(self, server: Server, port: int, admin: Person) -> None:
        self.server, self.port, self.admin = server, port, admin
        self.file = model_file(1)
        actor = admin.make(server.address, "ACTOR")
        self.clients = [admin.make(server.address, "CLIENT") for _ in range(3)]
        made = actor.create(
            client_ids=[client.user_id for client in self.clients], metric_names=["loss"], target_num_updates=1
        )
        self.training_id = actor.start(made.training_id).training_id
        first, second, third = self.clients
        self.other = save({"w": np.zeros(1, np.float32)})
        with fails_with("INVALID_ARGUMENT", "TENSORS_MISMATCH", "w"):
            first.submit(self.training_id, self.other, metrics={"loss": 1.0})
        for client in (first, second):
            client.submit(self.training_id, self.file, metrics={"loss": 1.0})
        # The same update again is no other one.
        first.submit(self.training_id, self.file, metrics={"loss": 1.0})
        fields = {"training_id": self.training_id, "round": 0, "message": "no memory"}
        third.rounds.ReportFailure(round_pb2.ReportFailureRequest(**fields, reason="MY_OWN_REASON"))
        # The evaluation round.
        until(lambda: actor.get(self.training_id).round == 1)
        report = round_pb2.SubmitMetricsRequest(
            training_id=self.training_id, round=1, num_examples=1, metrics={"loss": 0.5}
        )
        for client in (first, first, second, third):
            client.rounds.SubmitMetrics(report)
        until(lambda: actor.get(self.training_id).state == training_pb2.TRAINING_STATE_COMPLETED)
        _, self.downloaded = download(actor, made.model_id)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with hold_a_port() as holder:
        port = holder.getsockname()[1]
        options = ("--metrics-listen", f"127.0.0.1:{port}")
        with (
            Server(tmp_path_factory.mktemp("monitoring") / "data", options=options) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            yield Watched(server, port, Person(channel, server.admin_token))


def test_a_scrape_has_what_has_happened(watched: Watched) -> None:
    samples, _ = scrape(watched.port)
    assert value(samples, "fedround_updates_accepted_total", kind="update") == 2
    assert value(samples, "fedround_updates_accepted_total", kind="report") == 3
    assert samples["fedround_updates_rejected_total"] == {frozenset({("reason", "TENSORS_MISMATCH")}): 1}
    # Participants may report any reason.
    assert samples["fedround_participant_failures_total"] == {frozenset({("reason", "OTHER")}): 1}
    assert value(samples, "fedround_rounds_done_total") == 2
    for phase in ("collecting", "aggregating"):
        assert value(samples, "fedround_round_seconds_count", phase=phase) == 2
        assert value(samples, "fedround_round_seconds_bucket", phase=phase, le="+Inf") == 2
    calls = {"OK": 3, "INVALID_ARGUMENT": 1}
    for code, count in calls.items():
        assert value(samples, "fedround_calls_total", method=f"{SERVICE}/SubmitUpdate", code=code) == count
    assert value(samples, "fedround_call_seconds_count", method=f"{SERVICE}/SubmitUpdate") == 4
    assert value(samples, "fedround_sent_bytes_total") == len(watched.downloaded)
    # The training's model, a repeated update whose bytes the server did not read, and the others.
    received = value(samples, "fedround_received_bytes_total")
    assert len(watched.other) + 3 * len(watched.file) <= received <= len(watched.other) + 4 * len(watched.file)
    assert value(samples, "fedround_trainings", state="COMPLETED") == 1
    assert value(samples, "fedround_trainings", state="ONGOING") == 0
    assert value(samples, "fedround_rounds", state="OPEN") == 0
    assert value(samples, "fedround_worker_job_seconds_count", job="aggregation") == 1
    assert value(samples, "fedround_worker_memory_bytes", process="worker") > 1 << 20
    assert value(samples, "fedround_database_commit_seconds_count") > 10
    assert value(samples, "fedround_stored_bytes") >= len(watched.file)


def test_the_status_has_the_same_numbers(watched: Watched) -> None:
    found, (samples, _) = status(watched.admin), scrape(watched.port)
    assert (found.updates_accepted, found.participant_failures, found.rounds_done) == (5, 1, 2)
    assert dict(found.updates_rejected) == {"TENSORS_MISMATCH": 1}
    assert (found.running_trainings, found.uploads, found.downloads, found.subscriptions) == (0, 0, 0, 0)
    assert found.received_bytes == value(samples, "fedround_received_bytes_total")
    assert found.sent_bytes == value(samples, "fedround_sent_bytes_total")
    assert found.disk.stored_bytes == value(samples, "fedround_stored_bytes")
    assert found.disk.min_free_bytes == value(samples, "fedround_disk_min_free_bytes")
    assert found.start_time.ToNanoseconds() / 1e9 == pytest.approx(value(samples, "fedround_start_time_seconds"))
    assert found.database.kind == "sqlite"
    assert found.worker.jobs_done >= 1
    assert found.memory_bytes > 1 << 20
    submitted = {call.code: call.count for call in found.calls if call.method == f"{SERVICE}/SubmitUpdate"}
    assert submitted == {"OK": 3, "INVALID_ARGUMENT": 1}


def test_streams_are_counted_while_they_are_open(watched: Watched) -> None:
    events = watched.clients[0].subscribe()
    try:
        found = status(watched.admin)
        # The call that asks is in progress, too.
        assert (found.subscriptions, found.calls_in_progress) == (1, 1)
    finally:
        events.cancel()
    until(lambda: status(watched.admin).subscriptions == 0)


def test_only_methods_that_are_served_are_labels(watched: Watched) -> None:
    call = watched.admin.channel.unary_unary("/fedround.v1.RoundService/Invented", bytes, bytes)
    with pytest.raises(grpc.RpcError):
        call(b"")
    samples, _ = scrape(watched.port)
    assert "Invented" not in str(samples["fedround_calls_total"])


def test_other_paths_are_not_found(watched: Watched) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{watched.port}/", timeout=60)


def test_every_metric_is_documented(watched: Watched) -> None:
    _, kinds = scrape(watched.port)
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE)
    # The parser takes the ending _total, and that of info, off the names of counters.
    shown = {f"{name}_total" if kind == "counter" else name: kind for name, kind in kinds.items()}
    assert dict(rows) == shown


def expressions() -> list[str]:
    board = json.loads((ROOT / "deploy/grafana/fedround.json").read_text(encoding="utf-8"))
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8"))
    targets = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return targets + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_dashboard_and_rules_name_metrics_that_exist(watched: Watched) -> None:
    samples, _ = scrape(watched.port)
    found = expressions()
    assert len(found) > 20
    named = {name for text in found for name in NAME.findall(text)}
    assert named - samples.keys() == set()
    labels = {label for text in found for group in re.findall(r"by \(([\w, ]+)\)", text) for label in group.split(", ")}
    assert labels <= LABELS
    known = {label for of in samples.values() for labelled in of for label, _ in labelled}
    assert labels <= known


def test_every_alert_is_documented() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8"))
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert {"FedroundReplicaLost", "FedroundUpdatesUnavailable"} < set(alerts)
    assert re.findall(r"^\| (Fedround\w+) \|", page, re.MULTILINE) == alerts


def test_panels_have_a_place_and_a_unit() -> None:
    board = json.loads((ROOT / "deploy/grafana/fedround.json").read_text(encoding="utf-8"))
    graphs = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["fieldConfig"]["defaults"].get("unit") and panel["title"] for panel in graphs)
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_counters_begin_at_zero_after_a_restart(data_dir: Path) -> None:
    with hold_a_port() as holder:
        port = holder.getsockname()[1]
        with (
            Server(data_dir, options=("--metrics-listen", f"127.0.0.1:{port}")) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            admin = Person(channel, server.admin_token)
            actor = admin.make(server.address, "ACTOR")
            actor.create()
            assert value(scrape(port)[0], "fedround_received_bytes_total") > 0
            server.stop()
            server.start()
            samples, _ = scrape(port)
            assert value(samples, "fedround_received_bytes_total") == 0
            assert value(samples, "fedround_trainings", state="INITIAL") == 1
            assert value(samples, "fedround_stored_bytes") > 0


def test_a_port_that_is_taken_is_reported(data_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--listen", "127.0.0.1:0", "--log-level", "warning", "--data-dir", str(data_dir)]
        process = fork_server().fork([*flags, "--metrics-listen", address], stderr=tmp_path / "log")
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
            process.stdout.close()
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith(f"error: metrics_listen: cannot listen on {address}")
    assert "--metrics-listen" in line
