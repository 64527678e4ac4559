"""Use cases about users."""

from collections.abc import Callable
from datetime import datetime

from fedround_server.coordinator.context import Context, in_thread
from fedround_server.domain.errors import RoleRequired, TokenInvalid, UserNotFound
from fedround_server.domain.user import Role, User, hash_token, new_token


class Users:
    """What can be done with users."""

    def __init__(self, context: Context) -> None:
        """Begins without having seen anybody."""
        self._context = context
        self._last_seen: dict[str, datetime] = {}

    async def authenticate(self, token: str) -> User:
        """Returns the user that a token belongs to.

        Raises:
            TokenInvalid: It belongs to nobody.
        """
        user = await self._context.store.users.find_by_token(hash_token(token))
        if user is None:
            raise TokenInvalid
        self._last_seen[user.user_id] = self._context.clock.now()
        return user

    def last_seen(self, user_id: str) -> datetime | None:
        """Returns when a user was heard of last, since the start of the server."""
        return self._last_seen.get(user_id)

    async def bootstrap(self, keep_token: Callable[[str], None]) -> bool:
        """Creates the first admin, if there is none.

        Args:
            keep_token: Puts its token where the operator finds it, durably; called before the admin exists, so that no
                crash in between leaves an admin whose token nobody has.

        Returns:
            Whether it was created.
        """
        if await self._context.store.users.has_admin():
            return False
        token = new_token()
        await in_thread(keep_token, token)
        await self._store_user("admin", Role.ADMIN, token)
        return True

    async def create(self, name: str, role: Role) -> tuple[User, str]:
        """Creates a user.

        Returns:
            The user and its token, which nobody can read again.

        Raises:
            UserExists: The name is taken.
        """
        token = new_token()
        return await self._store_user(name, role, token), token

    async def get(self, caller: User, user_id: str) -> User:
        """Returns a user; to clients only themselves.

        Raises:
            UserNotFound: There is none that the caller may see.
        """
        if caller.role is Role.CLIENT and user_id != caller.user_id:
            raise UserNotFound(user_id)
        return await self._context.store.users.get(user_id)

    async def page(self, role: Role | None, after_name: str, limit: int) -> list[User]:
        """Returns users by name, behind a name."""
        return await self._context.store.users.page(role, after_name, limit)

    async def rotate_token(self, caller: User, user_id: str) -> str:
        """Replaces a user's token.

        Raises:
            RoleRequired: Somebody else's, and the caller is no admin.
            UserNotFound: There is no such user.
        """
        if user_id != caller.user_id and caller.role is not Role.ADMIN:
            raise RoleRequired("only an admin may rotate another user's token: leave user_id empty for your own")
        token = new_token()
        await self._context.store.users.replace_token(user_id, hash_token(token), self._context.clock.now())
        self._context.hub.notify(user_id)
        return token

    async def remove(self, user_id: str, *, force: bool) -> list[str]:
        """Removes a user; the caller goes on with the trainings.

        Returns:
            The ids of the trainings that it left, or that were removed with it.

        Raises:
            UserNotFound: There is no such user.
            LastAdmin: Nobody would be left to manage users.
            TrainingRunning: It steers running trainings, and force is not set.
        """
        left = await self._context.store.users.remove(user_id, self._context.clock.now(), force=force)
        self._last_seen.pop(user_id, None)
        self._context.hub.notify(user_id, *left)
        return left

    async def _store_user(self, name: str, role: Role, token: str) -> User:
        user = User(self._context.new_id(), name, role, self._context.clock.now())
        return await self._context.store.users.create(user, hash_token(token))
