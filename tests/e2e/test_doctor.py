"""`fedround doctor` against real servers, and against none."""

import json
import ssl
from pathlib import Path

import pytest

import forked
from certificates import Authority
from scripted_peers import answering, listening
from servers import Server


def doctor(address: str, token: str, *options: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Runs the command; returns its exit code, and state and finding of each check."""
    arguments = ("--server", address, *options, "doctor", "--format", "json")
    ended = forked.run(*arguments, environment={"FEDROUND_TOKEN": token})
    assert "Traceback" not in ended.stderr
    assert not token or token not in ended.stdout + ended.stderr
    return ended.returncode, {one["check"]: (one["state"], one["found"]) for one in json.loads(ended.stdout)}


def test_all_is_well(server: Server) -> None:
    code, found = doctor(server.address, server.admin_token)
    assert code == 0
    assert {state for state, _ in found.values()} <= {"ok", "note"}
    assert found["extra server"] == ("ok", "installed")
    assert found["server"] == ("ok", f"{server.address}, this machine")
    assert found["health"] == ("ok", "serving")
    assert found["token"][1].startswith("of admin, ADMIN, ")


@pytest.mark.parametrize(
    ("token", "options", "check", "words"),
    [
        ("", (), "token", "FEDROUND_TOKEN"),
        ("fr_wrong", (), "token", "rotate-token"),
        ("fr_right", ("--tls-ca", "nowhere.pem"), "connection", "nowhere.pem"),
        ("fr_right", ("--tls-cert", "half.pem"), "connection", "tls_key"),
    ],
)
def test_what_is_wrong_is_reported(
    server: Server, token: str, options: tuple[str, ...], check: str, words: str
) -> None:
    code, found = doctor(server.address, token, *options)
    assert code == 1
    assert found[check][0] == "fail"
    assert words in found[check][1]


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    code, found = doctor("127.0.0.1:9", "fr_any")
    assert code == 1
    assert found["connection"][0] == "fail"
    assert "fedround serve" in found["connection"][1]
    assert "token" not in found


def test_a_server_that_speaks_no_tls(server: Server, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    code, found = doctor(server.address, "fr_any", "--tls-ca", str(tmp_path / "ca.pem"))
    assert code == 1
    assert "TLS_NOT_OFFERED" in found["connection"][1]
    assert "insecure" not in found["connection"][1]


@pytest.mark.parametrize(
    ("names", "signer", "options", "reason"),
    [
        (["127.0.0.1"], "other", ("--tls-ca", "ca.pem"), "TLS_UNKNOWN_AUTHORITY"),
        (["127.0.0.1"], "other", ("--tls-ca", "other.pem"), "NO_GRPC_SERVER"),
        (["example.org"], "ca", ("--tls-ca", "ca.pem"), "TLS_WRONG_NAME"),
        (["127.0.0.1"], "ca", (), "TLS_REQUIRED"),
    ],
)
def test_what_does_not_fit_about_tls_is_told_apart(
    tmp_path: Path, names: list[str], signer: str, options: tuple[str, ...], reason: str
) -> None:
    authorities = {name: Authority() for name in ("ca", "other")}
    for name, authority in authorities.items():
        (tmp_path / f"{name}.pem").write_bytes(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authorities[signer].issue(*names).write(tmp_path, "server"))
    context.set_alpn_protocols(["h2"])
    with listening(answering(301), context) as address:
        given = [str(tmp_path / word) if word.endswith(".pem") else word for word in options]
        code, found = doctor(address, "fr_any", *given)
    assert code == 1
    assert found["connection"][0] == "fail"
    assert found["connection"][1].startswith(reason + ": ")


def test_an_address_that_is_none() -> None:
    code, found = doctor("http://127.0.0.1:50051", "fr_any")
    assert code == 1
    assert "write 127.0.0.1:50051, without http://" in found["connection"][1]
