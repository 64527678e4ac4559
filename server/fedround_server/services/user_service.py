"""UserService."""

from datetime import timedelta

from fedround.v1 import user_pb2, user_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.user import NewUser, Role, User, UserView
from fedround_server.interceptors.auth import caller
from fedround_server.interceptors.wrapping import Call
from fedround_server.services import convert, fields, pages

MAX_OVERLAP = timedelta(days=30)
MAX_LIFETIME = timedelta(days=36_500)
MAX_CREATED = 1000
"""How many users one call creates."""


class UserService(user_pb2_grpc.UserServiceServicer):
    """Manages users and their credentials."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._users = coordinator.users

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Call) -> user_pb2.CreateUserResponse:
        """Creates a user and returns its token."""
        ((made, token),) = await self._users.create_all([_new_user("", request)])
        return user_pb2.CreateUserResponse(user=self._shown(made), token=token)

    async def CreateUsers(self, request: user_pb2.CreateUsersRequest, context: Call) -> user_pb2.CreateUsersResponse:
        """Creates several users and returns their tokens."""
        if not 1 <= len(request.users) <= MAX_CREATED:
            raise FieldInvalid("users", f"has {len(request.users)} users; a call creates 1 to {MAX_CREATED}")
        made = await self._users.create_all([_new_user(f"users[{i}].", new) for i, new in enumerate(request.users)])
        created = [user_pb2.CreatedUser(user_id=view.user.user_id, token=token) for view, token in made]
        return user_pb2.CreateUsersResponse(users=created)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Call) -> user_pb2.GetUserResponse:
        """Returns a user."""
        user = await self._users.get(caller(), fields.parse_id("user_id", request.user_id))
        return user_pb2.GetUserResponse(user=self._shown(user))

    async def GetUsers(self, request: user_pb2.GetUsersRequest, context: Call) -> user_pb2.GetUsersResponse:
        """Lists users by name."""
        size = pages.parse_size(request.page_size)
        after = pages.parse_token(request.page_token, str)
        users = await self._coordinator.reads.users(_role(request.role), after[0] if after else "", size + 1)
        page, token = pages.cut(users, size, convert.user, lambda user: pages.format_token(user.name))
        return user_pb2.GetUsersResponse(users=page, next_page_token=token)

    async def GetMyself(self, request: user_pb2.GetMyselfRequest, context: Call) -> user_pb2.GetMyselfResponse:
        """Returns the caller."""
        return user_pb2.GetMyselfResponse(user=self._shown(await self._users.view(caller().user_id)))

    async def RotateToken(self, request: user_pb2.RotateTokenRequest, context: Call) -> user_pb2.RotateTokenResponse:
        """Replaces a user's token."""
        user_id = fields.parse_optional_id("user_id", request.user_id) or caller().user_id
        overlap = fields.parse_optional_duration("overlap", request, MAX_OVERLAP)
        lifetime = fields.parse_optional_duration("lifetime", request, MAX_LIFETIME)
        token = await self._users.rotate_token(caller(), user_id, overlap, lifetime)
        return user_pb2.RotateTokenResponse(token=token)

    async def RevokeToken(self, request: user_pb2.RevokeTokenRequest, context: Call) -> user_pb2.RevokeTokenResponse:
        """Revokes one of a user's tokens."""
        user_id = fields.parse_optional_id("user_id", request.user_id) or caller().user_id
        await self._users.revoke_token(caller(), user_id, fields.parse_token_id("token_id", request.token_id))
        return user_pb2.RevokeTokenResponse()

    async def SetCertificateNames(
        self, request: user_pb2.SetCertificateNamesRequest, context: Call
    ) -> user_pb2.SetCertificateNamesResponse:
        """Sets the names in client certificates that identify a user."""
        user_id = fields.parse_id("user_id", request.user_id)
        names = fields.parse_certificate_names("certificate_names", request.certificate_names)
        view = await self._users.set_certificate_names(user_id, names)
        return user_pb2.SetCertificateNamesResponse(user=self._shown(view))

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, context: Call) -> user_pb2.UpdateUserResponse:
        """Replaces the labels of a user."""
        user_id = fields.parse_id("user_id", request.user_id)
        view = await self._users.set_labels(user_id, fields.parse_labels("labels", request.labels))
        return user_pb2.UpdateUserResponse(user=self._shown(view))

    async def RemoveUser(self, request: user_pb2.RemoveUserRequest, context: Call) -> user_pb2.RemoveUserResponse:
        """Removes a user."""
        user_id = fields.parse_id("user_id", request.user_id)
        await self._coordinator.remove_user(user_id, force=request.force, remove_models=request.remove_models)
        return user_pb2.RemoveUserResponse()

    def _shown(self, found: User | UserView) -> user_pb2.User:
        """Encodes a user, with its credentials if the caller may see them."""
        message = convert.user(found if isinstance(found, User) else found.user)
        if caller().role not in (Role.ADMIN, Role.ACTOR):
            message.ClearField("labels")
        if isinstance(found, User):
            return message
        message.certificate_names.extend(found.certificate_names)
        for token in found.tokens:
            message.tokens.append(
                convert.token(token, self._coordinator.access.last_use(found.user.user_id, token.token_hash))
            )
        return message


def _new_user(prefix: str, request: user_pb2.CreateUserRequest) -> NewUser:
    """Decodes a user to create; a prefix comes before the names of its fields in errors."""
    role = _role(request.role, prefix)
    if role is None:
        raise FieldInvalid(f"{prefix}role", "is required: ROLE_ADMIN, ROLE_ACTOR, ROLE_CLIENT or ROLE_VIEWER")
    return NewUser(
        fields.parse_text(f"{prefix}name", request.name, 200, required=True),
        role,
        fields.parse_optional_duration("lifetime", request, MAX_LIFETIME, prefix),
        tuple(fields.parse_certificate_names(f"{prefix}certificate_names", request.certificate_names)),
        fields.parse_labels(f"{prefix}labels", request.labels),
    )


def _role(value: user_pb2.Role.ValueType, prefix: str = "") -> Role | None:
    if value == user_pb2.ROLE_UNSPECIFIED:
        return None
    if value not in user_pb2.Role.values():
        raise FieldInvalid(f"{prefix}role", f"is {value}; known are {', '.join(user_pb2.Role.keys()[1:])}")
    return Role(user_pb2.Role.Name(value).removeprefix("ROLE_"))
