"""What is said about a bucket that cannot be used: what is wrong, and nothing secret."""

import pickle
import socket
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedround_server.blobs.objects.bucket import BucketError, Entry
from fedround_server.blobs.objects.environment import exposed_credentials
from fedround_server.blobs.objects.s3 import BucketUnusable, BucketUrl, _error, check_bucket
from fedround_server.domain.errors import ObjectsUnavailable

ANSWER = (
    "Generic S3 error: Error performing GET https://b.s3.amazonaws.com/k?X-Amz-Signature=c0ffee in 1ms - Server"
    ' returned non-2xx status code: {status}: <?xml version="1.0"?><Error><Code>{code}</Code><Message>The AWS Access'
    " Key Id AKIAEXAMPLE does not exist</Message><AWSAccessKeyId>AKIAEXAMPLE</AWSAccessKeyId><StringToSign>AWS4-HMAC"
    " c0ffee</StringToSign><SignatureProvided>c0ffee</SignatureProvided></Error>\n\nDebug source:\nGeneric {{}}"
)
FAILED = "Generic S3 error: Error performing PUT http://AKIAEXAMPLE:c0ffee@s3.test:1/k?X-Amz-Signature=c0ffee in 1ms - "
STS = (
    "Error performing POST https://sts.amazonaws.com/?Action=AssumeRoleWithWebIdentity&WebIdentityToken=c0ffee in 1ms -"
    " Server returned non-2xx status code: 400 Bad Request: <Error><Code>InvalidIdentityToken</Code></Error>"
)


@pytest.mark.parametrize(
    ("text", "words", "is_refusal"),
    [
        (ANSWER.format(status="403 Forbidden", code="SignatureDoesNotMatch"), "credentials are wrong", True),
        (ANSWER.format(status="403 Forbidden", code="InvalidAccessKeyId"), "credentials are wrong", True),
        (
            ANSWER.format(status="403 Forbidden", code="RequestTimeTooSkewed"),
            "the clock of this machine is wrong",
            True,
        ),
        (ANSWER.format(status="403 Forbidden", code="AccessDenied"), "have no permission (AccessDenied)", True),
        (ANSWER.format(status="404 Not Found", code="NoSuchBucket"), "the bucket does not exist", True),
        (ANSWER.format(status="503 Slow Down", code="SlowDown"), "it answers 503 SlowDown", False),
        ("Error performing HEAD http://x/b/k - status code: 403 Forbidden: ", "have no permission (403)", True),
        ("DeleteObjects request failed for key k: Access Denied. (code: AccessDenied)", "no permission", True),
        (STS, "there are no credentials", True),
        ("PUT http://169.254.169.254/latest/api/token - status code: 403 Forbidden", "there are no credentials", True),
        ("error sending request\n kind: Connect", "no connection", False),
        ("operation timed out c0ffee", "does not answer in time", False),
        ("something c0ffee", "the request failed", False),
        (FAILED + "kind: Timeout, TimedOut", "does not answer in time (s3.test:1)", False),
        (FAILED + "Connect, ConnectionRefused", "endpoint (s3.test:1: the connection is refused)", False),
        (FAILED + "Connect, InvalidCertificate(UnknownIssuer)", "(s3.test:1: its certificate is not trusted", False),
        (FAILED + "SendRequest, IncompleteMessage", "endpoint (s3.test:1: it closes connections)", False),
        (FAILED + "Connect, Other", "no connection to its endpoint (s3.test:1)", False),
        ("Failed to read token file '/no/token': c0ffee", "token cannot be read (/no/token)", False),
    ],
)
def test_an_error_says_what_is_wrong_and_nothing_secret(text: str, words: str, is_refusal: bool) -> None:
    found = _error(text)
    assert words in str(found)
    assert found.is_refusal == is_refusal
    assert "c0ffee" not in repr(found)
    assert "AKIA" not in repr(found)


class Failing:
    """A bucket that fails at one method, at first."""

    def __init__(self, method: str, error: BucketError, times: int) -> None:
        self._method = method
        self._error = error
        self.left = times
        self._objects: dict[str, bytes] = {}

    def put(self, key: str, data: bytes, *, create: bool = False, commit: str = "") -> None:
        self._reach("create" if key in self._objects else "put")
        if create and key in self._objects and self._method != "ignore":
            raise FileExistsError
        self._objects[key] = data

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return self._objects[key]

    def head(self, key: str) -> Entry | None:
        self._reach("head")
        return Entry(key, 1, datetime.now(UTC), "" if self._method == "commit" else "1")

    def page(self, prefix: str, after: str) -> list[Entry]:
        self._reach("page")
        return []

    def delete(self, key: str) -> None:
        self._reach("delete")

    def _reach(self, method: str) -> None:
        if method == self._method and self.left:
            self.left -= 1
            raise self._error


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("put", "cannot write to it: no"),
        ("head", "cannot read from it: no"),
        ("commit", "cannot read from it: it does not return what was just written, with its metadata"),
        ("page", "cannot list it: no"),
        ("create", "cannot write to it conditionally: no"),
        ("ignore", "cannot write to it conditionally: it ignores If-None-Match"),
        ("delete", "cannot delete from it: no"),
    ],
)
def test_a_bucket_is_checked_for_all_that_is_needed(method: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(BucketUnusable) as raised:
        check_bucket(Failing(method, BucketError("no", is_refusal=True), 1))
    assert str(raised.value).startswith(words)
    # An outage of a moment is none.
    if method not in ("commit", "ignore"):
        passing = Failing(method, BucketError("it answers 503"), 2)
        check_bucket(passing)
        assert passing.left == 0


def test_a_store_that_does_not_answer_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = "fedround_server.blobs.objects.s3"
    monkeypatch.setattr(f"{module}.CHECK_SECONDS", 1.0)
    monkeypatch.setattr(f"{module}.SILENT_SECONDS", 0.1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "c0ffee")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
        with pytest.raises(BucketUnusable) as raised:
            BucketUrl("s3://bucket").check()
        # There was one request.
        silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert str(raised.value) == f"cannot write to it: it does not answer in time ({endpoint})"
    assert [record.message for record in caplog.records] == ["waiting for the object store to answer"]


def test_an_outage_can_be_told_to_another_process() -> None:
    told = pickle.loads(pickle.dumps(ObjectsUnavailable("the object store cannot be used")))
    assert (str(told), told.retry_seconds) == ("the object store cannot be used", 5)


def test_a_url_has_no_credentials_and_neither_has_what_is_sent_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "c0ffee")
    opener = BucketUrl("s3://bucket/prefix")
    opener()
    assert b"c0ffee" not in pickle.dumps(opener)


