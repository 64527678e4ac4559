"""Who gets into the dashboard, for how long, and what other pages can do: nothing."""

import gc
import logging
import re
import weakref

import pytest

from calls import Person, new_id, until
from dashboard.conftest import People
from dashboard.visitor import Served, Visitor, serving
from fedround.v1 import user_pb2
from fedround_client.address import is_loopback_host
from fedround_client.dashboard.settings import allowed_hosts, parse_listen
from fedround_client.dashboard.sign_in_limit import MAX_FAILURES, SignInLimit
from fedround_client.dashboard.web import inner_path

COOKIE = re.compile(r"fedround_\d+=[\w-]{43}; HttpOnly; Path=/; SameSite=strict")


def signed_in(served: Served, token: str) -> Visitor:
    visitor = served.visitor()
    assert visitor.sign_in(token).status == 303
    return visitor


def session_of(visitor: Visitor) -> str:
    (value,) = (value for name, value in visitor.cookies.items() if "form" not in name)
    return value


@pytest.mark.parametrize("path", ["/", "/trainings/{}", "/trainings/{}/rounds", "/users", "/server", "/nothing"])
def test_pages_need_a_sign_in(served: Served, path: str) -> None:
    answer = served.visitor().get(path.format(new_id()))
    assert (answer.status, answer.headers["Location"].partition("?")[0]) == (303, "/sign-in")


def test_streams_need_a_sign_in(served: Served) -> None:
    with served.visitor().stream("/live") as stream:
        assert stream.next() == ("signed-out", "{}")
        assert stream.next()[0] == "end"


def test_a_token_signs_in(served: Served, people: People) -> None:
    visitor = served.visitor()
    answer = visitor.sign_in(people.viewer.token)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookies = answer.headers.get_all("Set-Cookie")
    assert cookies is not None
    assert COOKIE.fullmatch(cookies[0])
    page = visitor.get("/")
    assert page.status == 200
    assert "screen viewer" in page.text
    assert people.viewer.token not in page.body


def test_a_wrong_token_does_not_and_the_form_works_again(served: Served, people: People) -> None:
    visitor = served.visitor()
    answer = visitor.sign_in("fr_wrong")
    assert answer.status == 401
    assert "The server does not know this token" in answer.text
    again = visitor.post("/sign-in", {"csrf": answer.field("csrf"), "token": people.viewer.token, "next": "/"})
    assert again.status == 303


def test_each_sign_in_has_a_session_of_its_own(served: Served, people: People) -> None:
    visitor = signed_in(served, people.viewer.token)
    first = dict(visitor.cookies)
    visitor.cookies.clear()
    visitor.sign_in(people.actor.token)
    assert session_of(visitor) not in first.values()
    assert Visitor(served.port, first).get("/").status == 200


def test_a_cookie_that_was_planted_is_no_session(served: Served, people: People) -> None:
    visitor = Visitor(served.port, {f"fedround_{served.port}": "planted"})
    visitor.sign_in(people.viewer.token)
    assert session_of(visitor) != "planted"
    assert Visitor(served.port, {f"fedround_{served.port}": "planted"}).get("/").status == 303


def test_signing_out_ends_the_session(served: Served, people: People) -> None:
    visitor = signed_in(served, people.viewer.token)
    kept = dict(visitor.cookies)
    answer = visitor.post("/sign-out", {"csrf": visitor.get("/").field("csrf")})
    assert answer.status == 303
    assert visitor.cookies == {}
    assert Visitor(served.port, kept).get("/").status == 303


def test_sessions_expire(served: Served, people: People) -> None:
    visitor, kept = signed_in(served, people.viewer.token), signed_in(served, people.viewer.token)
    for _ in range(12):
        served.clock.now += 3500
        assert kept.get("/").status == 200
        # What a page asks for by itself is no use of it.
        visitor.get("/", **{"X-Live": "1"})
    assert visitor.get("/").status == 303
    served.clock.now += 3500
    assert kept.get("/").status == 303


def test_a_token_is_forgotten_with_its_last_session(served: Served, people: People) -> None:
    token = people.admin.make(people.server.address, "VIEWER").token
    accounts = served.dashboard.sessions._accounts
    before = len(accounts)
    one, other = signed_in(served, token), signed_in(served, token)
    assert len(accounts) == before + 1
    one.post("/sign-out", {"csrf": one.get("/").field("csrf")})
    assert other.get("/").status == 200
    served.clock.now += 3600
    served.dashboard.sessions.end_expired()
    assert served.dashboard.sessions._accounts == {}


