"""How many calls of a sort may be under way at once; gRPC's own limit does not fit, since it counts all alike."""

from collections import Counter
from contextlib import AbstractAsyncContextManager

from fedround_server.domain.errors import TooManyStreams, TooManyUploads
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call, ContextInterceptor

UPLOADS = frozenset(
    {
        "/fedround.v1.TrainingService/CreateTraining",
        "/fedround.v1.ModelService/UploadModel",
        "/fedround.v1.RoundService/SubmitUpdate",
    }
)
DOWNLOADS = frozenset(
    {
        "/fedround.v1.ModelService/DownloadModel",
        "/fedround.v1.RoundService/DownloadDealtModel",
        "/fedround.v1.AuditService/ReadAudit",
    }
)
SUBSCRIPTIONS = frozenset({"/fedround.v1.RoundService/Subscribe"})


class LimitInterceptor(ContextInterceptor):
    """Counts calls of one sort, per user and in all."""

    def __init__(
        self,
        calls: str,
        methods: frozenset[str],
        refusal: type[TooManyUploads | TooManyStreams],
        per_user: int,
        in_all: int | None = None,
    ) -> None:
        """Begins with none.

        Args:
            calls: What people call them.
            methods: Which methods count.
            refusal: What one too many is answered with.
            per_user: How many of one user at the same time.
            in_all: How many of all users at the same time; None for any number.
        """
        self._calls = calls
        self._methods = methods
        self._refusal = refusal
        self._per_user = per_user
        self._in_all = in_all
        self._under_way: Counter[str] = Counter()

    def concerns(self, method: str) -> bool:
        """Tells whether calls of a method count."""
        return method in self._methods

    def around(self, method: str, context: Call) -> AbstractAsyncContextManager[None]:
        """Lets a call through while there is room."""
        user_id = caller().user_id
        if self._under_way[user_id] >= self._per_user:
            raise self._refusal(
                f"you have {self._per_user} {self._calls} open, as many as you may: end one first",
                limit=f"max_{self._calls}_per_user",
            )
        if self._in_all is not None and self._under_way.total() >= self._in_all:
            raise self._refusal(
                f"the server has {self._in_all} {self._calls} open, as many as it takes: try again later",
                limit=f"max_{self._calls}",
            )
        return _Counted(self._under_way, user_id)


class _Counted:
    """Counts a call for as long as it lasts; thousands do, and a generator would take five times as much memory."""

    __slots__ = ("_counter", "_user_id")

    def __init__(self, counter: Counter[str], user_id: str) -> None:
        self._counter = counter
        self._user_id = user_id

    async def __aenter__(self) -> None:
        self._counter[self._user_id] += 1

    async def __aexit__(self, *_: object) -> None:
        self._counter[self._user_id] -= 1
        if not self._counter[self._user_id]:
            del self._counter[self._user_id]
