"""Settings: the order of the sources, and invalid values."""

import re
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedround_server.__main__ import _parse, main
from fedround_server.config import Settings
from fedround_server.domain.limits import DEFAULTS, Limits


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FEDROUND_{name.upper()}", raising=False)
    return tmp_path


def test_flags_win_over_the_environment_over_the_file_over_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _parse([]).grace_seconds == 10
    (folder / "fedround.toml").write_text("grace_seconds = 1\nmax_uploads = 7\ninsecure = true\n")
    assert _parse([]).grace_seconds == 1
    monkeypatch.setenv("FEDROUND_GRACE_SECONDS", "2")
    assert _parse([]).grace_seconds == 2
    settings = _parse(["--grace-seconds", "3"])
    assert (settings.grace_seconds, settings.max_uploads, settings.insecure) == (3, 7, True)


def test_a_server_may_listen_on_loopback_without_tls(folder: Path) -> None:
    for listen in ("127.0.0.1:1", "127.8.9.10:1", "localhost:1", "[::1]:1"):
        assert _parse(["--listen", listen]).address[1] == 1
    assert _parse(["--listen", "[::1]:1"]).address == ("::1", 1)


def test_metrics_are_served_on_loopback_or_with_consent(folder: Path) -> None:
    assert _parse([]).metrics_address is None
    assert _parse(["--metrics-listen", "[::1]:9464"]).metrics_address == ("::1", 9464)
    assert _parse(["--metrics-listen", "0.0.0.0:9464", "--insecure"]).metrics_address == ("0.0.0.0", 9464)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:1"], "--insecure if something else encrypts"),
        (["--listen", "hospital.example:1"], "not a loopback address"),
        (["--listen", "50051"], "not HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "not HOST:PORT"),
        (["--listen", ":50051"], "not HOST:PORT"),
        (["--metrics-listen", "0.0.0.0:9464"], "metrics_listen: 0.0.0.0 is not a loopback address"),
        (["--metrics-listen", "9464"], "metrics_listen: '9464' is not HOST:PORT"),
        (["--tls-cert", "a.pem"], "go together"),
        (["--tls-client-ca", "a.pem"], "goes with tls_cert"),
        (["--database", "mysql://a/b"], "postgresql:// URL"),
        (["--log-level", "loud"], "log_level"),
        (["--grace-seconds", "-1"], "grace_seconds"),
        (["--max-model-bytes", str(65 << 30)], "max_unfinished_bytes_per_user"),
        (["--max-unfinished-bytes", str(1 << 30)], "max_unfinished_bytes_per_user"),
        (["--max-uploads", "many"], "max_uploads"),
        (["--keepalive-seconds", "0"], "keepalive_seconds"),
        (["--keepalive-timeout-seconds", "1e9"], "keepalive_timeout_seconds"),
    ],
)
def test_invalid_settings_are_reported(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert words in output.err
    assert output.err.startswith("error: ")
    assert output.out == ""
    assert list(folder.iterdir()) == []


def test_an_unknown_name_in_the_file_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fedround.toml").write_text("data_dirr = 'x'\n")
    assert main([]) == 2
    assert "data_dirr" in capsys.readouterr().err


def test_a_file_that_is_not_toml_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fedround.toml").write_text("data_dir = \n")
    assert main([]) == 2
    assert "fedround.toml" in capsys.readouterr().err


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        _parse([]).max_uploads = 1  # type: ignore[misc]


def lifetimes(*arguments: str) -> tuple[timedelta | None, timedelta | None]:
    limits = _parse([*arguments]).limits
    return limits.token_lifetime, limits.max_token_lifetime


def test_lifetimes_of_tokens() -> None:
    hour, day = timedelta(hours=1), timedelta(days=1)
    default, longest = ("--token-lifetime-seconds", "3600"), ("--max-token-lifetime-seconds", "86400")
    assert lifetimes() == (None, None)
    assert lifetimes(*default) == (hour, None)
    assert lifetimes(*longest) == (day, day)
    assert lifetimes(*default, *longest) == (hour, day)
    with pytest.raises(ValidationError, match="must not be more than max_token_lifetime_seconds"):
        _parse(["--token-lifetime-seconds", "86401", *longest])


def test_every_limit_comes_from_its_setting() -> None:
    assert _parse([]).limits == DEFAULTS
    given = {
        "max_open_trainings_per_user": 1,
        "max_open_trainings": 2,
        "max_stored_bytes_per_user": 3,
        "max_model_bytes": 4,
        "max_unfinished_bytes_per_user": 5,
        "max_unfinished_bytes": 6,
        "min_free_bytes": 7,
        "max_stored_bytes": 8,
        "predict_seconds": 9.0,
        "predict_bytes": 10,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    limits = _parse([*arguments, "--heartbeat-seconds=11"]).limits
    assert limits == replace(DEFAULTS, **given, heartbeat=timedelta(seconds=11))
    unset = {field.name for field in fields(Limits)} - given.keys() - {"heartbeat"}
    assert unset == {"max_predictions", "token_lifetime", "max_token_lifetime"}


def test_aggregations_have_threads() -> None:
    assert _parse([]).aggregation_threads >= 1
    assert _parse(["--aggregation-threads=3"]).aggregation_threads == 3
    with pytest.raises(ValidationError, match="aggregation_threads"):
        _parse(["--aggregation-threads=0"])


def test_every_limit_is_documented_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs/limits.md").read_text()
    bounds = re.compile("(max|min|predict)_(?!token)")
    limits = {name: field for name, field in Settings.model_fields.items() if bounds.match(name)}
    assert len(limits) > 10
    for name, field in limits.items():
        assert f"| `{name}` | {_shown(name, field.default)} |" in page


def _shown(name: str, default: float) -> str:
    if "bytes" not in name:
        return f"{default:g}"
    return f"{default >> 30} GiB" if default < 1 << 40 else f"{default >> 40} TiB"  # type: ignore[operator]
