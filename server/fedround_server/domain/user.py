"""Users and their roles."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fedround_server.domain.token import Token


class Role(enum.Enum):
    """A role, which decides what a user may do."""

    ADMIN = "ADMIN"
    ACTOR = "ACTOR"
    CLIENT = "CLIENT"
    VIEWER = "VIEWER"


@dataclass(frozen=True, slots=True)
class User:
    """A user of the server: a person or a machine; cohorts select participants by labels."""

    user_id: str
    name: str
    role: Role
    create_time: datetime
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_viewer(self) -> bool:
        """Whether it reads all trainings, and changes nothing."""
        return self.role is Role.VIEWER

    def reads_as(self, owner_id: str) -> str:
        """Returns as whom it reads a training or model of an owner: a viewer as the owner, all others as themselves."""
        return owner_id if self.is_viewer else self.user_id


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to create; a lifetime of its token of None stands for the server's default."""

    name: str
    role: Role
    lifetime: timedelta | None = None
    certificate_names: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserView:
    """A user with its certificate names and valid tokens, the latest first, as shown to itself and to admins."""

    user: User
    certificate_names: tuple[str, ...]
    tokens: tuple[Token, ...]


def retired_name(name: str, user_id: str) -> str:
    """Returns the name under which a removed user is kept, so that its own is free for another one."""
    return f"{name}#{user_id}"


def original_name(name: str, user_id: str) -> str:
    """Returns the name that a user has, or had before it was removed, of the name under which it is kept."""
    return name.removesuffix(f"#{user_id}")
