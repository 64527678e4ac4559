"""How many bytes unfinished uploads may have, and what they leave free on the disk."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

import fedround_client as fr
from calls import MODEL, Person, fails_with, model_file, new_id, new_number, read_error, until
from fedround_client.clock import SystemClock
from servers import Server
from service.uploads import Halted, Upload, committed, storing

# Two of them are more than one user may have, three more than all.
FILE = save({"w": np.zeros(480_000, np.float32)})
LIMITS = {
    "--max-model-bytes": 3_000_000,
    "--max-unfinished-bytes-per-user": 3 << 20,
    "--max-unfinished-bytes": 5 << 20,
    "--min-free-bytes": 1_000_000,
}
ROOMY = str(1 << 40)
# A server on a disk that is as full as a file says.
PROGRAM = """
import sys
from pathlib import Path
from fedround_server.__main__ import main
from fedround_server.blobs.local import LocalBlobs

LocalBlobs.free_bytes = lambda _: int(Path({!r}).read_text())
sys.exit(main())
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says how much room there is."""
    path = tmp_path_factory.mktemp("disk") / "free"
    path.write_text(ROOMY)
    return path


@pytest.fixture(autouse=True)
def empty(disk: Path) -> None:
    disk.write_text(ROOMY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[Server]:
    options = tuple(str(word) for option in LIMITS.items() for word in option)
    program = ("-c", PROGRAM.format(str(disk)))
    with Server(tmp_path_factory.mktemp("space") / "data", options=options, program=program) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def leave(upload: Upload, data: bytes) -> str:
    """Leaves an unfinished upload that can be resumed."""
    upload_id = new_id()
    with fails_with("DATA_LOSS", "UPLOAD_INCOMPLETE"):
        upload.send(upload.resumable(data, upload_id), *upload.chunks(data[:50]))
    return upload_id


def test_the_uploads_of_a_user_have_so_many_bytes(server: Server, actor: Person, person: Callable[..., Person]) -> None:
    upload, other = storing(actor), storing(person("ACTOR"))
    with Halted(server, upload, FILE) as halted:
        with fails_with(
            "RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", "your unfinished uploads", "finish some first"
        ) as error:
            upload.send(upload.spec(FILE), *upload.chunks(FILE))
        assert error.details.metadata == {"limit": "max_unfinished_bytes_per_user"}
        assert {"QuotaFailure", "RetryInfo"} <= set(error.details.details)
        # What is not declared is found with the header.
        with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", "your unfinished uploads", "finish some first"):
            upload.send(upload.request(spec=upload.needs), *upload.chunks(FILE))
        other.send(other.spec(FILE), *other.chunks(FILE))
        halted.finish()
    upload.send(upload.spec(FILE), *upload.chunks(FILE))


def test_the_uploads_of_all_users_have_so_many_bytes(server: Server, person: Callable[..., Person]) -> None:
    first, second, third = (storing(person("ACTOR")) for _ in range(3))
    with Halted(server, first, FILE), Halted(server, second, FILE) as halted:
        with fails_with("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", "all unfinished uploads", "try again later") as error:
            third.send(third.spec(FILE), *third.chunks(FILE))
        assert error.details.metadata == {"limit": "max_unfinished_bytes"}
        assert {"QuotaFailure", "RetryInfo"} <= set(error.details.details)
        halted.finish()
        third.send(third.spec(FILE), *third.chunks(FILE))


def test_what_was_left_behind_counts_also_after_a_kill(
    server: Server, admin: Person, actor: Person, data: bytes
) -> None:
    upload = storing(actor)
    upload_id, *_ = [leave(upload, data) for _ in range(3)]
    limit = ("RESOURCE_EXHAUSTED", "TOO_MANY_UPLOADS", f"would have {4 << 20} bytes, you may have {3 << 20}")
    with fails_with(*limit):
        upload.send(upload.spec(data), *upload.chunks(data))
    server.kill()
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        upload = upload.through(Person(channel, actor.token, actor.user_id))
        with fails_with(*limit):
            upload.send(upload.spec(data), *upload.chunks(data))
        assert committed(upload, upload_id) == 50
        upload.send(upload.resumable(data, upload_id, 50), *upload.chunks(data[50:]))
        upload.send(upload.spec(data), *upload.chunks(data))
    # The next test calls over this channel, which has lost its connection.
    grpc.channel_ready_future(admin.channel).result()


def test_a_disk_that_is_almost_full_takes_updates_only(disk: Path, upload: Upload, data: bytes) -> None:
    left = 500_000 if upload.method == "SubmitUpdate" else 1_000_000
    disk.write_text(str(left + len(data) - 1))
    with fails_with("RESOURCE_EXHAUSTED", "DISK_FULL", "almost full") as error:
        upload.send(upload.spec(data), *upload.chunks(data))
    assert {"QuotaFailure", "RetryInfo"} <= set(error.details.details)
    disk.write_text(str(left + len(data)))
    upload.send(upload.spec(data), *upload.chunks(data))


def test_a_disk_that_is_almost_full_begins_no_training_of_a_stored_model(disk: Path, actor: Person) -> None:
    upload = storing(actor)
    model = upload.send(upload.spec(FILE), *upload.chunks(FILE)).model
    disk.write_text("999999")
    with fails_with("RESOURCE_EXHAUSTED", "DISK_FULL", "almost full") as error:
        actor.create(b"", model_id=model.model_id)
    assert error.details.metadata == {"limit": "min_free_bytes"}
    disk.write_text("1000000")
    actor.create(b"", model_id=model.model_id)


def test_what_uploads_under_way_will_take_is_not_free(
    server: Server, disk: Path, person: Callable[..., Person], data: bytes
) -> None:
    first, second = storing(person("ACTOR")), storing(person("ACTOR"))
    with Halted(server, first, FILE) as halted:
        # The half of it that has arrived is not free any more; it may still be on its way.
        disk.write_text(str(1_000_000 + len(FILE) // 2 + len(data)))
        until(lambda: takes(second, data))
        disk.write_text(str(1_000_000 + len(FILE) // 2 + len(data) - 1))
        other = model_file(new_number())
        assert len(other) == len(data)
        with fails_with("RESOURCE_EXHAUSTED", "DISK_FULL", "almost full"):
            second.send(second.spec(other), *second.chunks(other))
        halted.finish()


def takes(upload: Upload, data: bytes) -> bool:
    """Sends a file, which only a disk that is almost full may keep away."""
    try:
        upload.send(upload.spec(data), *upload.chunks(data))
    except grpc.RpcError as error:
        if read_error(error).reason == "DISK_FULL":
            return False
        raise
    return True


class Emptying(SystemClock):
    """While a user waits, the operator makes room."""

    def __init__(self, disk: Path) -> None:
        self.waits: list[float] = []
        self._disk = disk

    def sleep_for(self, duration: float) -> None:
        self.waits.append(duration)
        self._disk.write_text(str(1 << 40))


def test_the_sdk_waits_for_room(server: Server, disk: Path, actor: Person) -> None:
    clock = Emptying(disk)
    disk.write_text("0")
    with fr.Client(grpc.insecure_channel(server.address), actor.token, clock=clock) as client:
        model = client.upload_model(MODEL)
        assert client.get_model(model.model_id).version == 0
    (wait,) = clock.waits
    assert wait >= 10
