"""How many calls of a sort may be under way at once; gRPC's own limit does not fit, since it counts all alike."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedround_server.domain.errors import TooManyStreams, TooManyUploads
from fedround_server.interceptors.around import AroundInterceptor, Call
from fedround_server.interceptors.auth import caller

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


class LimitInterceptor(AroundInterceptor):
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

    @asynccontextmanager
    async def around(self, method: str, context: Call) -> AsyncIterator[None]:
        """Lets a call through while there is room."""
        if method not in self._methods:
            yield
            return
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
        self._under_way[user_id] += 1
        try:
            yield
        finally:
            self._under_way[user_id] -= 1
            if not self._under_way[user_id]:
                del self._under_way[user_id]
