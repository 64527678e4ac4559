"""Settings: the order of the sources, and invalid values."""

import re
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedround_server.__main__ import main
from fedround_server.config import Settings, command_line
from fedround_server.config import file as config_file
from fedround_server.config.settings import GROUPS
from fedround_server.domain.limits import DEFAULTS, Limits


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FEDROUND_{name.upper()}", raising=False)
    return tmp_path


def parse(arguments: list[str]) -> Settings:
    return Settings(**command_line.parse(arguments))


def test_flags_win_over_the_environment_over_the_file_over_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse([]).grace_seconds == 10
    (folder / "fedround.toml").write_text("grace_seconds = 1\nmax_uploads = 7\ninsecure = true\n")
    assert parse([]).grace_seconds == 1
    monkeypatch.setenv("FEDROUND_GRACE_SECONDS", "2")
    assert parse([]).grace_seconds == 2
    settings = parse(["--grace-seconds", "3"])
    assert (settings.grace_seconds, settings.max_uploads, settings.insecure) == (3, 7, True)


def test_a_server_may_listen_on_loopback_without_tls(folder: Path) -> None:
    for listen in ("127.0.0.1:1", "127.8.9.10:1", "localhost:1", "[::1]:1"):
        assert parse(["--listen", listen]).address[1] == 1
    assert parse(["--listen", "[::1]:1"]).address == ("::1", 1)


def test_metrics_are_served_on_loopback_or_with_consent(folder: Path) -> None:
    assert parse([]).metrics_address is None
    assert parse(["--metrics-listen", "[::1]:9464"]).metrics_address == ("::1", 9464)
    assert parse(["--metrics-listen", "0.0.0.0:9464", "--metrics-insecure"]).metrics_address == ("0.0.0.0", 9464)


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
        (["--engine", "dask"], "engine (--engine): "),
        (["--ray-address", "head:6379"], "ray_address goes with engine ray"),
        (["--engine", "ray", "--ray-address", "head"], "ray_address: 'head' is not HOST:PORT"),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_upload = 1", "fedround.toml: max_upload: no such setting: do you mean max_uploads?"),
        ("data-dir = 'x'", "fedround.toml: data-dir: no such setting: do you mean data_dir?"),
        ("colour = 'red'", "fedround.toml: colour: no such setting: see fedround serve --help"),
        ("config = 'x'", "fedround.toml: config: no such setting"),
        ("[limits]\nmax_uploads = 1", "fedround.toml: limits: the file has no tables"),
        ("data_dir = ", "fedround.toml: is not a TOML file"),
        ("max_uploads = 'many'", "max_uploads (fedround.toml): "),
        ("max_model_bytes = '2 quarts'", "max_model_bytes (fedround.toml): '2 quarts' is not understood"),
    ],
)
def test_a_file_that_is_wrong_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (folder / "fedround.toml").write_text(text)
    assert main([]) == 2
    assert f"error: {words}" in capsys.readouterr().err


