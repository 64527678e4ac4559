"""One server for all tests that can share it; every test gets users of its own.

It is started as users start it, not forked.
"""

from collections.abc import Callable, Iterator

import grpc
import pytest

from calls import Person, model_file, new_number
from servers import MODULE, Server
from service.uploads import Upload, creating, storing, submitting


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = {
        "--max-model-bytes": "3000000",
        "--max-open-trainings-per-user": "30",
        "--max-uploads-per-user": "20",
        "--max-downloads-per-user": "4",
        "--max-subscriptions-per-user": "20",
    }
    flags = tuple(word for option in options.items() for word in option)
    with Server(tmp_path_factory.mktemp("service") / "data", options=flags, program=MODULE) as running:
        yield running


@pytest.fixture(scope="session")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


@pytest.fixture
def person(server: Server, admin: Person) -> Iterator[Callable[..., Person]]:
    """Makes users of a role."""
    made: list[Person] = []

    def make(role: str, name: str = "") -> Person:
        made.append(admin.make(server.address, role, name))
        return made[-1]

    yield make
    for one in made:
        one.channel.close()


@pytest.fixture
def actor(person: Callable[..., Person]) -> Person:
    return person("ACTOR")


@pytest.fixture
def clients(person: Callable[..., Person]) -> list[Person]:
    return [person("CLIENT") for _ in range(3)]


@pytest.fixture
def data() -> bytes:
    """A file that no other test has sent."""
    return model_file(new_number())


@pytest.fixture(params=["CreateTraining", "UploadModel", "SubmitUpdate"])
def upload(request: pytest.FixtureRequest, actor: Person, person: Callable[..., Person]) -> Upload:
    """Each of the RPCs that take a file."""
    if request.param == "SubmitUpdate":
        return submitting(actor, person("CLIENT"), model_file())
    return {"CreateTraining": creating, "UploadModel": storing}[request.param](actor)
