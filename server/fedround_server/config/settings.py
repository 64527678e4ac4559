"""The settings of the server. Flags win over FEDROUND_* variables, these over a TOML file, and that over defaults.

Each setting is a flag and a variable by its name. A limit has its default in `domain/limits.py`. `make settings` writes
docs/configuration.md from this file.
"""

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fedround_server.config import file
from fedround_server.config.units import parse_duration, parse_size
from fedround_server.domain.limits import DEFAULTS, Limits

GROUPS = {
    "listen": "Listening and TLS",
    "data_dir": "Storage",
    "log_format": "Logs and metrics",
    "heartbeat_seconds": "Connections and shutdown",
    "token_lifetime_seconds": "Tokens",
    "max_calls_per_second_per_user": "Limits on calls and connections",
    "max_model_bytes": "Limits on files",
    "max_open_trainings_per_user": "Trainings and aggregation",
    "architecture": "Predictions",
    "id_seed": "Simulations and tests",
}
"""Titles of the groups of settings, by the first setting of each; a group goes on until the next one begins."""
MAX_LIFETIME = 3_200_000_000
"""Seconds, about a century: dates stay within the years that Python knows."""
LAST_PORT = 65535
LONGEST_SHARED_NAME = 60
"""Of a name that processes share: each adds its number."""
OBJECTS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.-]+)*/?")
ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,100}=[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Settings(BaseSettings):
    """Everything that an operator can set. Frozen."""

    model_config = SettingsConfigDict(
        env_prefix="FEDROUND_", env_ignore_empty=True, frozen=True, extra="forbid", populate_by_name=True
    )

    config: Path | None = Field(
        None, description="TOML file with settings; by default fedround.toml in the working directory, if it exists."
    )

    listen: str = Field("127.0.0.1:50051", description="Address to listen on; port 0 takes a free one.")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    tls_client_ca: Path | None = Field(None, description="PEM file with the CA of client certificates; requires them.")
    insecure: bool = Field(False, description="Listen on addresses other than loopback without TLS.")
    replica_name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._:-]{0,64}$",
        description="Name of this server among replicas, and in errors; by default host name and port.",
    )

    processes: int = Field(
        1, ge=1, le=64, description="Server processes on the port, for machines with many cores; with PostgreSQL only."
    )

    data_dir: Path = Field(Path("fedround-data"), description="Directory of the database, the files and admin.token.")
    database: str = Field("", description="postgresql:// URL; empty for a SQLite file in the data directory.")
    objects: str = Field(
        "",
        description="s3://BUCKET/PREFIX of an object store for the files, with credentials in AWS_* variables; empty"
        " for the data directory.",
    )
    objects_cache_bytes: int = Field(
        10 << 30, ge=0, description="Size of the copies of files of an object store in the data directory."
    )
    min_free_bytes: int = Field(
        DEFAULTS.min_free_bytes, ge=0, description="Free space on the disk that new models leave; updates leave half."
    )
    max_stored_bytes_per_user: int = Field(
        DEFAULTS.max_stored_bytes_per_user,
        ge=1,
        description="Size of one user's files: its models and the updates of its trainings.",
    )
    max_stored_bytes: int = Field(
        DEFAULTS.max_stored_bytes, ge=1, description="Size of all files; new models are rejected beyond it."
    )

    log_format: str = Field("console", pattern="^(console|json)$", description="Format of the log on stderr.")
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="Lowest level of what is logged."
    )
    metrics_listen: str = Field(
        "", description="Address for Prometheus, such as 127.0.0.1:9464, on a port of its own; empty for none."
    )
    metrics_insecure: bool = Field(
        False, description="Serve metrics on addresses other than loopback: whoever reaches the port can read them."
    )
    traces: bool = Field(
        False, description="Send traces by OpenTelemetry, to where the OTEL_* environment variables say."
    )

    heartbeat_seconds: float = Field(
        DEFAULTS.heartbeat.total_seconds(), gt=0, description="Longest silence of a subscription."
    )
    max_check_ins_per_second: float = Field(
        DEFAULTS.max_check_ins_per_second,
        gt=0,
        description="Check-ins of all participants without a subscription: they are told to wait for as long as it"
        " takes.",
    )
    check_in_seconds: float = Field(
        DEFAULTS.check_in.total_seconds(),
        gt=0,
        le=86_400,
        description="Least time between two check-ins of a participant, on average; six times as long without a"
        " training.",
    )
    keepalive_seconds: float = Field(30.0, gt=0, le=86_400, description="Time after which a silent peer gets a ping.")
    keepalive_timeout_seconds: float = Field(
        10.0, gt=0, le=86_400, description="Time that a peer has to answer a ping."
    )
    grace_seconds: float = Field(10.0, ge=0, description="Time that calls in progress have to end at shutdown.")

    token_lifetime_seconds: float | None = Field(
        None, gt=0, le=MAX_LIFETIME, description="Lifetime of tokens that are created without one; unset for no end."
    )
    max_token_lifetime_seconds: float | None = Field(
        None, gt=0, le=MAX_LIFETIME, description="Longest lifetime of any token; unset for no end."
    )

    max_calls_per_second_per_user: float = Field(
        200.0,
        gt=0,
        description="Calls of one user, or of one address without a valid token; bursts may have a minute's worth.",
    )
    max_calls_per_second: float = Field(
        5000.0, gt=0, description="Calls of all users; bursts may have a minute's worth."
    )
    max_streams_per_connection: int = Field(1000, ge=1, description="Calls in progress over one connection.")
    max_waiting_calls: int = Field(
        1024, ge=64, description="Calls that wait for the server; each takes about 20 kB of memory."
    )
    max_unauthenticated_connections_per_address: int = Field(
        100, ge=1, description="Connections of one address that have not made an authenticated call."
    )
    max_unauthenticated_connections: int = Field(
        500, ge=1, description="Connections of all addresses that have not made an authenticated call."
    )
    max_uploads_per_user: int = Field(32, ge=1, description="Uploads of one user at the same time.")
    max_uploads: int = Field(512, ge=1, description="Uploads of all users at the same time.")
    max_downloads_per_user: int = Field(32, ge=1, description="Downloads of one user at the same time.")
    max_subscriptions_per_user: int = Field(64, ge=1, description="Subscriptions of one user at the same time.")

    max_model_bytes: int = Field(DEFAULTS.max_model_bytes, ge=1, description="Size of a model or update file.")
    max_unfinished_bytes_per_user: int = Field(
        DEFAULTS.max_unfinished_bytes_per_user, ge=1, description="Size of one user's unfinished uploads."
    )
    max_unfinished_bytes: int = Field(
        DEFAULTS.max_unfinished_bytes, ge=1, description="Size of all unfinished uploads."
    )

    max_open_trainings_per_user: int = Field(
        DEFAULTS.max_open_trainings_per_user, ge=1, description="Trainings of one actor that have not ended."
    )
    max_open_trainings: int = Field(
        DEFAULTS.max_open_trainings, ge=1, description="Trainings of all actors that have not ended."
    )
    aggregation_threads: int = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 1) // 2),
        ge=1,
        le=64,
        description="Threads that compute an aggregation; by default half as many as there are cores.",
    )
    engine: str = Field(
        "local", pattern="^(local|ray)$", description="Where large aggregations are computed: here, or on Ray."
    )
    ray_address: str = Field(
        "",
        description="Cluster of Ray: HOST:PORT, ray://HOST:PORT or auto; empty for a Ray of the server's own.",
    )

    architecture: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="NAME=package.module:factory, for Predict; repeat it for more."
    )
    predict_seconds: float = Field(DEFAULTS.predict_seconds, gt=0, description="Duration of a prediction.")
    predict_bytes: int = Field(DEFAULTS.predict_bytes, ge=1, description="Memory of a prediction.")

    id_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the ids of users, models and trainings, so that a simulation can be repeated; for a new"
        " data directory only. Random by default.",
    )
    no_sync: bool = Field(
        False,
        description="Force nothing to disk: faster, and a crash of the machine loses what was accepted. For simulations"
        " and tests.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns the sources, the strongest first."""
        path = file.find(init_settings().get("config"))
        names = cls.model_fields.keys() - {"config"}
        found = {} if path is None else {**file.read(path, names), "config": path}
        return init_settings, env_settings, InitSettingsSource(settings_cls, found)

    @field_validator("*", mode="before")
    @classmethod
    def _with_unit(cls, value: Any, info: ValidationInfo) -> Any:
        """Accepts sizes and durations with a unit; a plain number is one of bytes or seconds."""
        name = info.field_name or ""
        if not isinstance(value, str) or _is_number(value):
            return value
        if is_size(name):
            return parse_size(value)
        return parse_duration(value) if name.endswith("_seconds") else value

    @field_validator("architecture", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Accepts several architectures in one variable, with commas between them."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        host, _ = self.address
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: set both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca goes with tls_cert and tls_key: set them too")
        if self.tls_cert is None and not self.insecure and not _is_loopback(host):
            raise ValueError(
                f"{host} is not a loopback address, and without TLS tokens would be sent in plain text:"
                " set tls_cert and tls_key, or --insecure if something else encrypts the connections"
            )
        metrics = self.metrics_address
        if metrics is not None and not self.metrics_insecure and not _is_loopback(metrics[0]):
            raise ValueError(
                f"metrics_listen: {metrics[0]} is not a loopback address, and all who reach it can"
                " read the metrics: use one, or set metrics_insecure if something else restricts the access"
            )
        if not self.max_model_bytes <= self.max_unfinished_bytes_per_user <= self.max_unfinished_bytes:
            raise ValueError(
                "max_unfinished_bytes must be at least max_unfinished_bytes_per_user, and that at least max_model_bytes"
            )
        if (self.token_lifetime_seconds or 0) > (self.max_token_lifetime_seconds or math.inf):
            raise ValueError("token_lifetime_seconds must not be more than max_token_lifetime_seconds")
        if wrong := [text for text in self.architecture if not ARCHITECTURE.fullmatch(text)]:
            raise ValueError(f"architecture: {wrong[0]!r} is not NAME=package.module:factory")
        if self.objects and not OBJECTS.fullmatch(self.objects):
            raise ValueError(
                "objects: must be s3://BUCKET or s3://BUCKET/PREFIX, or empty for the data directory; endpoint and"
                " credentials are set by AWS_* variables"
            )
        if self.ray_address and self.engine != "ray":
            raise ValueError("ray_address goes with engine ray: set that, too")
        if self.ray_address not in ("", "auto"):
            _parse_address("ray_address", self.ray_address.removeprefix("ray://"))
        if self.database and urlsplit(self.database).scheme not in ("postgresql", "postgres"):
            raise ValueError("database: must be a postgresql:// URL, or empty for SQLite")
        if self.processes > 1:
            self._check_processes()
        return self

    def _check_processes(self) -> None:
        if not self.database:
            raise ValueError("processes: several need PostgreSQL: set database, or leave processes out")
        if self.id_seed is not None:
            raise ValueError("processes: several would make the same ids of id_seed: leave one of both out")
        if len(self.replica_name) > LONGEST_SHARED_NAME:
            raise ValueError(f"replica_name must have at most {LONGEST_SHARED_NAME} characters with several processes")
        if self.metrics_address is not None and self.metrics_address[1] + self.processes > LAST_PORT + 1:
            raise ValueError("metrics_listen: there must be a port for each process behind this one")

    @property
    def limits(self) -> Limits:
        """The limits that the use cases enforce: the settings that have the name of one, and those in seconds."""
        names = {field.name for field in fields(Limits)} & type(self).model_fields.keys()
        longest = self.max_token_lifetime_seconds
        default = longest if self.token_lifetime_seconds is None else self.token_lifetime_seconds
        return Limits(
            **{name: getattr(self, name) for name in names},
            heartbeat=timedelta(seconds=self.heartbeat_seconds),
            check_in=timedelta(seconds=self.check_in_seconds),
            token_lifetime=_duration(default),
            max_token_lifetime=_duration(longest),
        )

    @property
    def architectures(self) -> dict[str, str]:
        """The import paths of the operator's factories by name."""
        return dict(text.split("=", 1) for text in self.architecture)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port to listen on."""
        return _parse_address("listen", self.listen)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """The host and the port to serve metrics on; None for no metrics."""
        return _parse_address("metrics_listen", self.metrics_listen) if self.metrics_listen else None


def _parse_address(name: str, text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > LAST_PORT or not host:
        raise ValueError(f"{name}: {text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def problems(error: ValidationError, chosen: Mapping[str, object]) -> list[str]:
    """Returns what is wrong with settings: a line for each, with the setting and where it was set.

    Args:
        error: The error of `Settings`.
        chosen: The settings that were given as options, by name.
    """
    return [_problem(one, chosen) for one in error.errors()]


def _problem(problem: ErrorDetails, chosen: Mapping[str, object]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    about = ".".join(str(part) for part in problem["loc"])
    if about in Settings.model_fields:
        about = f"{about} ({_source(about, chosen)})"
    return f"{about}: {message}" if about else message


def _source(name: str, chosen: Mapping[str, object]) -> str:
    """Returns where a setting was set: its option, its variable, or the file."""
    variable = f"FEDROUND_{name.upper()}"
    if name in chosen:
        return f"--{name.replace('_', '-')}"
    return variable if os.environ.get(variable) else str(file.find(chosen.get("config")))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_size(name: str) -> bool:
    """Returns whether the setting of a name is a number of bytes."""
    return "bytes" in name.split("_")


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
