"""What was made of the latest texts: the updates of a training all begin with the same one."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Text = TypeVar("Text", bound=bytes | str)
Made = TypeVar("Made")


class Recent(Generic[Text, Made]):
    """A function of a text that remembers what it returned for the latest ones. Any thread may call it."""

    def __init__(self, make: Callable[[Text], Made], most: int) -> None:
        """Remembers nothing yet.

        Args:
            make: The function. What it returns is shared, and must not be changed; what it raises is not remembered.
            most: How long the texts that are remembered may be together.
        """
        self._make = make
        self._most = most
        self._known: OrderedDict[Text, Made] = OrderedDict()
        self._length = 0
        self._lock = threading.Lock()

    def __call__(self, text: Text) -> Made:
        """Returns what the function makes of a text."""
        with self._lock:
            if text in self._known:
                self._known.move_to_end(text)
                return self._known[text]
        made = self._make(text)
        if len(text) <= self._most:
            self._remember(text, made)
        return made

    def _remember(self, text: Text, made: Made) -> None:
        with self._lock:
            if text not in self._known:
                self._known[text] = made
                self._length += len(text)
            while self._length > self._most:
                oldest, _ = self._known.popitem(last=False)
                self._length -= len(oldest)