def test_nothing_keeps_a_token_that_is_forgotten(served: Served, people: People) -> None:
    token = people.admin.make(people.server.address, "ACTOR").token
    visitor = signed_in(served, token)
    (account,) = (one for one in served.dashboard.sessions._accounts.values() if one.token == token)
    owner = Person(people.admin.channel, token)
    training_id = owner.create(client_ids=[people.clients[0].user_id]).training_id
    owner.start(training_id)
    with visitor.stream(f"/trainings/{training_id}/live") as stream:
        assert stream.next()[0] == "live"
    for end in ("", "/participants?q=site", "/charts"):
        assert visitor.get(f"/trainings/{training_id}{end}").status == 200
    visitor.post("/sign-out", {"csrf": visitor.get("/").field("csrf")})
    is_left = weakref.ref(account)
    del account
    until(lambda: gc.collect() >= 0 and is_left() is None)


def test_a_revoked_token_ends_its_sessions_and_streams(served: Served, people: People) -> None:
    person = people.admin.make(people.server.address, "VIEWER")
    one, other = signed_in(served, person.token), signed_in(served, person.token)
    with one.stream("/live") as stream:
        assert stream.next()[0] == "live"
        people.admin.users.RemoveUser(user_pb2.RemoveUserRequest(user_id=person.user_id))
        names = []
        until(lambda: names.append(stream.next()[0]) or names[-1] == "signed-out")  # type: ignore[func-returns-value]
    assert one.get("/").status == 303
    assert other.get("/").status == 303


def test_the_link_of_the_operator_works_once(people: People) -> None:
    with serving(people.server, people.viewer.token) as served:
        visitor, path = served.visitor(), f"/sign-in/link?key={served.link.secret}"
        answer = visitor.get(path)
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
        assert "screen viewer" in visitor.get("/").text
        again = served.visitor()
        assert again.get(path).status == 403
        assert again.get("/").status == 303
        assert served.visitor().get("/sign-in/link?key=wrong").status == 403


def test_the_link_of_the_operator_expires(people: People) -> None:
    with serving(people.server, people.viewer.token) as served:
        served.clock.now += 600
        assert served.visitor().get(f"/sign-in/link?key={served.link.secret}").status == 403


def test_too_many_wrong_tokens_have_to_wait(people: People) -> None:
    with serving(people.server) as served:
        visitor = served.visitor()
        for _ in range(MAX_FAILURES):
            assert visitor.sign_in("fr_wrong").status == 401
        answer = visitor.sign_in(people.viewer.token)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
        served.clock.now += 60
        assert visitor.sign_in(people.viewer.token).status == 303


def test_the_limit_counts_networks_and_remembers_few() -> None:
    limit = SignInLimit(lambda: 0.0)
    for number in range(MAX_FAILURES):
        limit.add(f"2001:db8::{number}")
    assert limit.wait("2001:db8::ffff") == 60
    assert limit.wait("2001:db8:0:1::1") == 0
    for number in range(10_000):
        limit.add(f"10.0.{number // 256}.{number % 256}")
    assert limit.wait("2001:db8::1") == 0


