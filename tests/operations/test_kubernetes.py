"""The manifests in deploy/kubernetes are valid, fit each other and the server, and start what they should."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from fedround_server.blobs.objects import BucketUrl, check_bucket
from fedround_server.config import Settings
from operations.test_deploy import PAGE, ROOT, VARIABLES, check_image, seconds, unknown_words
from seaweed import PORTS, Seaweed, weed

FOLDER = ROOT / "deploy/kubernetes"
BASE = ("namespace.yaml", "network-policies.yaml", "postgres.yaml", "seaweedfs.yaml", "fedround.yaml")
COMPONENTS = ("plaintext", "monitoring")
OLDEST, NEWEST = "1.30", "1.37"
"""The versions of Kubernetes that the manifests are validated for."""
NAME = "app.kubernetes.io/name"
Document = dict[str, Any]


def read(path: str) -> list[Document]:
    return list(yaml.safe_load_all((FOLDER / path).read_text()))


@cache
def everything() -> dict[tuple[str, str], Document]:
    """All documents by kind and name, with those of the components and the examples of Secrets."""
    paths = (*BASE, "secrets.example.yaml", "monitoring/service-monitor.yaml")
    found = [document for path in paths for document in read(path)]
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


def of_kind(*kinds: str) -> list[Document]:
    return [one for (kind, _), one in everything().items() if kind in kinds]


def workloads() -> dict[str, Document]:
    """What has pods, by name."""
    return {one["metadata"]["name"]: one for one in of_kind("StatefulSet", "Job")}


def pod(name: str) -> Document:
    """The template of a workload's pods."""
    template: Document = workloads()[name]["spec"]["template"]
    return template


def containers() -> Iterator[tuple[str, Document]]:
    for name in workloads():
        for container in pod(name)["spec"]["containers"]:
            yield name, container


def selected(labels: dict[str, str]) -> list[str]:
    """The workloads whose pods have some labels."""
    return [name for name in workloads() if labels.items() <= pod(name)["metadata"]["labels"].items()]


def ports(name: str) -> dict[str, int]:
    (container,) = pod(name)["spec"]["containers"]
    return {port["name"]: port["containerPort"] for port in container.get("ports", [])}


def variables(container: Document) -> dict[str, Document]:
    return {one["name"]: one for one in container.get("env", [])}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_each_document_has_the_fields_of_its_kind(version: str) -> None:
    for (kind, name), document in everything().items():
        if kind != "ServiceMonitor":  # which is no part of Kubernetes
            kubernetes_validate.validate(document, version, strict=True)
        assert kind == "Namespace" or document["metadata"]["namespace"] == "fedround", name


