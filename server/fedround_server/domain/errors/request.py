"""RejectedUpdates about calls, whatever they are about."""

from fedround_server.domain.errors.family import InvalidArgument, OutOfRange, ResourceExhausted, Unavailable


class FieldInvalid(InvalidArgument):
    """A field is missing, malformed or out of range."""

    reason = "FIELD_INVALID"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", field=field)
        self.field = field
        self.description = description


class Quota(ResourceExhausted):
    """The user has as many of these as it may."""

    reason = "QUOTA"


class TooManyCalls(ResourceExhausted):
    """Calls come too fast."""

    reason = "TOO_MANY_CALLS"

    def __init__(self, what: str, wait: float, limit: str) -> None:
        super().__init__(f"{what}: wait {wait:.3f} s before the next call; nothing was done", limit=limit)
        self.retry_seconds = wait


class AnswerTooLarge(ResourceExhausted):
    """The answer does not fit into a message."""

    reason = "ANSWER_TOO_LARGE"

    def __init__(self, size: int, most: int) -> None:
        super().__init__(
            f"the answer has {size} bytes, a message carries {most}: ask for less; what was to be changed is changed"
        )


class CursorExpired(OutOfRange):
    """A subscription cannot be resumed at this sequence."""

    reason = "CURSOR_EXPIRED"


class ServerLeaving(Unavailable):
    """The server is going down, and begins nothing any more."""

    reason = "SERVER_LEAVING"

    def __init__(self) -> None:
        super().__init__("the server is going down: try again when it is back")


class WorkerKilled(Unavailable):
    """The worker process was killed from outside, again and again: the machine is short of memory, it seems."""

    reason = "WORKER_KILLED"


class StoreUnavailable(Unavailable):
    """The database does not answer."""

    reason = "STORE_UNAVAILABLE"