def test_every_unknown_name_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fedround.toml").write_text("data_dirr = 'x'\n{y} = 1\n".replace("{y}", "'{y}'"))
    assert main([]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "data_dirr" in first
    assert "{y}" in second


def test_the_file_is_the_one_that_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("fedround.toml", "variable.toml", "option.toml")):
        (folder / name).write_text(f"grace_seconds = {number}\n")
    assert (parse([]).grace_seconds, parse([]).config) == (0, Path("fedround.toml"))
    monkeypatch.setenv("FEDROUND_CONFIG", "variable.toml")
    assert (parse([]).grace_seconds, parse([]).config) == (1, Path("variable.toml"))
    assert parse(["--config", "option.toml"]).grace_seconds == 2
    assert main(["--config", "missing.toml"]) == 2
    assert capsys.readouterr().err == "error: missing.toml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_model_bytes", "2GiB", 2 << 30),
        ("max_model_bytes", "1.5 MB", 1_500_000),
        ("max_stored_bytes_per_user", "3TiB", 3 << 40),
        ("max_model_bytes", "17", 17),
        ("grace_seconds", "250ms", 0.25),
        ("grace_seconds", "5min", 300),
        ("token_lifetime_seconds", "90d", 90 * 86_400),
        ("grace_seconds", "2.5", 2.5),
    ],
)
def test_sizes_and_durations_may_have_units(folder: Path, name: str, text: str, value: float) -> None:
    assert getattr(parse([f"--{name.replace('_', '-')}", text]), name) == value
    (folder / "fedround.toml").write_text(f"{name} = '{text}'\n")
    assert getattr(parse([]), name) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-model-bytes", "1.5B"], "max_model_bytes (--max-model-bytes): '1.5B' is not a whole number of bytes"),
        (["--max-model-bytes", "2 gib"], "the units are B, KiB, MiB"),
        (["--max-model-bytes=-1GiB"], "write for example 2GiB"),
        (["--grace-seconds", "5m"], "the units are ms, s, min, h, d"),
        (["--max-uploads", "2GiB"], "max_uploads (--max-uploads): "),
    ],
)
def test_what_is_no_size_or_duration_is_reported(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_lists_and_empty_values_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDROUND_ARCHITECTURE", "one=a.b:c,two=d:e")
    monkeypatch.setenv("FEDROUND_TLS_CERT", "")
    assert parse([]).architectures == {"one": "a.b:c", "two": "d:e"}
    assert parse([]).tls_cert is None
    assert parse(["--architecture", "x=y:z", "--architecture", "u=v:w"]).architectures == {"x": "y:z", "u": "v:w"}
    monkeypatch.setenv("FEDROUND_MAX_UPLOADS", "many")
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: max_uploads (FEDROUND_MAX_UPLOADS): ")


def test_misspelled_variables_are_found() -> None:
    environment = {"FEDROUND_MAX_UPLOAD": "1", "FEDROUND_TLS_CA": "a", "FEDROUND_SERVER": "b", "FEDROUND_LISTEN": "c"}
    found = config_file.unknown_variables({**environment, "FEDROUND_TOKEN": "t", "HOME": "h"}, Settings.model_fields)
    assert found == {"FEDROUND_MAX_UPLOAD": "FEDROUND_MAX_UPLOADS"}


def test_a_password_that_others_can_read_is_found(folder: Path) -> None:
    file = folder / "fedround.toml"
    file.write_text("database = 'postgresql://me:secret@db/fedround'\n")
    file.chmod(0o644)
    assert config_file.exposes_password(file)
    file.chmod(0o640)
    assert not config_file.exposes_password(file)
    file.write_text("database = 'postgresql://me@db/fedround'\n")
    file.chmod(0o644)
    assert not config_file.exposes_password(file)
    assert config_file.has_password("postgresql://db/fedround?password=secret")


def test_a_misspelled_variable_is_named_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDROUND_TLS_CRT", "server.pem")
    assert main(["--listen", "0.0.0.0:0"]) == 2
    error, warning = capsys.readouterr().err.splitlines()
    assert error.startswith("error: 0.0.0.0 is not a loopback address")
    assert warning == "warning: FEDROUND_TLS_CRT is no setting: do you mean FEDROUND_TLS_CERT?"


def test_the_help_has_every_setting_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for setting in command_line.all_settings():
        assert len(re.findall(rf"^  {setting.option} ", text, re.MULTILINE)) == 1
        assert text.count(f"[{setting.variable}]") == 1
        assert f"\n{setting.group}:\n" in text
    assert GROUPS.keys() <= Settings.model_fields.keys()
    words = " ".join(text.split())
    for part in ("Default: 16 GiB.", "Default: 30 s.", "Others can see the command line", "No file is read"):
        assert part in words


def test_the_help_says_which_file_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fedround.toml").touch()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "The file that is read here: fedround.toml" in capsys.readouterr().out


def test_the_example_is_valid_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    example = (root / "deploy/fedround.toml").read_text()
    assert example in (root / "docs/configuration.md").read_text()
    monkeypatch.setenv("FEDROUND_CONFIG", str(root / "deploy/fedround.toml"))
    assert parse([]).max_model_bytes == 2 << 30


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        parse([]).max_uploads = 1  # type: ignore[misc]


def lifetimes(*arguments: str) -> tuple[timedelta | None, timedelta | None]:
    limits = parse([*arguments]).limits
    return limits.token_lifetime, limits.max_token_lifetime


def test_lifetimes_of_tokens() -> None:
    hour, day = timedelta(hours=1), timedelta(days=1)
    default, longest = ("--token-lifetime-seconds", "3600"), ("--max-token-lifetime-seconds", "86400")
    assert lifetimes() == (None, None)
    assert lifetimes(*default) == (hour, None)
    assert lifetimes(*longest) == (day, day)
    assert lifetimes(*default, *longest) == (hour, day)
    with pytest.raises(ValidationError, match="must not be more than max_token_lifetime_seconds"):
        parse(["--token-lifetime-seconds", "86401", *longest])


def test_every_limit_comes_from_its_setting() -> None:
    assert parse([]).limits == DEFAULTS
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
        "max_check_ins_per_second": 12.0,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    limits = parse([*arguments, "--heartbeat-seconds=11", "--check-in-seconds=13"]).limits
    assert limits == replace(DEFAULTS, **given, heartbeat=timedelta(seconds=11), check_in=timedelta(seconds=13))
    unset = {field.name for field in fields(Limits)} - given.keys() - {"heartbeat", "check_in"}
    assert unset == {"max_predictions", "token_lifetime", "max_token_lifetime"}


def test_aggregations_have_threads() -> None:
    assert parse([]).aggregation_threads >= 1
    assert parse(["--aggregation-threads=3"]).aggregation_threads == 3
    with pytest.raises(ValidationError, match="aggregation_threads"):
        parse(["--aggregation-threads=0"])


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
