import pickle
import re
import subprocess
import sys

import grpc
import pytest

import fedround_client
from client.scripted import TRAINING, error_status
from fedround.v1.training_pb2 import RemoveTrainingResponse
from fedround_client import errors

pytestmark = pytest.mark.timeout(30)

TABLE = [
    ("UNAUTHENTICATED", "TOKEN_MISSING", errors.TokenMissing),
    ("UNAUTHENTICATED", "TOKEN_INVALID", errors.TokenInvalid),
    ("PERMISSION_DENIED", "ROLE_REQUIRED", errors.RoleRequired),
    ("PERMISSION_DENIED", "NOT_ACTOR", errors.NotActor),
    ("NOT_FOUND", "TRAINING_NOT_FOUND", errors.TrainingNotFound),
    ("NOT_FOUND", "MODEL_NOT_FOUND", errors.ModelNotFound),
    ("NOT_FOUND", "USER_NOT_FOUND", errors.UserNotFound),
    ("INVALID_ARGUMENT", "FIELD_INVALID", errors.FieldInvalid),
    ("INVALID_ARGUMENT", "UNKNOWN_CLIENTS", errors.UnknownClients),
    ("FAILED_PRECONDITION", "NO_PARTICIPANTS", errors.NoParticipants),
    ("FAILED_PRECONDITION", "TRAINING_NOT_INITIAL", errors.TrainingNotInitial),
    ("FAILED_PRECONDITION", "TRAINING_RUNNING", errors.TrainingRunning),
    ("FAILED_PRECONDITION", "TRAINING_ENDED", errors.TrainingEnded),
    ("FAILED_PRECONDITION", "LAST_PARTICIPANT", errors.LastParticipant),
    ("FAILED_PRECONDITION", "ROUND_NOT_OPEN", errors.RoundNotOpen),
    ("PERMISSION_DENIED", "NOT_IN_COHORT", errors.NotInCohort),
    ("ALREADY_EXISTS", "UPDATE_EXISTS", errors.UpdateExists),
    ("FAILED_PRECONDITION", "UPDATE_SUPERSEDED", errors.UpdateSuperseded),
    ("DATA_LOSS", "UPLOAD_INCOMPLETE", errors.UploadIncomplete),
    ("DATA_LOSS", "DIGEST_MISMATCH", errors.DigestMismatch),
    ("INVALID_ARGUMENT", "MODEL_FORMAT", errors.ModelFormat),
    ("INVALID_ARGUMENT", "UPDATE_MISMATCH", errors.UpdateMismatch),
    ("INVALID_ARGUMENT", "UPDATE_NOT_FINITE", errors.UpdateNotFinite),
    ("INVALID_ARGUMENT", "NUM_EXAMPLES", errors.NumExamples),
    ("RESOURCE_EXHAUSTED", "MODEL_TOO_LARGE", errors.ModelTooLarge),
    ("RESOURCE_EXHAUSTED", "QUOTA", errors.Quota),
    ("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", errors.TooManyUploads),
    ("RESOURCE_EXHAUSTED", "DISK_FULL", errors.DiskFull),
    ("DATA_LOSS", "CHUNK_CORRUPT", errors.ChunkCorrupt),
    ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", errors.TooManyStreams),
    ("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE", errors.AnswerTooLarge),
    ("OUT_OF_RANGE", "CURSOR_EXPIRED", errors.CursorExpired),
    ("FAILED_PRECONDITION", "ARCHITECTURE_UNKNOWN", errors.ArchitectureUnknown),
    ("FAILED_PRECONDITION", "POSTERIOR_MISSING", errors.PosteriorMissing),
    ("FAILED_PRECONDITION", "PREDICTION_FAILED", errors.PredictionFailed),
    ("RESOURCE_EXHAUSTED", "PREDICTION_LIMIT", errors.PredictionLimit),
    # A reason that this client does not know yet, and a code that it does.
    ("FAILED_PRECONDITION", "SOMETHING_NEW", errors.FailedPrecondition),
    ("ABORTED", "SOMETHING_NEW", errors.Aborted),
    ("UNIMPLEMENTED", "SOMETHING_NEW", errors.Unimplemented),
]


def failing(server, status):
    call = server.run(server.client.get_training, TRAINING)
    server.fail("GetTraining", status)
    return call.exception(10)


