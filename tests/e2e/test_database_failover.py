"""The primary of PostgreSQL is killed in mid-training, and a synchronous standby takes its place: nothing is lost."""

import threading
from pathlib import Path

import numpy as np

import fedround_client as fr
from calls import until
from conftest import public_folder
from e2e.federation import Federation, federation
from postgres import Postgres, create_database
from servers import Server
from standby import Standby

ROUNDS = 3


def round_state(group: Federation, training_id: str) -> tuple[int, int]:
    """The number of the current round, and of its updates."""
    found = group.actor.get_round(training_id)
    return found.number, found.updates_arrived


def test_a_training_goes_on_at_the_standby(tmp_path: Path) -> None:
    has_submitted, goes_on = threading.Event(), threading.Event()

    def train(share: float, model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, np.ndarray], int]:
        if round.number == 1 and share > 1:
            has_submitted.wait(60)
            goes_on.wait(60)
        return {"w": model["w"] + np.float32(share)}, 1

    with (
        public_folder() as folder,
        Postgres(folder / "primary") as primary,
        Standby(folder / "standby", primary) as standby,
        Server(tmp_path / "data", database=standby.url(create_database(primary.uri))) as server,
        federation(server, 2) as group,
    ):
        training = group.actor.create_training(
            {"w": np.zeros(3, np.float32)}, name="t", client_ids=group.ids, target_num_updates=ROUNDS
        )
        ends = [
            group.take_part(number, lambda model, round, share=1 + 2 * number: train(share, model, round))
            for number in range(2)
        ]
        group.actor.start_training(training.training_id)
        # Of the second round, one update is accepted.
        until(lambda: round_state(group, training.training_id) == (1, 1))
        has_submitted.set()
        primary.fail()
        standby.promote()
        goes_on.set()
        assert [end.result(60).rounds for end in ends] == [ROUNDS, ROUNDS]
        assert group.actor.download_model(training.model_id)["w"].tolist() == [2 * ROUNDS] * 3
        with fr.connect(server.address, server.admin_token) as admin:
            admin.verify_audit()
        assert "Traceback" not in server.log
