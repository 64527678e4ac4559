"""What the AWS_* variables say about an object store. They are checked here: obstore panics on some values."""

import os
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
URLS = (*ENDPOINTS, "AWS_ENDPOINT_URL_STS", "AWS_METADATA_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
URL = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?([/?][\w./~%+:=?&-]*)?", re.ASCII | re.IGNORECASE)
PATH = re.compile(r"/[\w./~%+:=?&-]*", re.ASCII)
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


def _problem_of_url(value: str) -> str:
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
    if ":" in host or host.rstrip(".").rpartition(".")[2][:1].isdigit():
        ip_address(host)
    return bool(host.encode().decode("idna"))