@pytest.mark.parametrize(("code", "reason", "kind"), TABLE)
def test_each_reason_has_its_exception(server, code, reason, kind):
    violations = {"spec.name": "is too long"} if code == "INVALID_ARGUMENT" else None
    error = failing(server, error_status(grpc.StatusCode[code], reason, "do that", {"id": "7"}, violations))
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (grpc.StatusCode[code], reason, "do that")
    assert error.metadata == {"id": "7"}
    assert error.field_violations == (violations or {})
    assert str(error) == f"{reason}: do that" + ("; spec.name: is too long" if violations else "")


@pytest.mark.parametrize("where", ["status", "detail"])
def test_malformed_details_are_ignored(server, where):
    ((key, details),), code, text = error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND")
    garbage = b"\xff" * 20 if where == "status" else details.replace(b"TRAINING_NOT_FOUND", b"\xff" * 18)
    error = failing(server, (((key, garbage),), code, text))
    assert type(error) is errors.NotFound
    assert error.message == "no"


def test_every_exception_is_exported_and_can_be_pickled():
    for name in (name for name in vars(errors) if isinstance(vars(errors)[name], type)):
        if issubclass(vars(errors)[name], errors.FedroundError):
            kind = getattr(fedround_client, name)
            error = kind(grpc.StatusCode.NOT_FOUND, "SOME_REASON", "text", {"a": "b"}, {"c": "d"}, 1.5)
            copy = pickle.loads(pickle.dumps(error))
            assert type(copy) is kind
            assert vars(copy) == vars(error)
    assert all(hasattr(fedround_client, name) for name in fedround_client.__all__)


def test_an_unreachable_server_is_reported_with_its_address_and_a_remedy(server):
    error = failing(server, ((), grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert type(error) is errors.ServerUnavailable
    assert re.search(r"there:1.*connection refused.*fedround serve", error.message)


def test_an_error_with_retry_info_is_transient(server):
    error = failing(server, error_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", retry=1.5))
    assert (error.retry_after, error.transient) == (1.5, True)


def test_details_of_another_domain_are_ignored(server):
    error = failing(server, error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND", domain="example.org"))
    assert type(error) is errors.NotFound
    assert error.reason == "NOT_FOUND"


def test_details_that_contradict_the_status_are_ignored(server):
    trailing, _, _ = error_status(grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND")
    error = failing(server, (trailing, grpc.StatusCode.PERMISSION_DENIED, "contradiction"))
    assert type(error) is errors.PermissionDenied
    assert error.message == "contradiction"


@pytest.mark.parametrize(
    ("code", "reason", "transient"),
    [
        ("UNAVAILABLE", "UNAVAILABLE", True),
        ("UNAVAILABLE", "STORE_UNAVAILABLE", True),
        ("INTERNAL", "INTERNAL", True),
        ("INTERNAL", "INTERNAL_ERROR", False),
        ("CANCELLED", "CANCELLED", True),
        ("DATA_LOSS", "UPLOAD_INCOMPLETE", True),
        ("DATA_LOSS", "DIGEST_MISMATCH", False),
        ("DATA_LOSS", "CHUNK_CORRUPT", True),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", False),
        ("RESOURCE_EXHAUSTED", "QUOTA", False),
        ("UNAUTHENTICATED", "TOKEN_INVALID", False),
        ("PERMISSION_DENIED", "PERMISSION_DENIED", False),
        ("NOT_FOUND", "NOT_FOUND", False),
        ("INVALID_ARGUMENT", "FIELD_INVALID", False),
    ],
)
def test_which_errors_are_transient(code, reason, transient):
    assert errors.FedroundError(grpc.StatusCode[code], reason, "").transient is transient


def test_a_defect_in_the_server_is_not_transient():
    error = errors.FedroundError(grpc.StatusCode.INTERNAL, "INTERNAL", "", {"error_id": "7"})
    assert not error.transient


def test_the_client_needs_neither_torch_nor_a_database():
    code = (
        "import sys, fedround_client\n"
        "assert not {'typer', 'rich'} & set(sys.modules), 'the SDK loads the command'\n"
        "import fedround_client.command\n"
        "assert not {'torch', 'peewee', 'fedround_server'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_call_over_the_rate_limit_is_repeated(server):
    call = server.run(server.client.remove_training, TRAINING)
    busy = error_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", retry=3.5)
    server.fail("RemoveTraining", busy)
    server.reply("RemoveTraining", RemoveTrainingResponse())
    assert call.result(10) is None
    assert 1003.5 <= server.time.time() <= 1004


def test_a_call_that_stays_over_the_rate_limit_fails(server):
    call = server.run(server.client.get_training, TRAINING)
    for _ in range(8):
        server.fail("GetTraining", error_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", retry=1))
    assert isinstance(call.exception(10), errors.TooManyCalls)
