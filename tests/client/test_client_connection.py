"""What is on the way to a server instead of it: web servers, proxies, TLS that does not fit."""

import datetime
import re
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import grpc_testing
import numpy as np
import pytest

from certificates import Authority
from client.scripted import until
from fedround_client import (
    Client,
    ClientClosed,
    FedroundError,
    NoGrpcServer,
    ProxyDenied,
    ProxyUnreachable,
    RequestBodyLimit,
    ServerUnavailable,
    TlsFailed,
    connect,
)
from fedround_client.probe import connection_error
from scripted_peers import answering, dead_port, listening, saying, silent

pytestmark = pytest.mark.timeout(30)

HTML = b"<html><h1>Sign in</h1></html>"
FAR = "fedround.example.org:50051"


def plus_one(model, round_):
    return {"w": model["w"] + 1}, 1


def failure(address, **options):
    """Returns the error of a single call."""
    with connect(address, "fr_any", **options) as client, pytest.raises(FedroundError) as caught:
        client.create_user("name")
    return caught.value


def lasting_failure(address, **options):
    """Returns an error that `participate` does not try again after."""
    error = failure(address, **options)
    assert not error.transient
    return error


def transient_failure(address, **options):
    error = failure(address, **options)
    assert error.transient
    return error


def words_in(pattern, text):
    return re.search(pattern, str(text), re.IGNORECASE | re.DOTALL)


@pytest.mark.parametrize("status", [200, 301, 413])
def test_an_answer_without_grpc_ends_the_participation(status):
    with listening(answering(status, HTML)) as address, connect(address, "fr_any") as client:
        call = ThreadPoolExecutor(1).submit(client.participate, plus_one)
        assert type(call.exception(20)) in (NoGrpcServer, RequestBodyLimit)


def test_a_failed_verification_ends_the_participation(peer, ca):
    address = peer(Authority().issue("127.0.0.1"))
    with connect(address, "fr_any", tls_ca=ca) as client, pytest.raises(TlsFailed):
        client.participate(plus_one)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (301, b"", NoGrpcServer, "no grpc server answers at .*http 301.*redirect"),
        (200, HTML, NoGrpcServer, "no grpc server answers at .*web page"),
        (200, b"", NoGrpcServer, "no grpc server answers at .*web page"),
        (403, HTML, NoGrpcServer, "no grpc server answers at .*http 403 forbidden"),
        (404, HTML, NoGrpcServer, "no grpc server answers at .*http 404 not found"),
        (500, HTML, NoGrpcServer, "no grpc server answers at .*http 500"),
        (599, HTML, NoGrpcServer, "no grpc server answers at .*http 599"),
        (413, HTML, RequestBodyLimit, "a proxy on the way to .* limits request bodies"),
    ],
)
def test_answers_without_grpc_are_named(status, body, kind, words):
    with listening(answering(status, body)) as address:
        error = lasting_failure(address)
    assert type(error) is kind
    assert words_in(words, error)


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"], ids=["http", "ssh"]
)
def test_servers_without_http2_are_named(data):
    with listening(saying(data)) as address:
        assert type(lasting_failure(address)) is NoGrpcServer


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_gateway_whose_server_is_down_is_named_and_tried_again(status):
    with listening(answering(status, HTML)) as address:
        assert words_in(f"a proxy on the way to .* http {status}", transient_failure(address))


def test_an_answer_without_an_end_is_tried_again_if_the_server_has_answered_before():
    class Cut(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.UNKNOWN

        def details(self):
            return "No status received"

        def trailing_metadata(self):
            return ()

    assert type(connection_error(Cut(), None, "there:1", is_first=True)) is NoGrpcServer
    assert connection_error(Cut(), None, "there:1", is_first=False).transient


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://host.example:7000", "write host.example:7000, without http://"),
        ("https://host.example", "write host.example:50051, without https://"),
        ("host.example", "has no port: write host.example:50051"),
        ("host.example:", "has no port: write host.example:50051"),
        ("host.example:7000/api", "has a path: write host.example:7000"),
        ("host.example:port", "is not HOST:PORT"),
        ("host.example:70000", "from 1 to 65535"),
        (":7000", "is not HOST:PORT"),
        ("::1", r"write \[::1\]:50051"),
        ("[::1]", r"write \[::1\]:50051"),
        ("fe80::1:7000x", "in brackets"),
        (" host.example:7000", "white space"),
    ],
)
def test_an_address_that_is_none_is_answered_with_what_to_write(address, words):
    with pytest.raises(ValueError, match=words):
        connect(address, "fr_any")


@pytest.mark.parametrize("address", ["host:1", "10.0.0.1:1", "[::1]:1", "dns:///host:1", "unix:/run/fedround.sock"])
def test_addresses_are_accepted(address):
    connect(address, "fr_any", insecure=True).close()


