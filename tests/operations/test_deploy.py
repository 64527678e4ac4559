"""The files in deploy/ fit the server: its settings, its commands, the files of this repository."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fedround_client.command import app
from fedround_server.config import Settings
from test_commands_in_pages import unknown

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy/container/Containerfile"
COMPOSE = ROOT / "deploy/compose/compose.yaml"
REPLICAS = ROOT / "deploy/compose/replicas.yaml"
PAGE = ROOT / "docs/operations.md"
UNIT = ROOT / "deploy/systemd/fedround.service"
CLIENT_VARIABLES = {"FEDROUND_SERVER", "FEDROUND_TOKEN", "FEDROUND_TLS_CA"}
VARIABLES = {f"FEDROUND_{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
# The page has the commands that make them.
SECRETS = ("fedround.toml", "postgres-password", "grafana-password", "s3-credentials", "s3.json")
MADE_BY_THE_OPERATOR = {"./tls", *(f"./secrets/{name}" for name in SECRETS)}
of_each_compose_file = pytest.mark.parametrize("file", [COMPOSE, REPLICAS], ids=lambda file: file.stem)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, each with its argument in one line."""
    lines = [line for line in CONTAINER.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def compose(file: Path = COMPOSE) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(file.read_text())
    return parsed


def servers(file: Path) -> dict[str, dict[str, Any]]:
    """The services that are servers of fedround."""
    return {name: one for name, one in compose(file)["services"].items() if one["image"].startswith("fedround:")}


def unknown_words(words: list[str]) -> list[str]:
    """What of a command line does not exist: words behind `fedround`."""
    assert words[0].rpartition("/")[2] == "fedround"
    return unknown(words[1:], typer.main.get_command(app))


def check_image(name: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)+(-[a-z-]+)*", name), f"{name} has no version"


def test_the_container_file_names_what_exists() -> None:
    found = instructions()
    assert {name for name, _ in found} >= {"FROM", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT", "VOLUME"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in found:
        if name == "FROM":
            check_image(rest.split()[0])
        elif name == "COPY" and not rest.startswith("--from="):
            for path in rest.split()[:-1]:
                assert (ROOT / path).exists()
                assert f"!{path}" in ignored
        elif name == "ENV":
            variables = {word.partition("=")[0] for word in shlex.split(rest)}
            assert {one for one in variables if one.startswith("FEDROUND_")} <= VARIABLES
        elif name in ("ENTRYPOINT", "HEALTHCHECK"):
            assert unknown_words(yaml.safe_load(rest[rest.index("[") :])) == []
    assert [rest for name, rest in found if name == "USER"] == ["10001:10001"]


def test_the_container_has_all_packages_of_the_wheel() -> None:
    copied = {path for name, rest in instructions() if name == "COPY" for path in rest.split()[:-1]}
    roots = {
        path.partition("/")[0] for path in re.findall(r'"(\w+/fedround\w*)"', (ROOT / "pyproject.toml").read_text())
    }
    assert len(roots) == 4
    assert roots < copied


@of_each_compose_file
def test_a_compose_file_is_valid(file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@of_each_compose_file
def test_a_compose_file_names_what_exists(file: Path) -> None:
    parsed, folder = compose(file), file.parent
    documented = set(re.findall(r"`(AWS_\w+)`", (ROOT / "docs/objects.md").read_text()))
    for server in servers(file).values():
        build = server["build"]
        assert (folder / build["context"] / build["dockerfile"]).resolve() == CONTAINER
        assert f"ARG {next(iter(build['args']))}" in CONTAINER.read_text()
        assert server["environment"].keys() <= VARIABLES | documented
        for value in server["environment"].values():
            assert not value.startswith("/run/secrets/") or value.rpartition("/")[2] in server["secrets"]
    for name, service in parsed["services"].items():
        check_image(service["image"])
        # The image of the server has one; what makes the bucket ends.
        assert "healthcheck" in service or name in ("server", "bucket")
        for mounted in service.get("volumes", []):
            source = mounted.partition(":")[0]
            if source.startswith("."):
                assert source in MADE_BY_THE_OPERATOR or (folder / source).exists(), source
            else:
                assert source in parsed["volumes"]
        assert set(service.get("secrets", [])) <= parsed["secrets"].keys()
        assert set(service["networks"]) <= parsed["networks"].keys()
        for other in service.get("depends_on", []):
            assert set(service["networks"]) & set(parsed["services"][other]["networks"])
    for secret in parsed["secrets"].values():
        assert secret["file"] in MADE_BY_THE_OPERATOR
        assert f"> {secret['file'].removeprefix('./')}" in PAGE.read_text()


def test_replicas_differ_in_name_port_and_volume_alone() -> None:
    first, second = servers(REPLICAS).values()
    assert (first["environment"].pop("FEDROUND_REPLICA_NAME"), first.pop("ports")) == ("replica-1", ["50051:50051"])
    assert (second["environment"].pop("FEDROUND_REPLICA_NAME"), second.pop("ports")) == ("replica-2", ["50052:50051"])
    assert (first.pop("volumes")[0], second.pop("volumes")[0]) == (
        "data-1:/var/lib/fedround",
        "data-2:/var/lib/fedround",
    )
    # The first one makes the admin.
    assert second["depends_on"].pop("replica-1") == {"condition": "service_healthy"}
    assert first == second
    assert unknown_words(first["healthcheck"]["test"][1:]) == []
    # The object store, and what makes the bucket, are those of Kubernetes.
    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/seaweedfs.yaml").read_text()))
    here, there = compose(REPLICAS)["services"], [one["spec"]["template"]["spec"] for one in documents[1:]]
    for name, pod in zip(("seaweedfs", "bucket"), there, strict=True):
        (container,) = pod["containers"]
        adapted = json.dumps(container["args"]).replace("seaweedfs-0.seaweedfs.fedround.svc", "seaweedfs")
        adapted = adapted.replace("/etc/seaweedfs/", "/run/secrets/")
        assert here[name]["command"] == json.loads(adapted)
        assert here[name]["entrypoint"] == container["command"]
        assert here[name]["image"] == container["image"]


@of_each_compose_file
def test_no_password_is_in_a_compose_file_and_databases_have_no_port_of_the_host(file: Path) -> None:
    for name, service in compose(file)["services"].items():
        for variable, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|CREDENTIALS", variable) or value.startswith("/run/secrets/")
        assert "ports" not in service or name == "grafana" or name in servers(file)


def test_metrics_have_no_port_of_the_host() -> None:
    services = compose()["services"]
    assert services["server"]["ports"] == ["50051:50051"]
    assert services["server"]["environment"]["FEDROUND_METRICS_LISTEN"].endswith(":9464")
    assert compose()["networks"]["database"]["internal"] is True
    assert all(port.startswith("127.0.0.1:") for port in services["grafana"]["ports"])


def test_prometheus_and_grafana_find_each_other_and_the_server() -> None:
    services, folder = compose()["services"], COMPOSE.parent
    port = services["server"]["environment"]["FEDROUND_METRICS_LISTEN"].rpartition(":")[2]
    scraped = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]
    assert scraped == {"targets": [f"server:{port}"]}
    (source,) = yaml.safe_load((folder / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "grafana/dashboards/fedround.yaml").read_text())["providers"]
    assert f"../grafana:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    for one, other in (("server", "prometheus"), ("prometheus", "grafana"), ("server", "postgres")):
        assert set(services[one]["networks"]) & set(services[other]["networks"])


def unit() -> dict[str, list[str]]:
    """The settings of the unit by name."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def seconds(text: str) -> int:
    number, name = re.fullmatch(r"(\d+)(s|min)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "min": 60}[name]


def test_the_unit_starts_a_command_that_exists_and_waits_longer_than_it() -> None:
    assert unknown_words(unit()["ExecStart"][0].split()) == []
    example = (ROOT / "deploy/fedround.toml").read_text()
    (grace,) = re.findall(r'^grace_seconds = "(.+)"$', example, re.MULTILINE)
    assert seconds(unit()["TimeoutStopSec"][0]) > seconds(grace) + 10
    for file in (COMPOSE, REPLICAS):
        for server in servers(file).values():
            assert seconds(server["stop_grace_period"]) > seconds(grace) + 10
    assert unit()["Type"] == ["notify"]
    assert f'data_dir = "{unit()["ReadWritePaths"][0]}"' in example


def test_the_probes_of_the_page_are_commands_that_exist() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    pod = yaml.safe_load(text)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert unknown_words(pod[name]["exec"]["command"]) == []
    assert pod["terminationGracePeriodSeconds"] == seconds(unit()["TimeoutStopSec"][0])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "fedround"
    program.touch(0o755)
    copy = tmp_path / "fedround.service"
    copy.write_text(UNIT.read_text().replace("/opt/fedround/bin/fedround", str(program)))
    for command in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        ended = subprocess.run(
            ["systemd-analyze", *command, str(copy)], capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        # Such as an unknown setting, which is no error.
        assert "fedround.service:" not in ended.stderr
