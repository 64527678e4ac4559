"""Puts questions of one kind together: those that come while others are being answered are then answered at once."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from fedround_server.domain.errors import FedroundError

Q = TypeVar("Q")
R = TypeVar("R")

MOST = 1000
"""How many questions go together: the store does other work in between."""


class Batch(Generic[Q, R]):
    """The questions of one kind.

    Nothing is kept from one time to the next: a question is answered by a transaction that begins after it was asked.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Coroutine[Any, Any, Sequence[R | FedroundError]]]) -> None:
        """Begins without questions.

        Args:
            answer: Answers many questions, in their order; an error among the answers is that one question's own.
        """
        self._answer = answer
        self._waiting: list[tuple[Q, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> R:
        """Returns the answer to a question, or raises it; cancelling takes nothing from those who asked, too."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None:
            # It runs behind all who are ready to ask now.
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._answer_some([(question, future) for question, future in some if not future.done()])
        finally:
            self._task = None
            for _, future in self._waiting:
                future.cancel()
            self._waiting = []

    async def _answer_some(self, some: Sequence[tuple[Q, asyncio.Future[R]]]) -> None:
        try:
            answers: Sequence[R | FedroundError] = await self._answer([question for question, _ in some])
        except asyncio.CancelledError:
            for _, future in some:
                future.cancel()
            raise
        except Exception as error:
            for _, future in some:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(some, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, FedroundError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