def test_the_validation_finds_a_field_that_does_not_exist() -> None:
    wrong = yaml.safe_load(json.dumps(everything()["StatefulSet", "fedround"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_all_files_are_in_a_kustomization() -> None:
    (kustomization,) = read("kustomization.yaml")
    assert kustomization["resources"] == list(BASE)
    listed = {FOLDER / "kustomization.yaml", FOLDER / "secrets.example.yaml", *(FOLDER / path for path in BASE)}
    text = (FOLDER / "kustomization.yaml").read_text()
    for component in COMPONENTS:
        assert f"#   - {component}\n" in text
        (found,) = read(f"{component}/kustomization.yaml")
        assert found["kind"] == "Component"
        names = [*found.get("resources", []), *(one["path"] for one in found.get("patches", []))]
        listed |= {FOLDER / component / name for name in ("kustomization.yaml", *names)}
    assert listed == {path for path in FOLDER.rglob("*") if path.is_file()}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
@pytest.mark.parametrize("components", [(), *((one,) for one in COMPONENTS), COMPONENTS])
def test_kubectl_builds_what_the_kustomizations_say(tmp_path: Path, components: tuple[str, ...]) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    with (copy / "kustomization.yaml").open("a") as file:
        file.write(f"components: {json.dumps(components)}\n" if components else "")
    built = subprocess.run(["kubectl", "kustomize", str(copy)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    for document in documents:
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, NEWEST, strict=True)
    assert ("ServiceMonitor" in {one["kind"] for one in documents}) == ("monitoring" in components)
    (server,) = (one for one in documents if (one["kind"], one["metadata"]["name"]) == ("StatefulSet", "fedround"))
    (container,) = server["spec"]["template"]["spec"]["containers"]
    is_plain = "plaintext" in components
    assert ("FEDROUND_INSECURE" in variables(container)) == is_plain
    assert ("FEDROUND_TLS_CERT" in variables(container)) != is_plain
    assert ("grpc" in container["readinessProbe"]) == is_plain
    assert ("tls" in {volume["name"] for volume in server["spec"]["template"]["spec"]["volumes"]}) != is_plain


def test_what_the_plaintext_component_removes_is_there() -> None:
    (patch,) = read("plaintext/fedround.yaml")
    (changed,) = patch["spec"]["template"]["spec"]["containers"]
    (container,) = pod("fedround")["spec"]["containers"]
    assert changed["name"] == container["name"]
    removed = {one["name"] for one in changed["env"] if one.get("$patch") == "delete"}
    assert removed == {name for name in variables(container) if "_TLS_" in name}
    assert {one["name"] for one in changed["env"]} - removed == {"FEDROUND_INSECURE"}
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {one["mountPath"] for one in changed["volumeMounts"]} < mounts
    volumes = {one["name"] for one in pod("fedround")["spec"]["volumes"]}
    assert {one["name"] for one in patch["spec"]["template"]["spec"]["volumes"]} < volumes
    assert changed["readinessProbe"]["grpc"]["port"] == ports("fedround")["grpc"]


def test_services_and_budgets_select_pods_and_their_ports() -> None:
    for service in of_kind("Service"):
        (name,) = selected(service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert ports(name)[port["targetPort"]] == port["port"]
    for one in of_kind("StatefulSet"):
        name = one["metadata"]["name"]
        assert selected(one["spec"]["selector"]["matchLabels"]) == [name]
        assert everything()["Service", one["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
    (budget,) = of_kind("PodDisruptionBudget")
    assert selected(budget["spec"]["selector"]["matchLabels"]) == ["fedround"]
    assert budget["spec"]["maxUnavailable"] < workloads()["fedround"]["spec"]["replicas"]
    (monitor,) = of_kind("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (metrics,) = (one for one in of_kind("Service") if wanted <= one["metadata"].get("labels", {}).items())
    assert {one["port"] for one in monitor["spec"]["endpoints"]} == {one["name"] for one in metrics["spec"]["ports"]}


def test_each_pod_may_be_reached_at_its_ports_and_nowhere_else() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    assert policies.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    dns = policies.pop("dns")
    assert {port["port"] for rule in dns["egress"] for port in rule["ports"]} == {53}
    assert policies.keys() == workloads().keys()
    allowed_out: set[tuple[str, str, int]] = set()
    allowed_in: set[tuple[str, str, int]] = set()
    open_ports: dict[str, set[int]] = {}
    for name, policy in policies.items():
        assert selected(policy["podSelector"]["matchLabels"]) == [name]
        assert {key.capitalize() for key in policy if key in ("ingress", "egress")} == set(policy["policyTypes"])
        for rule in policy.get("ingress", []):
            numbers = {port["port"] for port in rule["ports"]}
            open_ports.setdefault(name, set()).update(numbers)
            for peer in rule.get("from", []):
                if "podSelector" in peer:
                    (other,) = selected(peer["podSelector"]["matchLabels"])
                    allowed_in |= {(other, name, number) for number in numbers}
        for rule in policy.get("egress", []):
            for peer in rule["to"]:
                (other,) = selected(peer["podSelector"]["matchLabels"])
                allowed_out |= {(name, other, port["port"]) for port in rule["ports"]}
    assert allowed_in == allowed_out
    assert open_ports == {name: set(ports(name).values()) for name in workloads() if ports(name)}


def test_pods_have_no_rights_and_a_read_only_file_system() -> None:
    labels = everything()["Namespace", "fedround"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, container in containers():
        spec = pod(name)["spec"]
        assert spec["automountServiceAccountToken"] is False
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        check_image(container["image"])
    assert pod("fedround")["spec"]["securityContext"]["runAsUser"] == 10001


def test_volumes_and_secrets_exist() -> None:
    secrets = {one["metadata"]["name"]: one["stringData"] for one in of_kind("Secret")}
    used: set[tuple[str, str]] = set()
    for name, container in containers():
        spec, claims = pod(name)["spec"], workloads()[name]["spec"].get("volumeClaimTemplates", [])
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        mounted = [mount["name"] for mount in container["volumeMounts"]]
        assert sorted(mounted) == sorted([*volumes, *(claim["metadata"]["name"] for claim in claims)])
        for volume in volumes.values():
            if secret := volume.get("secret"):
                assert secret["defaultMode"] == 0o440
                keys = [item["key"] for item in secret.get("items", [])] or secrets[secret["secretName"]]
                used |= {(secret["secretName"], key) for key in keys}
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                used.add((reference["name"], reference["key"]))
            assert "PASSWORD" not in variable["name"] or variable["value"].startswith("/run/secrets/")
            assert not re.search("SECRET|ACCESS_KEY", variable["name"]) or "value" not in variable
    assert used == {(name, key) for name, data in secrets.items() for key in data}


def test_the_examples_have_no_secret_and_the_page_makes_all_of_them() -> None:
    for secret in of_kind("Secret"):
        for key, value in secret["stringData"].items():
            assert "REPLACE" in value
            assert re.search(rf"--from-(literal|file)={re.escape(key)}\b", PAGE.read_text())
        assert f"create secret generic {secret['metadata']['name']}" in PAGE.read_text()


def test_the_server_has_settings_that_exist() -> None:
    (container,) = pod("fedround")["spec"]["containers"]
    found = variables(container)
    ours = {name for name in found if name.startswith("FEDROUND_")}
    assert ours <= VARIABLES
    documented = set(re.findall(r"`(AWS_\w+)`", (ROOT / "docs/objects.md").read_text()))
    assert found.keys() - ours <= documented
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    tls = everything()["Secret", "fedround-tls"]["stringData"]
    for name in ("FEDROUND_TLS_CERT", "FEDROUND_TLS_KEY", "FEDROUND_TLS_CA"):
        folder, _, file = found[name]["value"].rpartition("/")
        assert mounts[folder] == "tls"
        assert file in tls
    # A folder of the volume: the volume itself gets rights for the group, which the data directory must not have.
    assert mounts[found["FEDROUND_DATA_DIR"]["value"].rpartition("/")[0]] == "data"
    assert int(found["FEDROUND_METRICS_LISTEN"]["value"].rpartition(":")[2]) == ports("fedround")["metrics"]


def test_the_server_accepts_the_values_of_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (container,) = pod("fedround")["spec"]["containers"]
    for name, variable in variables(container).items():
        if "value" in variable:
            monkeypatch.setenv(name, variable["value"])
    monkeypatch.setenv("FEDROUND_DATABASE", everything()["Secret", "fedround-database"]["stringData"]["url"])
    found = Settings(listen="0.0.0.0:50051")
    assert (found.objects_cache_bytes, found.grace_seconds) == (10 << 30, 30)
    monkeypatch.delenv("FEDROUND_TLS_CERT")
    with pytest.raises(ValidationError):
        Settings(listen="0.0.0.0:50051")


def test_the_server_finds_its_database_and_its_objects() -> None:
    url = urlsplit(everything()["Secret", "fedround-database"]["stringData"]["url"])
    assert url.hostname == "postgres.fedround.svc"
    (postgres,) = pod("postgres")["spec"]["containers"]
    assert (url.username, url.path) == ("fedround", f"/{variables(postgres)['POSTGRES_DB']['value']}")
    assert everything()["Service", "postgres"]["spec"]["ports"][0]["port"] == 5432
    (server,) = pod("fedround")["spec"]["containers"]
    endpoint = urlsplit(variables(server)["AWS_ENDPOINT_URL"]["value"])
    assert endpoint.hostname == "seaweedfs-0.seaweedfs.fedround.svc"
    assert endpoint.port == ports("seaweedfs")["s3"]
    (weed_server,) = pod("seaweedfs")["spec"]["containers"]
    assert f"-ip={endpoint.hostname}" in weed_server["args"]
    (script,) = pod("seaweedfs-bucket")["spec"]["containers"][0]["args"]
    bucket = urlsplit(variables(server)["FEDROUND_OBJECTS"]["value"]).netloc
    assert f"-name {bucket};" in script
    assert script.count(f"={endpoint.hostname}:") == 2
    assert f"Write:{bucket}" in everything()["Secret", "fedround-objects"]["stringData"]["s3.json"]


def test_probes_and_the_end_fit_the_server() -> None:
    spec = pod("fedround")["spec"]
    (container,) = spec["containers"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert unknown_words(container[name]["exec"]["command"]) == []
    grace = seconds(variables(container)["FEDROUND_GRACE_SECONDS"]["value"])
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > before + grace + 10
    for name in ("postgres", "seaweedfs"):
        (other,) = pod(name)["spec"]["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} < other.keys()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert other[probe].get("tcpSocket", {}).get("port") in {None, *ports(name)}


def test_the_object_store_starts_with_these_arguments_and_the_job_makes_the_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = weed()
    (container,) = pod("seaweedfs")["spec"]["containers"]
    own = ("-dir=", "-ip=", "-ip.bind=", "-filer.localSocket=", "-s3.config=")
    options = [one for one in container["args"][1:] if not one.startswith(own)]
    config = everything()["Secret", "fedround-objects"]["stringData"]["s3.json"]
    store = Seaweed(tmp_path, program, options=options, config=config.replace("REPLACE", "a-key-of-16-bytes"))
    try:
        (script,) = pod("seaweedfs-bucket")["spec"]["containers"][0]["args"]
        for name in ("master", "filer"):
            port = store.ports[PORTS.index(f"{name}.port")]
            grpc = store.ports[PORTS.index(f"{name}.port.grpc")]
            script = re.sub(rf"-{name}=\S+", f"-{name}=127.0.0.1:{port}.{grpc}", script)
        monkeypatch.setenv("PATH", str(Path(program).parent), prepend=":")
        for _ in range(2):
            made = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
            assert made.returncode == 0, made.stdout + made.stderr
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "a-key-of-16-bytes")
        check_bucket(BucketUrl("s3://fedround/server")())
    finally:
        store.close()
