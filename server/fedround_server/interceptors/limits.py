"""How many uploads may be under way at once; gRPC's own limit does not fit, since it counts subscriptions."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fedround_server.domain.errors import TooManyUploads
from fedround_server.interceptors.around import AroundInterceptor, Call
from fedround_server.interceptors.auth import caller

UPLOADS = frozenset(
    {
        "/fedround.v1.TrainingService/CreateTraining",
        "/fedround.v1.ModelService/UploadModel",
        "/fedround.v1.RoundService/SubmitUpdate",
    }
)


class LimitInterceptor(AroundInterceptor):
    """Counts uploads, per user and in all."""

    def __init__(self, per_user: int, in_all: int) -> None:
        """Begins with none.

        Args:
            per_user: Uploads of one user at the same time.
            in_all: Uploads of all users at the same time.
        """
        self._per_user = per_user
        self._in_all = in_all
        self._under_way: Counter[str] = Counter()

    @asynccontextmanager
    async def around(self, method: str, context: Call) -> AsyncIterator[None]:
        """Lets an upload through while there is room."""
        if method not in UPLOADS:
            yield
            return
        user_id = caller().user_id
        if self._under_way[user_id] >= self._per_user:
            raise TooManyUploads(f"you have {self._per_user} uploads under way, as many as you may: wait for one")
        if self._under_way.total() >= self._in_all:
            raise TooManyUploads(f"the server has {self._in_all} uploads under way, as many as it takes: try again")
        self._under_way[user_id] += 1
        try:
            yield
        finally:
            self._under_way[user_id] -= 1
            if not self._under_way[user_id]:
                del self._under_way[user_id]
