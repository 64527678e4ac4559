"""Use cases about users and their credentials."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from fedround_server.coordinator.access import Access
from fedround_server.coordinator.context import Context
from fedround_server.coordinator.tasks import in_thread
from fedround_server.domain.errors import FieldInvalid, RoleRequired, UserExists, UserNotFound
from fedround_server.domain.token import Token, hash_token, new_token
from fedround_server.domain.user import NewUser, Role, User, UserView


class Users:
    """Manages users, their tokens and their certificate names."""

    def __init__(self, context: Context, access: Access) -> None:
        self._context = context
        self._access = access

    async def bootstrap(
        self, keep_token: Callable[[str], None], drop_token: Callable[[], None], *, is_lost: bool = False
    ) -> bool:
        """Creates a token that never expires for an admin, and the first admin if needed, unless an admin has a token.

        Args:
            keep_token: Writes the token durably where the operator finds it; called before the token becomes valid, so
                that no crash in between leaves a valid token that is lost.
            drop_token: Removes it: another server has made the first admin at the same time, and has its token.
            is_lost: Whether the first admin gets a new one in any case, which takes the place of those it has.

        Returns:
            Whether there is a new token.
        """
        now = self._context.clock.now()
        admins, can_enter = await self._context.store.credentials.admins(now)
        if can_enter and not is_lost:
            return False
        token = new_token()
        await in_thread(keep_token, token)
        if admins:
            await self._rotate(admins[0], Token(hash_token(token), now, None), None)
        else:
            try:
                await self._context.store.users.create([self._view(NewUser("admin", Role.ADMIN), token, None)])
            except UserExists:
                await in_thread(drop_token)
                return False
        return True

    async def create(
        self,
        name: str,
        role: Role,
        lifetime: timedelta | None,
        certificate_names: Sequence[str],
        labels: Mapping[str, str] | None = None,
    ) -> tuple[UserView, str]:
        """Creates a user with a token; a lifetime of None stands for the server's default.

        Returns:
            The user and its token, which is not stored and cannot be read again.

        Raises:
            UserExists: The name is taken.
            CertificateNameTaken: A certificate name is another user's.
            FieldInvalid: The lifetime is longer than the server allows.
        """
        new = NewUser(name, role, lifetime, tuple(certificate_names), labels or {})
        return (await self.create_all([new]))[0]

    async def create_all(self, users: Sequence[NewUser]) -> list[tuple[UserView, str]]:
        """Creates users with tokens, all or none; returns them like `create`, in their order.

        Raises:
            UserExists: A name is taken, or two have the same.
            CertificateNameTaken: A certificate name is another user's.
            FieldInvalid: A lifetime is longer than the server allows.
        """
        tokens = [new_token() for _ in users]
        views = [self._view(new, token, self._expiry(new.lifetime)) for new, token in zip(users, tokens, strict=True)]
        create = self._access.change(self._context.store.users.create(views))
        await self._context.tasks.run_shielded(create)
        return list(zip(views, tokens, strict=True))

    async def get(self, caller: User, user_id: str) -> User | UserView:
        """Returns a user; clients and viewers see only themselves. Credentials are for the user itself and for admins.

        Raises:
            UserNotFound: There is no such user that the caller may see.
        """
        if user_id == caller.user_id or caller.role is Role.ADMIN:
            return await self.view(user_id)
        if caller.role is not Role.ACTOR:
            raise UserNotFound(user_id)
        return await self._context.store.users.get(user_id)

    async def view(self, user_id: str) -> UserView:
        """Returns a user with its credentials.

        Raises:
            UserNotFound: There is no such user.
        """
        return await self._context.store.credentials.view(user_id, self._context.clock.now())

    async def rotate_token(
        self, caller: User, user_id: str, overlap: timedelta | None, lifetime: timedelta | None
    ) -> str:
        """Replaces a user's token and returns the new one.

        Args:
            caller: The calling user.
            user_id: The owner of the token.
            overlap: How long the present token remains valid; None for not at all.
            lifetime: Lifetime of the new token; None for the server's default.

        Raises:
            RoleRequired: The token is another user's, and the caller is no admin.
            UserNotFound: There is no such user.
            FieldInvalid: The lifetime is longer than the server allows.
        """
        _check_owner(caller, user_id)
        token, now = new_token(), self._context.clock.now()
        stored = Token(hash_token(token), now, self._expiry(lifetime))
        until = None if overlap is None else now + overlap
        await self._context.tasks.run_shielded(self._rotate(user_id, stored, until))
        return token

    async def revoke_token(self, caller: User, user_id: str, token_id: str) -> None:
        """Revokes a user's token.

        Raises:
            RoleRequired: The token is another user's, and the caller is no admin.
            UserNotFound: There is no such user.
            TokenNotFound: The user has no such token.
        """
        _check_owner(caller, user_id)
        await self._context.tasks.run_shielded(self._revoke(user_id, token_id))

    async def set_certificate_names(self, user_id: str, names: Sequence[str]) -> UserView:
        """Sets the names in client certificates that identify a user.

        Raises:
            UserNotFound: There is no such user.
            CertificateNameTaken: A name is another user's.
        """
        await self._context.tasks.run_shielded(self._set_certificate_names(user_id, names))
        return await self.view(user_id)

    async def set_labels(self, user_id: str, labels: Mapping[str, str]) -> UserView:
        """Sets the labels of a user, by which cohorts select participants.

        Raises:
            UserNotFound: There is no such user.
        """
        change = self._access.change(self._context.store.users.set_labels(user_id, labels))
        await self._context.tasks.run_shielded(change)
        return await self.view(user_id)

    async def remove(self, user_id: str, *, force: bool, remove_models: bool) -> list[str]:
        """Removes a user; returns the ids of trainings that it took part in or steered, for the caller to follow up.

        Raises:
            UserNotFound: There is no such user.
            LastAdmin: The user is the only admin.
            TrainingRunning: The user steers running trainings, and force is not set.
        """
        now = self._context.clock.now()
        remove = self._context.store.users.remove(user_id, now, force=force, remove_models=remove_models)
        left = await self._access.change(remove, user_id)
        self._access.forget(user_id)
        self._context.presence.forget(user_id)
        self._context.hub.notify(user_id, *left)
        return left

    async def _rotate(self, user_id: str, token: Token, until: datetime | None) -> None:
        used = self._access.latest_token(user_id)
        await self._access.change(self._context.store.credentials.rotate(user_id, token, until, used), user_id)

    async def _revoke(self, user_id: str, token_id: str) -> None:
        await self._access.change(self._context.store.credentials.revoke(user_id, token_id), user_id)

    async def _set_certificate_names(self, user_id: str, names: Sequence[str]) -> None:
        await self._access.change(self._context.store.credentials.set_certificate_names(user_id, names), user_id)

    def _view(self, new: NewUser, token: str, expire_time: datetime | None) -> UserView:
        now = self._context.clock.now()
        make_id = self._context.new_user_id
        user_id = self._context.new_id() if make_id is None else make_id(new.name)
        user = User(user_id, new.name, new.role, now, new.labels)
        return UserView(user, new.certificate_names, (Token(hash_token(token), now, expire_time),))

    def _expiry(self, lifetime: timedelta | None) -> datetime | None:
        limits = self._context.limits
        longest = limits.max_token_lifetime
        if lifetime is not None and longest is not None and lifetime > longest:
            raise FieldInvalid("lifetime", f"is longer than {longest}, the longest that the server allows")
        chosen = limits.token_lifetime if lifetime is None else lifetime
        return None if chosen is None else self._context.clock.now() + chosen


def _check_owner(caller: User, user_id: str) -> None:
    if user_id != caller.user_id and caller.role is not Role.ADMIN:
        raise RoleRequired("only an admin may replace or revoke another user's token: leave user_id empty for your own")
