"""Sessions: which program takes part in rounds as which user, so that a second one is rejected."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from fedround_server.domain.errors import AlreadyParticipating

SessionElsewhere = tuple[str, str | None, str]
"""A session at another replica: its id, its training (None for all of the user's), and since when."""


@dataclass(frozen=True, slots=True)
class _Session:
    """A program that takes part by a subscription.

    Attributes:
        session_id: UUID that the program chose.
        training_id: The training; None for all of the user's.
        since: When the subscription began.
    """

    session_id: str
    training_id: str | None
    since: datetime

    def excludes(self, session_id: str, training_id: str | None) -> bool:
        """Returns whether another program cannot take part in a training, or in all of the user's, meanwhile."""
        return _exclude((self.session_id, self.training_id), (session_id, training_id))


class Sessions:
    """The sessions that take part in rounds. A subscription without a session is not among them.

    Attributes:
        open: Those of each user.
    """

    def __init__(self) -> None:
        """Begins without sessions."""
        self.open: dict[str, list[_Session]] = {}

    def check(
        self,
        user_id: str,
        session_id: str | None,
        training_id: str | None,
        elsewhere: Iterable[SessionElsewhere] = (),
    ) -> None:
        """Checks that no other program takes part in a training as the same user; the arguments as for `participating`.

        Raises:
            AlreadyParticipating: One does.
        """
        if session_id is None:
            return
        _check_elsewhere(session_id, training_id, elsewhere)
        for other in self.open.get(user_id, ()):
            if other.excludes(session_id, training_id):
                raise AlreadyParticipating(_shown(other.since))

    def of(self, user_id: str) -> tuple[SessionElsewhere, ...]:
        """Returns the sessions of a user, as other replicas are told of them."""
        return tuple((one.session_id, one.training_id, _shown(one.since)) for one in self.open.get(user_id, ()))

    def participating(
        self,
        user_id: str,
        session_id: str | None,
        training_id: str | None,
        now: datetime,
        elsewhere: Iterable[SessionElsewhere] = (),
    ) -> "_Participating":
        """Returns a block within which no other program can take part in a training as the same user.

        A program may have several subscriptions: when it replaces a lost one, the server may not know yet that the old
        one is lost.

        Args:
            user_id: The user.
            session_id: The program; None for a subscription that only watches, which excludes nobody.
            training_id: The training; None for all of the user's.
            now: The time.
            elsewhere: The sessions of the user at other replicas, as these told last. Two programs that begin within a
                second or two, at different replicas, do not see each other.

        Raises:
            AlreadyParticipating: Another program takes part.
        """
        session = None if session_id is None else _Session(session_id, training_id, now)
        if session is not None:
            _check_elsewhere(session.session_id, training_id, elsewhere)
        return _Participating(self, user_id, session)


class _Participating:
    """The block of one subscription. A generator would take more memory, and there are thousands."""

    __slots__ = ("_session", "_sessions", "_user_id")

    def __init__(self, sessions: Sessions, user_id: str, session: _Session | None) -> None:
        self._sessions = sessions
        self._user_id = user_id
        self._session = session

    def __enter__(self) -> None:
        if self._session is None:
            return
        self._sessions.check(self._user_id, self._session.session_id, self._session.training_id)
        self._sessions.open.setdefault(self._user_id, []).append(self._session)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is None:
            return
        sessions = self._sessions.open[self._user_id]
        sessions.remove(self._session)
        if not sessions:
            del self._sessions.open[self._user_id]


def _exclude(one: tuple[str, str | None], other: tuple[str, str | None]) -> bool:
    """Returns whether two sessions, each with its training (None for all), exclude each other."""
    return one[0] != other[0] and (None in (one[1], other[1]) or one[1] == other[1])


def _check_elsewhere(session_id: str, training_id: str | None, elsewhere: Iterable[SessionElsewhere]) -> None:
    for other_id, other_training, since in elsewhere:
        if _exclude((other_id, other_training), (session_id, training_id)):
            raise AlreadyParticipating(since)


def _shown(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
