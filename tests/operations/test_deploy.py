"""The files in deploy/ fit the server: its settings, its commands, the files of this repository."""

import re
import shlex
import shutil
import subprocess
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
UNIT = ROOT / "deploy/systemd/fedround.service"
CLIENT_VARIABLES = {"FEDROUND_SERVER", "FEDROUND_TOKEN", "FEDROUND_TLS_CA"}
VARIABLES = {f"FEDROUND_{name.upper()}" for name in Settings.model_fields} | CLIENT_VARIABLES
# The page has the commands that make them.
MADE_BY_THE_OPERATOR = ("./tls", "./secrets/fedround.toml", "./secrets/postgres-password", "./secrets/grafana-password")


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, each with its argument in one line."""
    lines = [line for line in CONTAINER.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return parsed


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


def test_the_compose_file_names_what_exists() -> None:
    services = compose()["services"]
    assert services.keys() == {"server", "postgres", "prometheus", "grafana"}
    folder = COMPOSE.parent
    build = services["server"]["build"]
    assert (folder / build["context"] / build["dockerfile"]).resolve() == CONTAINER
    assert f"ARG {next(iter(build['args']))}" in CONTAINER.read_text()
    assert services["server"]["environment"].keys() <= VARIABLES
    for name, service in services.items():
        check_image(service["image"])
        assert "healthcheck" in service or name == "server"
        for mounted in service.get("volumes", []):
            source = mounted.partition(":")[0]
            if source.startswith("."):
                assert source in MADE_BY_THE_OPERATOR or (folder / source).exists(), source
            else:
                assert source in compose()["volumes"]
        assert set(service.get("secrets", [])) <= compose()["secrets"].keys()
        assert set(service["networks"]) <= compose()["networks"].keys()
    assert {secret["file"] for secret in compose()["secrets"].values()} <= set(MADE_BY_THE_OPERATOR)


def test_no_password_is_in_the_compose_file_and_metrics_have_no_port_of_the_host() -> None:
    services = compose()["services"]
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("/run/secrets/")
    assert services["server"]["ports"] == ["50051:50051"]
    assert services["server"]["environment"]["FEDROUND_METRICS_LISTEN"].endswith(":9464")
    assert "ports" not in services["postgres"]
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
    assert seconds(compose()["services"]["server"]["stop_grace_period"]) > seconds(grace) + 10
    assert unit()["Type"] == ["notify"]
    assert f'data_dir = "{unit()["ReadWritePaths"][0]}"' in example


def test_the_probes_of_the_page_are_commands_that_exist() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
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