@pytest.fixture
def proxy(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return lambda address, name="http_proxy": monkeypatch.setenv(name, f"http://{address}")


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_dead_proxy_is_named(proxy, name):
    address = dead_port()
    proxy(address, name)
    error = transient_failure(FAR, insecure=True)
    assert type(error) is ProxyUnreachable
    assert words_in(f"the http proxy {address}, which the environment variable {name} names.*refused.*no_proxy", error)


def test_a_proxy_that_does_not_speak_http_is_named(proxy):
    with listening(saying(b"SSH-2.0-OpenSSH_9.2\r\n")) as address:
        proxy(address)
        assert type(transient_failure(FAR, insecure=True)) is ProxyUnreachable


def test_a_proxy_that_denies_the_connection_is_named(proxy):
    with listening(saying(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")) as address:
        proxy(address)
        error = lasting_failure(FAR, insecure=True)
    assert type(error) is ProxyDenied
    assert words_in(f"{address}.*http_proxy.*does not allow.*407", error)


def test_a_proxy_that_cannot_reach_the_server_is_tried_again(proxy):
    with listening(saying(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")) as address:
        proxy(address)
        assert words_in("cannot reach fedround.example.org:50051.*503", transient_failure(FAR, insecure=True))


def test_a_host_without_a_proxy_is_not_blamed_on_the_proxy(proxy, monkeypatch):
    proxy(dead_port())
    monkeypatch.setenv("no_proxy", "localhost,.invalid,10.0.0.0/8")
    error = transient_failure("fedround.invalid:50051", insecure=True)
    assert type(error) is ServerUnavailable
    assert "proxy" not in str(error)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def ca(authority, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.pem)
    return path


@pytest.fixture
def peer(tmp_path):
    """Runs a server with a certificate, which would answer with HTTP 301; returns its address."""
    with ExitStack() as stack:

        def run(certificate, alpn=("h2",), clients=None):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate.write(tmp_path, "server"))
            context.set_alpn_protocols(alpn)
            if clients is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cadata=clients.pem.decode())
            return stack.enter_context(listening(answering(301), context))

        yield run


def check_tls(error, reason, words):
    assert type(error) is TlsFailed
    assert error.reason == reason
    assert words_in(words, error)
    assert not words_in("insecure", error)


def test_an_unknown_authority(peer, ca):
    address = peer(Authority().issue("127.0.0.1"))
    words = f"certificate of the server at {address} is signed by an authority.*{ca}"
    check_tls(lasting_failure(address, tls_ca=ca), "TLS_UNKNOWN_AUTHORITY", words)
    check_tls(lasting_failure(address, insecure=False), "TLS_UNKNOWN_AUTHORITY", "this machine trusts.*tls_ca")


def test_an_expired_certificate(peer, ca, authority):
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    before = past - datetime.timedelta(days=1)
    address = peer(authority.issue("127.0.0.1", not_before=before, not_after=past))
    check_tls(lasting_failure(address, tls_ca=ca), "TLS_EXPIRED", "has expired: the operator must renew it")


def test_a_certificate_that_is_not_valid_yet(peer, ca, authority):
    future = datetime.datetime(2090, 1, 1, tzinfo=datetime.UTC)
    after = future + datetime.timedelta(days=1)
    address = peer(authority.issue("127.0.0.1", not_before=future, not_after=after))
    check_tls(lasting_failure(address, tls_ca=ca), "TLS_NOT_YET_VALID", "this machine's clock")


def test_a_wrong_name(peer, ca, authority):
    address = peer(authority.issue("fedround.example.org"))
    check_tls(lasting_failure(address, tls_ca=ca), "TLS_WRONG_NAME", "for other names than 127.0.0.1")


def test_plaintext_to_a_server_with_tls(peer, authority):
    address = peer(authority.issue("127.0.0.1"))
    check_tls(lasting_failure(address), "TLS_REQUIRED", f"server at {address} requires tls.*tls_ca")
    error = failure(address, insecure=True)
    assert (type(error), error.reason) == (TlsFailed, "TLS_REQUIRED")


def test_tls_to_a_server_without_it(ca):
    with listening(answering(301)) as address:
        check_tls(lasting_failure(address, tls_ca=ca), "TLS_NOT_OFFERED", "does not use tls.*nothing was sent")


def test_a_server_that_requires_a_client_certificate(peer, ca, authority, tmp_path):
    address = peer(authority.issue("127.0.0.1"), clients=authority)
    check_tls(lasting_failure(address, tls_ca=ca), "TLS_CLIENT_CERTIFICATE", "requires a client certificate")
    certificate, key = Authority().issue("ward-7").write(tmp_path, "client")
    error = failure(address, tls_ca=ca, tls_cert=certificate, tls_key=key)
    check_tls(error, "TLS_CLIENT_CERTIFICATE", "does not accept the client certificate")


def test_a_tls_file_without_a_certificate(peer, authority, tmp_path):
    empty = tmp_path / "empty.pem"
    empty.touch()
    address = peer(authority.issue("127.0.0.1"))
    check_tls(lasting_failure(address, tls_ca=empty), "TLS_FILE_INVALID", f"tls_ca is {empty}")


def test_a_web_server_with_tls(peer, ca, authority):
    address = peer(authority.issue("127.0.0.1"), alpn=("http/1.1",))
    assert words_in("uses tls, but not http/2", failure(address, tls_ca=ca))
    assert words_in("http 301", failure(peer(authority.issue("127.0.0.1")), tls_ca=ca))


def test_an_upload_that_is_never_answered_is_given_up_and_tried_again(caplog):
    clock, calls = grpc_testing.strict_fake_time(1000.0), []
    with listening(silent(calls)) as address:
        client = Client(grpc.insecure_channel(address), "fr_any", address=address, clock=clock)
        pool = ThreadPoolExecutor(1)
        call = pool.submit(client.submit_update, "11111111-1111-4111-8111-111111111111", 0, {"w": np.zeros(9)}, 1)
        until(lambda: len(calls) == 1)
        # The alarm of the first attempt, then the back-off.
        until(lambda: clock.sleep_for(1) or len(calls) > 1)
        client.close()
        assert type(call.exception(20)) is ClientClosed
        pool.shutdown()
    (first, *_) = [record.getMessage() for record in caplog.records if record.name.startswith("fedround")]
    assert words_in("trying again: unavailable: .*did not answer an upload for 60 s", first)
    assert "CANCELLED" not in caplog.text
