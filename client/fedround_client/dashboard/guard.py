"""What every request and every response of the dashboard has to do with security: hosts, origins and headers."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Neither scripts nor styles within pages, and nothing from elsewhere: what another user chose, such as a name, could
# not be executed even if a page did not escape it.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": browsers would send "Origin: null" with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_READING = ("GET", "HEAD")


class Guard:
    """Rejects requests for unknown hosts and forms of other pages, and adds headers to all responses."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Wraps an application.

        Args:
            app: The application.
            hosts: Names by which browsers may call it, in lower case, without ports.
        """
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        app = self._rejection(scope["method"], Headers(scope=scope)) or self._app
        await app(scope, receive, send_with_headers)

    def _rejection(self, method: str, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "")
        if host_name(host) not in self._hosts:
            text = "This dashboard is not served under this name. Its operator can allow it with --allowed-host.\n"
            return PlainTextResponse(text, 421)
        if method not in _READING and not is_same_origin(headers):
            return PlainTextResponse("This form was not sent by a page of this dashboard.\n", 403)
        return None


def host_name(host: str) -> str:
    """Returns the name in a Host header, without the port; empty if it is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_same_origin(headers: Headers) -> bool:
    """Returns whether a request was sent by a page of the host that it is for: browsers say it with each form."""
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    scheme, _, rest = headers.get("origin", "").partition("://")
    # A proxy in front of the dashboard may speak HTTPS, so that the scheme may differ from that of the connection.
    return scheme in ("http", "https") and rest.lower() == headers.get("host", "").lower()
