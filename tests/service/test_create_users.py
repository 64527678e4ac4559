"""Many users are created with one call, all or none."""

from typing import Any

import pytest

from calls import Person, fails_with, new_id
from fedround.v1 import user_pb2
from fedround_client import connect
from servers import Server


def new(name: str, **fields: Any) -> user_pb2.CreateUserRequest:
    return user_pb2.CreateUserRequest(name=name, **({"role": user_pb2.ROLE_CLIENT} | fields))


def create(admin: Person, *users: user_pb2.CreateUserRequest) -> list[user_pb2.CreatedUser]:
    return list(admin.users.CreateUsers(user_pb2.CreateUsersRequest(users=users)).users)


def names_of(admin: Person, prefix: str) -> list[str]:
    page = admin.users.GetUsers(user_pb2.GetUsersRequest(page_size=1000))
    return [user.name for user in page.users if user.name.startswith(prefix)]


def test_each_has_its_own_token_labels_and_certificates(admin: Person) -> None:
    prefix = new_id()
    dns = f"{prefix}.example.org"
    created = create(
        admin,
        new(f"{prefix} b", labels={"site": "north"}),
        new(f"{prefix} a", role=user_pb2.ROLE_ACTOR, certificate_names=[dns], lifetime={"seconds": 60}),
    )
    first, second = (
        Person(admin.channel, one.token).users.GetMyself(user_pb2.GetMyselfRequest()).user for one in created
    )
    assert [first.user_id, second.user_id] == [one.user_id for one in created]
    assert [first.name, second.name] == [f"{prefix} b", f"{prefix} a"]
    assert (second.role, list(second.certificate_names)) == (user_pb2.ROLE_ACTOR, [dns])
    assert (second.tokens[0].HasField("expire_time"), first.tokens[0].HasField("expire_time")) == (True, False)
    seen = admin.users.GetUser(user_pb2.GetUserRequest(user_id=first.user_id)).user
    assert dict(seen.labels) == {"site": "north"}


def test_of_users_of_which_one_is_not_possible_none_is_created(admin: Person) -> None:
    prefix = new_id()
    create(admin, new(f"{prefix} taken", certificate_names=[f"{prefix}.example.org"]))
    before = names_of(admin, prefix)
    with fails_with("ALREADY_EXISTS", "USER_EXISTS", f"'{prefix} taken' already: choose another name"):
        create(admin, new(f"{prefix} one"), new(f"{prefix} taken"))
    with fails_with("ALREADY_EXISTS", "USER_EXISTS", f"'{prefix} two' already: choose another name"):
        create(admin, new(f"{prefix} two"), new(f"{prefix} two"))
    with fails_with("ALREADY_EXISTS", "CERTIFICATE_NAME_TAKEN", f"{prefix}.example.org"):
        create(admin, new(f"{prefix} three"), new(f"{prefix} four", certificate_names=[f"{prefix}.example.org"]))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "users[1].name"):
        create(admin, new(f"{prefix} five"), new(""))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "users[0].role"):
        create(admin, new(f"{prefix} six", role=user_pb2.ROLE_UNSPECIFIED))
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", "users[0].lifetime"):
        create(admin, new(f"{prefix} seven", lifetime={"seconds": -1}))
    assert names_of(admin, prefix) == before


@pytest.mark.parametrize("count", [0, 1001])
def test_a_call_creates_up_to_a_thousand(admin: Person, count: int) -> None:
    with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", f"users: has {count} users; a call creates 1 to 1000"):
        create(admin, *(new(f"{count} {number}") for number in range(count)))


def test_the_sdk_creates_any_number(server: Server, admin: Person) -> None:
    prefix = new_id()
    names = [f"{prefix} {number}" for number in range(1002)]
    with connect(server.address, server.admin_token) as client:
        created = client.create_users(names, labels={"site": "south"})
        assert client.create_users([]) == []
        assert client.get_user(created[-1][0]).name == names[-1]
    assert len({user_id for user_id, _ in created}) == len({token for _, token in created}) == 1002
    assert Person(admin.channel, created[500][1]).users.GetMyself(user_pb2.GetMyselfRequest()).user.name == names[500]
