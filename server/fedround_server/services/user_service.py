"""UserService."""

from fedround.v1 import user_pb2, user_pb2_grpc
from fedround_server.coordinator import Coordinator
from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.user import Role
from fedround_server.interceptors.around import Call
from fedround_server.interceptors.auth import caller
from fedround_server.services import convert, fields, pages


class UserService(user_pb2_grpc.UserServiceServicer):
    """Manages who may talk to the server."""

    def __init__(self, coordinator: Coordinator) -> None:
        """Serves these use cases."""
        self._coordinator = coordinator
        self._users = coordinator.users

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Call) -> user_pb2.CreateUserResponse:
        """Creates a user and answers its token."""
        role = _role(request.role)
        if role is None:
            raise FieldInvalid("role", "is required: ROLE_ADMIN, ROLE_ACTOR or ROLE_CLIENT")
        name = fields.a_text("name", request.name, 200, required=True)
        user, token = await self._users.create(name, role)
        return user_pb2.CreateUserResponse(user=convert.user(user), token=token)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Call) -> user_pb2.GetUserResponse:
        """Answers one user."""
        user = await self._users.get(caller(), fields.an_id("user_id", request.user_id))
        return user_pb2.GetUserResponse(user=convert.user(user))

    async def GetUsers(self, request: user_pb2.GetUsersRequest, context: Call) -> user_pb2.GetUsersResponse:
        """Lists users by name."""
        size = fields.a_page_size(request.page_size)
        after = fields.a_page_token(request.page_token, str)
        users = await self._users.page(_role(request.role), after[0] if after else "", size + 1)
        page, token = pages.cut(users, size, convert.user, lambda user: fields.page_token(user.name))
        return user_pb2.GetUsersResponse(users=page, next_page_token=token)

    async def GetMyself(self, request: user_pb2.GetMyselfRequest, context: Call) -> user_pb2.GetMyselfResponse:
        """Answers the caller."""
        return user_pb2.GetMyselfResponse(user=convert.user(caller()))

    async def RotateToken(self, request: user_pb2.RotateTokenRequest, context: Call) -> user_pb2.RotateTokenResponse:
        """Replaces a user's token."""
        user_id = fields.an_optional_id("user_id", request.user_id) or caller().user_id
        return user_pb2.RotateTokenResponse(token=await self._users.rotate_token(caller(), user_id))

    async def RemoveUser(self, request: user_pb2.RemoveUserRequest, context: Call) -> user_pb2.RemoveUserResponse:
        """Removes a user."""
        await self._coordinator.remove_user(fields.an_id("user_id", request.user_id), force=request.force)
        return user_pb2.RemoveUserResponse()


def _role(value: user_pb2.Role.ValueType) -> Role | None:
    if value == user_pb2.ROLE_UNSPECIFIED:
        return None
    if value not in user_pb2.Role.values():
        raise FieldInvalid("role", f"is {value}; known are ROLE_ADMIN, ROLE_ACTOR and ROLE_CLIENT")
    return Role(user_pb2.Role.Name(value).removeprefix("ROLE_"))
