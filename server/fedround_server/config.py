"""Settings: flags before FEDROUND_* variables before a TOML file before defaults."""

import ipaddress
import math
import re
from datetime import timedelta
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

CONFIG_FILE = "fedround.toml"
ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,100}=[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Settings(BaseSettings):
    """Everything that an operator can set. Frozen."""

    model_config = SettingsConfigDict(
        env_prefix="FEDROUND_", frozen=True, extra="forbid", toml_file=CONFIG_FILE, populate_by_name=True
    )

    listen: str = Field("127.0.0.1:50051", description="Address to serve at; port 0 takes a free one.")
    data_dir: Path = Field(Path("fedround-data"), description="Where the database, the files and admin.token are.")
    database: str = Field("", description="postgresql:// URL; empty for a SQLite file in the data directory.")
    tls_cert: Path | None = Field(None, description="PEM file with the certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    tls_client_ca: Path | None = Field(None, description="PEM file with the CA that client certificates must be of.")
    insecure: bool = Field(False, description="Serve off loopback without TLS all the same.")
    log_format: str = Field("console", pattern="^(console|json)$", description="console or json.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")
    grace_seconds: float = Field(10.0, ge=0, description="How long uploads under way may take to finish at the end.")
    heartbeat_seconds: float = Field(20.0, gt=0, description="How long a subscription stays silent.")
    keepalive_seconds: float = Field(30.0, gt=0, le=86_400, description="How long a silent peer goes without a ping.")
    keepalive_timeout_seconds: float = Field(
        10.0, gt=0, le=86_400, description="How long a peer may take to answer a ping."
    )
    token_lifetime_seconds: float | None = Field(
        None,
        gt=0,
        le=3_200_000_000,
        description="How long tokens are good by default; unset for ever.",
    )
    max_token_lifetime_seconds: float | None = Field(
        None,
        gt=0,
        le=3_200_000_000,
        description="How long tokens can be good at most; unset for ever.",
    )
    max_model_bytes: int = Field(16 << 30, ge=1, description="Size of a model or update file.")
    max_calls_per_second_per_user: float = Field(
        200.0, gt=0, description="Calls of one user, or of one address without a valid token; a minute's worth at once."
    )
    max_calls_per_second: float = Field(5000.0, gt=0, description="Calls of all users; a minute's worth at once.")
    max_unfinished_bytes_per_user: int = Field(64 << 30, ge=1, description="Unfinished uploads of one user, in bytes.")
    max_unfinished_bytes: int = Field(1 << 40, ge=1, description="Unfinished uploads of all users, in bytes.")
    min_free_bytes: int = Field(1 << 30, ge=0, description="Left free on the disk; updates may use half of it.")
    max_stored_bytes_per_user: int = Field(1 << 40, ge=1, description="Files of one user: models, trainings' updates.")
    max_stored_bytes: int = Field(1 << 44, ge=1, description="Files of all users, before new models are refused.")
    max_open_trainings_per_user: int = Field(1000, ge=1, description="Trainings of one actor that are not ended.")
    max_open_trainings: int = Field(10_000, ge=1, description="Trainings of all actors that are not ended.")
    max_uploads_per_user: int = Field(32, ge=1, description="Uploads of one user at the same time.")
    max_uploads: int = Field(512, ge=1, description="Uploads of all users at the same time.")
    max_downloads_per_user: int = Field(32, ge=1, description="Downloads of one user at the same time.")
    max_subscriptions_per_user: int = Field(64, ge=1, description="Subscriptions of one user at the same time.")
    architecture: tuple[str, ...] = Field(
        (), description="NAME=package.module:factory, for Predict; repeat it for more."
    )
    predict_seconds: float = Field(60.0, gt=0, description="How long a prediction may take.")
    predict_bytes: int = Field(2 << 30, ge=1, description="How much memory a prediction may take.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _check(self) -> Self:
        host, _ = self.address
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca goes with tls_cert and tls_key")
        if self.tls_cert is None and not self.insecure and not _is_loopback(host):
            raise ValueError(
                f"{host} is not a loopback address, and there is no TLS, so tokens would travel in the clear:"
                " set tls_cert and tls_key, or --insecure if something else encrypts"
            )
        if not self.max_model_bytes <= self.max_unfinished_bytes_per_user <= self.max_unfinished_bytes:
            raise ValueError(
                "max_unfinished_bytes must be at least max_unfinished_bytes_per_user, and that at least max_model_bytes"
            )
        if (self.token_lifetime_seconds or 0) > (self.max_token_lifetime_seconds or math.inf):
            raise ValueError("token_lifetime_seconds must not be more than max_token_lifetime_seconds")
        if wrong := [text for text in self.architecture if not ARCHITECTURE.fullmatch(text)]:
            raise ValueError(f"architecture: {wrong[0]!r} is not NAME=package.module:factory")
        if self.database and urlsplit(self.database).scheme not in ("postgresql", "postgres"):
            raise ValueError("database: must be a postgresql:// URL, or empty for SQLite")
        return self

    @property
    def token_lifetimes(self) -> tuple[timedelta | None, timedelta | None]:
        """How long tokens are good, and how long they may be made good."""
        longest = self.max_token_lifetime_seconds
        usual = longest if self.token_lifetime_seconds is None else self.token_lifetime_seconds
        return _duration(usual), _duration(longest)

    @property
    def architectures(self) -> dict[str, str]:
        """The operator's factories by name."""
        return dict(text.split("=", 1) for text in self.architecture)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to serve at."""
        host, separator, port = self.listen.rpartition(":")
        if not separator or not port.isdigit() or int(port) > 65535 or not host:
            raise ValueError(f"listen: {self.listen!r} is not HOST:PORT")
        return host.strip("[]"), int(port)


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
