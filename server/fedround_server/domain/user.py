"""Users and their roles."""

import enum
from dataclasses import dataclass
from datetime import datetime

from fedround_server.domain.token import Token


class Role(enum.Enum):
    """A role, which decides what a user may do."""

    ADMIN = "ADMIN"
    ACTOR = "ACTOR"
    CLIENT = "CLIENT"


@dataclass(frozen=True, slots=True)
class User:
    """A user of the server: a person or a machine."""

    user_id: str
    name: str
    role: Role
    create_time: datetime


@dataclass(frozen=True, slots=True)
class UserView:
    """A user with its certificate names and valid tokens, the latest first, as shown to itself and to admins."""

    user: User
    certificate_names: tuple[str, ...]
    tokens: tuple[Token, ...]
