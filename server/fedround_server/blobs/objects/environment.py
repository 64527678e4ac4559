"""What the AWS_* variables say about an object store. They are checked here: obstore panics on some values."""

import configparser
import os
import re
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
URLS = (*ENDPOINTS, "AWS_ENDPOINT_URL_STS", "AWS_METADATA_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
TOKENS = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
URL = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?([/?][\w./~%+:=?&-]*)?", re.ASCII | re.IGNORECASE)
PATH = re.compile(r"/[\w./~%+:=?&-]*", re.ASCII)
NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE)
"""A last label by which a host counts as an address of IPv4: https://url.spec.whatwg.org/#ends-in-a-number-checker."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_variables() -> None:
    """Checks the variables that are read by obstore, as far as it does not.

    Raises:
        RuntimeError: One of them cannot be used; the message names it, without its value.
    """
    for name, value in os.environ.items():
        if name.startswith("AWS_") and CONTROL.search(value):
            raise RuntimeError(f"objects: {name} has a line break or another control character")
        if name in URLS and (problem := _problem_of_url(value)):
            raise RuntimeError(f"objects: {name} {problem}")
    path = os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    if path is not None and not PATH.fullmatch(path):
        raise RuntimeError("objects: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI must be a path of a URL, such as /v2/id")


def allows_http() -> bool:
    """Returns whether the store is asked without TLS."""
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    return urlsplit(endpoint).scheme == "http"


def problem_of(text: str) -> str:
    """Returns what is wrong when obstore refuses the variables with an error, without their values."""
    if "ertificate" in text:
        return f"AWS_CA_BUNDLE: {os.environ.get('AWS_CA_BUNDLE')} is no PEM file of certificates"
    if "encryption" in text:
        return "AWS_SERVER_SIDE_ENCRYPTION, or an AWS_SSE_* variable, cannot be used"
    # Errors quote the value.
    found = [name for name, value in os.environ.items() if name.startswith("AWS_") and value and f'"{value}"' in text]
    return f"{' or '.join(found) or 'an AWS_* environment variable'} cannot be used"


def read_credentials() -> dict[str, Any]:
    """Returns the credentials of the file that AWS_SHARED_CREDENTIALS_FILE names, unless variables have some.

    Raises:
        RuntimeError: There are none in it, or a variable is missing, or another file with credentials cannot be read.
    """
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    has_key, has_secret = (bool(os.environ.get(name)) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    if has_key != has_secret and (has_key or not path):
        raise RuntimeError("objects: of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, one is missing")
    if has_key:
        return {}
    if not path:
        for name in TOKENS:
            if token_file := os.environ.get(name):
                read_file(name, token_file)
        return {}
    parser = configparser.RawConfigParser()
    profile = os.environ.get("AWS_PROFILE", "default")
    try:
        parser.read_string(read_file("AWS_SHARED_CREDENTIALS_FILE", path).decode())
        found = parser[profile]
        if any(map(CONTROL.search, found.values())):
            raise RuntimeError(f"objects: {path} has a value of more than one line in the profile {profile}")
        token = {"session_token": found["aws_session_token"]} if "aws_session_token" in found else {}
        return {
            "access_key_id": found["aws_access_key_id"],
            "secret_access_key": found["aws_secret_access_key"],
            **token,
        }
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise RuntimeError(
            f"objects: {path} has no aws_access_key_id and aws_secret_access_key in the profile {profile}"
        ) from None


def exposed_credentials() -> str:
    """Returns the path of the file of AWS_SHARED_CREDENTIALS_FILE if all users of the machine can read it."""
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "")
    try:
        return path if path and Path(path).stat().st_mode & stat.S_IROTH else ""
    except OSError:
        return ""


def read_file(name: str, path: str) -> bytes:
    """Returns what is in the file that a variable names.

    Raises:
        RuntimeError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RuntimeError(f"objects: {name}: {path} cannot be read: {error.strerror}") from error


def _problem_of_url(value: str) -> str:
    if not value:
        return "is empty: unset it"
    if not value.lower().startswith(("http://", "https://")):
        return "must begin with http:// or https://"
    try:
        parts = urlsplit(value)
        if parts.username is not None or parts.password is not None:
            return "must have no user and no password: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        is_url = URL.fullmatch(value) is not None and parts.port != 0 and _is_host(parts.hostname or "")
    except ValueError:
        is_url = False
    return "" if is_url else "must be a URL, such as https://s3.example.org"


def _is_host(host: str) -> bool:
    """Returns whether a host is one; raises ValueError for some that are none."""
    if ":" in host or NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        ip_address(host)
    return bool(host.encode().decode("idna"))
