"""Batching: questions of one kind that come while others are being answered are answered together."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")

MAX_BATCH = 1000
"""How many questions are answered together; the store does other work between two batches."""


class Batch(Generic[Q, R]):
    """Questions of one kind that wait for their answers.

    No answer is kept for a later question: each is answered by a transaction that begins after it was asked.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Coroutine[Any, Any, Sequence[R | Exception]]]) -> None:
        """Begins without questions.

        Args:
            answer: Answers questions, in their order. An error among the answers belongs to one question; an error that
                is raised belongs to all.
        """
        self._answer = answer
        self._waiting: list[tuple[Q, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> R:
        """Returns the answer to a question, or raises its error; cancelling it does not affect other questions."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None:
            # The task starts after all coroutines that are ready now: what they ask is in the first batch.
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._answer_some([(question, future) for question, future in some if not future.done()])
        finally:
            self._task = None
            for _, future in self._waiting:
                future.cancel()
            self._waiting = []

    async def _answer_some(self, some: Sequence[tuple[Q, asyncio.Future[R]]]) -> None:
        try:
            answers: Sequence[R | Exception] = await self._answer([question for question, _ in some])
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
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