def test_credentials_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with pytest.raises(RuntimeError, match="cannot be read"):
        BucketUrl("s3://bucket")()
    file.write_text("[default]\naws_access_key_id = c0ffee\n")
    with pytest.raises(RuntimeError, match="has no aws_access_key_id and aws_secret_access_key in the profile default"):
        BucketUrl("s3://bucket")()
    file.write_text("[default]\naws_access_key_id = c0ffee\naws_secret_access_key = x%y\naws_session_token = z\n")
    BucketUrl("s3://bucket")()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file.with_name("no.pem")))
    with pytest.raises(RuntimeError, match=r"no\.pem cannot be read"):
        BucketUrl("s3://bucket")()


def test_credentials_may_be_read_by_a_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert exposed_credentials() == ""
    file.write_text("")
    for mode, found in ((0o640, ""), (0o644, str(file))):
        file.chmod(mode)
        assert exposed_credentials() == found


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_STS"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("127.0.0.1:8333", "must begin with http:// or https://"),
        ("", "is empty: unset it"),
        ("//c0ffee:1", "must begin with http:// or https://"),
        ("ftp://c0ffee", "must begin with http:// or https://"),
        ("http://", "must be a URL"),
        ("http://c0f fee", "must be a URL"),
        ("http://[::1", "must be a URL"),
        ("http://[1::2::3]", "must be a URL"),
        ("http://c0ffee:99999", "must be a URL"),
        ("http://127.0.0.300", "must be a URL"),
        ("http://xn--a", "must be a URL"),
        ("https://user:c0ffee@s3.example.org", "must have no user and no password"),
        ("http://s3.example.org\n", "has a line break"),
    ],
)
def test_an_endpoint_that_is_no_url_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=f"^objects: {name} {words}") as raised:
        BucketUrl("s3://bucket")()
    assert "c0ffee" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        "http://127.0.0.1:8333",
        "HTTPS://s3.example.org/store/",
        "http://[::1]:1",
        "http://minio",
        "http://4f2a9c1b:9000",
        "http://a.b.",
    ],
)
def test_an_endpoint_may_be_any_url(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    BucketUrl("s3://bucket")()


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_a_line_break_in_a_variable_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "c0ffee\n")
    with pytest.raises(RuntimeError) as raised:
        BucketUrl("s3://bucket")()
    assert str(raised.value) == f"objects: {name} has a line break or another control character"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_UNSIGNED_PAYLOAD": "c0ffee"}, "AWS_UNSIGNED_PAYLOAD cannot be used"),
        ({"AWS_SERVER_SIDE_ENCRYPTION": "c0ffee"}, "AWS_SERVER_SIDE_ENCRYPTION, or an AWS_SSE_* variable, cannot be"),
        ({"AWS_CA_BUNDLE": "garbage.pem"}, "AWS_CA_BUNDLE: garbage.pem is no PEM file of certificates"),
        ({"AWS_CA_BUNDLE": "empty.pem"}, "AWS_CA_BUNDLE: empty.pem is no PEM file of certificates"),
        ({"AWS_CA_BUNDLE": "no.pem"}, "AWS_CA_BUNDLE: no.pem cannot be read: No such file or directory"),
        ({"AWS_ACCESS_KEY_ID": "c0ffee"}, "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, one is missing"),
        ({"AWS_SECRET_ACCESS_KEY": "c0ffee"}, "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, one is missing"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "lines"}, "lines has a value of more than one line in the profile default"),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "token", "AWS_ROLE_ARN": "c0ffee"},
            "AWS_WEB_IDENTITY_TOKEN_FILE: token cannot be read: No such file or directory",
        ),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage.pem").write_text("-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n")
    Path("empty.pem").write_text("c0ffee")
    Path("lines").write_text("[default]\naws_access_key_id = c0ffee\n  c0ffee\naws_secret_access_key = c0ffee\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError) as raised:
        BucketUrl("s3://bucket")()
    assert str(raised.value).startswith(f"objects: {words}")
    assert "c0ffee" not in "".join(traceback.format_exception(raised.value))


def test_obstore_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(RuntimeError, match=r'obstore.* is not installed: run pip install "fedround\[s3\]"'):
        BucketUrl("s3://bucket")()
