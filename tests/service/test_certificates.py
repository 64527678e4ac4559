"""TLS files that are replaced while the server runs, and users that are known by their certificates."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import fedround_client as fr
import forked
from calls import TIMEOUT, Person, fails_with, kinds, new_id, until
from certificates import Authority, Certificate, presented, replace
from fedround.v1 import user_pb2
from servers import Server

ASKED = user_pb2.GetMyselfRequest()
BROKEN = "cannot use the new TLS files"


@dataclass
class Site:
    """A server with mutual TLS, and who signs for it."""

    server: Server
    folder: Path
    authority: Authority
    guest: Certificate
    """A valid certificate that identifies no user."""

    def person(self, client: Certificate | None = None, token: str = "") -> Person:
        return self.authority.person(self.server.address, client or self.guest, token)

    def renew(self, authority: Authority | None = None) -> Certificate:
        """Gives the server another certificate."""
        certificate = (authority or self.authority).issue("127.0.0.1")
        certificate.write(self.folder, "server")
        return certificate

    def user(self, *names: str, role: str = "CLIENT") -> user_pb2.CreateUserResponse:
        request = user_pb2.CreateUserRequest(name=new_id(), role=f"ROLE_{role}", certificate_names=names)
        return self.admin.users.CreateUser(request)

    @property
    def admin(self) -> Person:
        return self.person(token=self.server.admin_token)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, authority = tmp_path_factory.mktemp("tls"), Authority()
    cert, key = authority.issue("127.0.0.1").write(folder, "server")
    (folder / "ca.pem").write_bytes(authority.pem)
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(folder / "ca.pem"))
    lifetimes = ("--token-lifetime-seconds", "3600", "--max-token-lifetime-seconds", "7200")
    with Server(folder / "data", options=(*options, *lifetimes)) as server:
        yield Site(server, folder, authority, authority.issue("guest.example.org"))


def myself(person: Person) -> str:
    return person.users.GetMyself(ASKED, timeout=TIMEOUT).user.user_id


class TestFiles:
    def test_new_connections_get_the_new_certificate_and_old_ones_live_on(self, site: Site) -> None:
        actor, client = site.user(role="ACTOR"), site.user()
        old = site.person(token=client.token)
        events = old.subscribe()
        renewed = site.renew()
        assert presented(site.server.address) == renewed.der
        made = site.person(token=actor.token).create(client_ids=[client.user.user_id])
        site.person(token=actor.token).start(made.training_id)
        # Over the connection from before, and the stream on it.
        assert kinds(events.next(2)) == ["training_started", "round_started"]
        assert old.get(made.training_id).round == 0

    @pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem"])
    @pytest.mark.parametrize("content", [b"", b"no certificate", None])
    def test_broken_files_leave_the_old_certificate(self, site: Site, name: str, content: bytes | None) -> None:
        path = site.folder / name
        good, before = path.read_bytes(), presented(site.server.address)
        errors = site.server.log.count(BROKEN)
        if content is None:
            path.unlink()
        else:
            replace(path, content)
        for _ in range(3):
            assert presented(site.server.address) == before
            assert myself(site.admin)
        # Logged once, not with each connection.
        until(lambda: site.server.log.count(BROKEN) == errors + 1)
        replace(path, good)
        renewed = site.renew()
        assert presented(site.server.address) == renewed.der

    def test_a_key_of_another_certificate_leaves_the_old_pair(self, site: Site) -> None:
        before, other = presented(site.server.address), site.authority.issue("127.0.0.1")
        replace(site.folder / "server.pem", other.chain)
        assert presented(site.server.address) == before
        # The second file of the pair makes it whole.
        replace(site.folder / "server.key", other.key)
        assert presented(site.server.address) == other.der

    def test_a_new_client_ca_decides_about_new_connections(self, site: Site) -> None:
        other = Authority()
        foreign, old = other.issue("foreign.example.org"), site.admin
        assert myself(old)
        with pytest.raises(grpc.RpcError) as error:
            myself(site.person(foreign, site.server.admin_token))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        replace(site.folder / "ca.pem", other.pem)
        assert myself(site.person(foreign, site.server.admin_token))
        with pytest.raises(grpc.RpcError):
            myself(site.admin)
        assert myself(old)
        replace(site.folder / "ca.pem", site.authority.pem)
        assert myself(site.admin)

    def test_a_server_does_not_start_with_broken_files(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "cert.pem").write_text("no certificate")
        files = ["--tls-cert", tmp_path / "cert.pem", "--tls-key", site.folder / "server.key"]
        ended = forked.run("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data", *files)
        assert ended.returncode == 1
        assert "error: cannot use the TLS files: " in ended.stderr
        assert "Traceback" not in ended.stderr


class TestUsers:
    @pytest.mark.parametrize("kind", ["host", "mail", "uri"])
    def test_a_certificate_names_its_user(self, site: Site, kind: str) -> None:
        name = {"host": f"{new_id()}.example.org", "mail": f"{new_id()}@example.org", "uri": f"spiffe://a/{new_id()}"}[
            kind
        ]
        certificate = (site.authority.issue_uri if kind == "uri" else site.authority.issue)(name)
        with fails_with("UNAUTHENTICATED", "TOKEN_MISSING"):
            myself(site.person(certificate))
        user = site.user(name).user
        assert list(user.certificate_names) == [name]
        assert myself(site.person(certificate)) == user.user_id
        with fails_with("PERMISSION_DENIED", "ROLE_REQUIRED", "yours is CLIENT"):
            site.person(certificate).users.GetUsers(user_pb2.GetUsersRequest())

    def test_neither_a_common_name_nor_an_address_identifies_a_user(self, site: Site) -> None:
        name, address = f"{new_id()}.example.org", "127.8.9.10"
        site.user(name, address)
        for certificate in (site.authority.issue("x.example.org", common_name=name), site.authority.issue(address)):
            with fails_with("UNAUTHENTICATED", "TOKEN_MISSING"):
                myself(site.person(certificate))

    def test_a_token_beside_a_certificate_is_of_the_same_user(self, site: Site) -> None:
        names = [f"{new_id()}.example.org" for _ in range(2)]
        one, other = site.user(names[0]), site.user(names[1])
        certificate = site.authority.issue(names[0], "more.example.org")
        assert myself(site.person(certificate, one.token)) == one.user.user_id
        with fails_with("UNAUTHENTICATED", "CERTIFICATE_MISMATCH"):
            myself(site.person(certificate, other.token))
        with fails_with("UNAUTHENTICATED", "TOKEN_INVALID"):
            myself(site.person(certificate, "wrong"))
        assert myself(site.person(site.guest, other.token)) == other.user.user_id
        both = site.authority.issue(*names)
        for token in ("", one.token):
            with fails_with("UNAUTHENTICATED", "CERTIFICATE_AMBIGUOUS"):
                myself(site.person(both, token))

    def test_a_name_is_of_one_user(self, site: Site) -> None:
        name = f"{new_id()}.example.org"
        first, second = site.user(name).user, site.user().user
        request = user_pb2.SetCertificateNamesRequest(user_id=second.user_id, certificate_names=[name])
        with fails_with("ALREADY_EXISTS", "CERTIFICATE_NAME_TAKEN", name):
            site.admin.users.SetCertificateNames(request)
        with fails_with("ALREADY_EXISTS", "CERTIFICATE_NAME_TAKEN", name):
            site.user(name)
        assert myself(site.person(site.authority.issue(name))) == first.user_id

    def test_streams_end_with_the_name_and_with_the_user(self, site: Site) -> None:
        first, second = (f"{new_id()}.example.org" for _ in range(2))
        user = site.user(first).user
        events = site.person(site.authority.issue(first)).subscribe()
        request = user_pb2.SetCertificateNamesRequest(user_id=user.user_id, certificate_names=[second, second])
        assert list(site.admin.users.SetCertificateNames(request).user.certificate_names) == [second]
        with fails_with("UNAUTHENTICATED", "TOKEN_MISSING"):
            next(events)
        events = site.person(site.authority.issue(second)).subscribe()
        site.admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=user.user_id))
        with fails_with("UNAUTHENTICATED", "TOKEN_MISSING"):
            next(events)

    def test_the_sdk_and_the_command_need_no_token(self, site: Site, tmp_path: Path) -> None:
        name = f"{new_id()}.example.org"
        user = site.user(name).user
        ca = site.folder / "ca.pem"
        cert, key = site.authority.issue(name).write(tmp_path, "client")
        with fr.connect(site.server.address, tls_ca=ca, tls_cert=cert, tls_key=key) as client:
            assert client.myself().user_id == user.user_id
        options = ["--server", site.server.address, "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key]
        shown = forked.run(*options, "user", "show", environment={})
        assert shown.returncode == 0, shown.stderr
        assert user.user_id in shown.stdout
        assert name in shown.stdout

    def test_settings_say_how_long_tokens_are_good(self, site: Site) -> None:
        made = site.user()
        (token,) = made.user.tokens
        assert token.expire_time.seconds - token.create_time.seconds in (3_600, 3_601)
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "lifetime: is longer than 2:00:00"):
            site.person(token=made.token).users.RotateToken(user_pb2.RotateTokenRequest(lifetime={"seconds": 7_201}))


def test_a_server_that_asks_for_no_certificate_identifies_no_user_by_it(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue("127.0.0.1").write(tmp_path, "server")
    with Server(tmp_path / "data", options=("--tls-cert", str(cert), "--tls-key", str(key))) as server:
        request = user_pb2.CreateUserRequest(name="one", role="ROLE_CLIENT", certificate_names=["one.example.org"])
        authority.person(server.address, token=server.admin_token).users.CreateUser(request)
        with fails_with("UNAUTHENTICATED", "TOKEN_MISSING"):
            myself(authority.person(server.address, authority.issue("one.example.org")))