def test_no_token_is_logged(served: Served, people: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    visitor = signed_in(served, people.viewer.token)
    visitor.get(f"/trainings/{new_id()}")
    served.visitor().sign_in("fr_wrong_secret")
    assert not re.search(rf"{people.viewer.token}|{session_of(visitor)}|fr_wrong_secret", caplog.text)


@pytest.mark.parametrize("headers", [{"Origin": ""}, {"Origin": "null"}, {"Origin": "http://evil.example"}])
def test_forms_of_other_pages_are_rejected(served: Served, people: People, headers: dict[str, str]) -> None:
    visitor = signed_in(served, people.viewer.token)
    csrf = visitor.get("/").field("csrf")
    assert visitor.post("/sign-out", {"csrf": csrf}, headers).status == 403
    assert visitor.post("/sign-out", {"csrf": csrf}, {"Sec-Fetch-Site": "same-site"}).status == 403
    assert visitor.get("/").status == 200


def test_forms_need_the_secret_of_their_session(served: Served, people: People) -> None:
    visitor, other = signed_in(served, people.actor.token), signed_in(served, people.actor.token)
    stop, start = (f"/trainings/{people.training()}/{name}" for name in ("stop", "start"))
    assert visitor.get(start).status == 200
    for csrf in ("", "0" * 64, other.get("/").field("csrf")):
        assert visitor.post(start, {"csrf": csrf}).status == 403
        assert visitor.post(stop, {"csrf": csrf}).status == 403
    assert visitor.post(start, {"csrf": visitor.get("/").field("csrf")}).status == 303
    # No visitor is signed in to an account that another page has chosen.
    fields = {"csrf": visitor.get("/").field("csrf"), "token": people.viewer.token}
    assert served.visitor().post("/sign-in", fields).status == 403


def test_one_token_has_a_part_of_the_sessions(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround_client.dashboard.sessions.MAX_SESSIONS", 3)
    monkeypatch.setattr("fedround_client.dashboard.sessions.MAX_ACCOUNT_SESSIONS", 2)
    with serving(people.server) as served:
        other = signed_in(served, people.actor.token)
        own = []
        for _ in range(3):
            served.clock.now += 1
            own.append(signed_in(served, people.viewer.token))
        assert [visitor.get("/").status for visitor in (other, *own)] == [200, 303, 200, 200]
        served.clock.now += 1
        signed_in(served, people.admin.token)
        assert other.get("/").status == 303


def test_a_visitor_who_is_not_signed_in_sends_little(served: Served) -> None:
    visitor = served.visitor()
    fields = {"csrf": visitor.get("/sign-in").field("csrf"), "token": "x" * 20_000}
    assert visitor.post("/sign-in", fields).status == 413


def test_forms_have_limits(served: Served, people: People) -> None:
    visitor = signed_in(served, people.actor.token)
    path, csrf = f"/trainings/{people.training()}/register", visitor.get("/").field("csrf")
    assert visitor.post(path, {"csrf": csrf, "user": "x" * (1 << 20)}).status == 413
    assert visitor.post(path, [("csrf", csrf), *[("user", "")] * 20_000]).status == 400
    assert visitor.post(path, {"csrf": csrf}, {"Content-Type": "text/plain"}).status == 400
    assert visitor.post(path, {"csrf": csrf, "user": "not-an-id"}).status == 400


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a:b:c"])
def test_other_host_names_are_not_served(served: Served, people: People, host: str) -> None:
    visitor = signed_in(served, people.viewer.token)
    assert visitor.request("GET", "/", headers={"Host": host or " "}).status in (400, 421)
    assert visitor.get("/", Host=f"localhost:{served.port}").status == 200


@pytest.mark.parametrize("path", ["/sign-in", "/", "/static/live.js", "/nothing", "/live", "/static/../web.py"])
def test_every_response_has_its_headers(served: Served, people: People, path: str) -> None:
    visitor = signed_in(served, people.viewer.token)
    if path == "/live":
        with visitor.stream(path) as stream:
            headers = stream.response.headers
    else:
        headers = visitor.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert headers["Referrer-Policy"] == headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cache-Control"] == ("no-cache" if path.startswith("/static/l") else "no-store")
    assert "Server" not in headers or "uvicorn" not in headers["Server"]


def test_cookies_are_secure_behind_https(served: Served, people: People) -> None:
    visitor = served.visitor()
    page = visitor.get("/sign-in")
    fields = {"csrf": page.field("csrf"), "token": people.viewer.token, "next": "/"}
    answer = visitor.post("/sign-in", fields, {"Origin": f"https://127.0.0.1:{served.port}"})
    assert answer.headers["Set-Cookie"].startswith("__Host-fedround_")
    assert "Secure" in answer.headers["Set-Cookie"]
    assert visitor.get("/").status == 200


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/trainings/1-a/rounds", "/trainings/1-a/rounds"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\r\nb", "/"),
        ("", "/"),
    ],
)
def test_a_sign_in_leads_to_a_page_of_the_dashboard(path: str, target: str) -> None:
    assert inner_path(path) == target


def test_addresses_and_names() -> None:
    assert parse_listen("[::1]:8080") == ("::1", 8080)
    assert {"localhost", "127.0.0.1"} <= allowed_hosts("127.0.0.1", [])
    assert allowed_hosts("192.0.2.1", ["Dash.example"]) == {"192.0.2.1", "dash.example"}
    with pytest.raises(ValueError, match="--allowed-host NAME"):
        allowed_hosts("0.0.0.0", [])
    for name in ("dash.example:8443", "https://dash.example"):
        with pytest.raises(ValueError, match="without scheme and port"):
            allowed_hosts("127.0.0.1", [name])
    for address in ("8080", ":8080", "127.0.0.1:", "127.0.0.1:99999"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            parse_listen(address)
    assert [is_loopback_host(host) for host in ("127.0.0.9", "::1", "localhost", "10.0.0.1", "example.org")] == [
        *(True, True, True),
        *(False, False),
    ]
