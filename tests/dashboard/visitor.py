"""A dashboard over a real server, in a thread of the test, and a visitor that speaks HTTP to it."""

import html
import http.client
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import fedround_client as fr
from fedround_client.dashboard.app import Dashboard
from fedround_client.dashboard.server import bind, make_server
from fedround_client.dashboard.settings import Settings, allowed_hosts
from fedround_client.dashboard.sign_in import OperatorLink
from servers import Server


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Served:
    """A dashboard that is served."""

    dashboard: Dashboard
    port: int
    clock: Clock
    link: OperatorLink

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def visitor(self) -> "Visitor":
        return Visitor(self.port)


@contextmanager
def serving(server: Server, operator_token: str = "unused", **changed: Any) -> Iterator[Served]:
    """Serves a dashboard of a server."""

    def open_client(token: str) -> fr.Client:
        return fr.connect(server.address, token)

    clock = Clock()
    settings = Settings("127.0.0.1", 0, allowed_hosts("127.0.0.1", []), server.address, open_client)
    with bind(settings) as listener:
        settings = replace(settings, port=listener.getsockname()[1], **changed)
        link = OperatorLink(operator_token, clock)
        dashboard = Dashboard(settings, link, clock)
        ready = threading.Event()
        serving = make_server(dashboard, settings, ready.set)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(30)
            yield Served(dashboard, settings.port, clock, link)
        finally:
            serving.should_exit = True
            thread.join()


@dataclass
class Answer:
    """A response."""

    status: int
    headers: http.client.HTTPMessage
    body: str

    @property
    def text(self) -> str:
        """What the page says, without its tags."""
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", self.body)).split())

    def field(self, name: str) -> str:
        """The value of a hidden field."""
        found = re.search(rf'name="{name}" value="([^"]*)"', self.body)
        assert found, self.body
        return html.unescape(found[1])


@dataclass
class Visitor:
    """A browser without JavaScript: it keeps cookies, follows nothing, and says where forms come from."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = {}) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()), **headers}
        try:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read().decode())
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies.pop(name, None)
            if value.strip('"'):
                self.cookies[name] = value
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, fields: Any = (), headers: Mapping[str, str] = {}) -> Answer:
        form = {"Origin": self.origin, "Content-Type": "application/x-www-form-urlencoded", **headers}
        return self.request("POST", path, urlencode(fields, doseq=True), form)

    def sign_in(self, token: str) -> Answer:
        page = self.get("/sign-in")
        return self.post("/sign-in", {"csrf": page.field("csrf"), "token": token, "next": page.field("next")})

    def stream(self, path: str) -> "Stream":
        return Stream(self, path)


class Stream:
    """A page that listens. It ends with its `with` block, as a tab that is closed."""

    def __init__(self, visitor: Visitor, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=60)
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        self._connection.request("GET", path, headers={"Cookie": cookie})
        self.response = self._connection.getresponse()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.response.close()
        self._connection.close()

    def next(self) -> tuple[str, str]:
        """The name and the data of the next event."""
        name = ""
        for line in iter(self.response.readline, b""):
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text.removeprefix("event: ")
            elif text.startswith("data: "):
                return name, text.removeprefix("data: ")
        return "end", ""
