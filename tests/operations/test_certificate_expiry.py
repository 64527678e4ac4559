"""The log says when the server's certificate expires, early enough."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from calls import until
from certificates import Authority, presented
from servers import Server

SOON, PAST = "the TLS certificate will expire soon", "the TLS certificate has expired"


def options(folder: Path) -> tuple[str, ...]:
    return ("--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"))


@pytest.mark.parametrize(("days", "words"), [(-1, PAST), (5, SOON), (90, "")])
def test_a_certificate_that_expires_is_warned_about_at_the_start(tmp_path: Path, days: int, words: str) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    end = now + timedelta(days=days)
    issued = Authority().issue("127.0.0.1", not_before=now - timedelta(days=30), not_after=end)
    issued.write(tmp_path, "server")
    with Server(tmp_path / "data", options=options(tmp_path)) as server:
        assert ("the TLS certificate" in server.log) == bool(words)
        assert words in server.log
        assert not words or end.isoformat() in server.log


def test_a_new_certificate_is_logged_with_its_end(tmp_path: Path) -> None:
    authority, now = Authority(), datetime.now(UTC).replace(microsecond=0)
    authority.issue("127.0.0.1", not_after=now + timedelta(days=100)).write(tmp_path, "server")
    with Server(tmp_path / "data", options=options(tmp_path)) as server:
        old = authority.issue("127.0.0.1", not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
        old.write(tmp_path, "server")
        assert presented(server.address) == old.der
        until(lambda: PAST in server.log)
        assert (now - timedelta(days=1)).isoformat() in server.log
        for _ in range(3):
            presented(server.address)
        assert server.log.count(PAST) == 1
