"""Users and their roles."""

import enum
from dataclasses import dataclass
from datetime import datetime

from fedround_server.domain.token import Token


class Role(enum.Enum):
    """What a user may do."""

    ADMIN = "ADMIN"
    ACTOR = "ACTOR"
    CLIENT = "CLIENT"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may talk to the server."""

    user_id: str
    name: str
    role: Role
    create_time: datetime


@dataclass(frozen=True, slots=True)
class UserView:
    """A user as it sees itself, and as admins see it: with its certificate names, and its live tokens, latest first."""

    user: User
    certificate_names: tuple[str, ...]
    tokens: tuple[Token, ...]
