"""Errors that calls of all services can get: invalid fields, limits, outages."""

from fedround_server.domain.errors.family import InvalidArgument, ResourceExhausted, Unavailable


class FieldInvalid(InvalidArgument):
    """A field is missing, malformed, out of range, or does not go with another one."""

    reason = "FIELD_INVALID"
    remedy = "correct the field; the message and BadRequest name it"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", field=field)
        self.field = field
        self.description = description


class MessageInvalid(InvalidArgument):
    """A message cannot be decoded, or the only message of a call is missing."""

    reason = "MESSAGE_INVALID"
    remedy = "use code that is generated from the proto files of this server"


class Quota(ResourceExhausted):
    """The user, or the server, has as many open trainings, stored bytes or tags as are allowed."""

    reason = "QUOTA"
    remedy = "remove some"


class TooManyCalls(ResourceExhausted):
    """The rate of calls is too high: of the user, of all users, or of an address without a valid token."""

    reason = "TOO_MANY_CALLS"
    remedy = "wait as long as RetryInfo says; the SDK does"

    def __init__(self, what: str, wait: float, limit: str) -> None:
        super().__init__(f"{what}: wait {wait:.3f} s before the next call; nothing was done", limit=limit)
        self.retry_seconds = wait


class AnswerTooLarge(ResourceExhausted):
    """The response does not fit into a message of 2 MiB; the changes that the call made remain."""

    reason = "ANSWER_TOO_LARGE"
    remedy = "ask for less: a smaller `page_size`"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the response has {size} bytes, more than the {limit} of a message: ask for less;"
            " the changes that the call made remain"
        )


class ServerLeaving(Unavailable):
    """The server is shutting down, and accepts no new uploads, downloads, predictions and starts of trainings."""

    reason = "SERVER_LEAVING"
    remedy = "try again when it is back; the SDK does"

    def __init__(self) -> None:
        super().__init__("the server is shutting down: try again when it is back")


class ServerOverloaded(Unavailable):
    """Unauthenticated peers flood the server, which rejects calls without a token for the moment."""

    reason = "SERVER_OVERLOADED"
    remedy = "send a token, or try again later"


class StoreUnavailable(Unavailable):
    """The database does not answer, or is full."""

    reason = "STORE_UNAVAILABLE"
    remedy = "try again; the SDK does"


class ObjectsUnavailable(Unavailable):
    """The object store with the server's files does not answer, or does not allow what the server asks for."""

    reason = "OBJECTS_UNAVAILABLE"
    remedy = "try again; the SDK does, and aggregations do"
    retry_seconds = 5.0


class WorkerKilled(Unavailable):
    """The worker process was killed three times in a row, most likely because the machine is out of memory."""

    reason = "WORKER_KILLED"
    remedy = "try again; the SDK does, and aggregations do; operators give the machine more memory"
