"""PostgreSQL is restarted in mid-training: what callers get, what is logged, and that the training goes on."""

import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

import fedround_client as fr
from calls import until
from conftest import public_folder
from e2e.federation import federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED, GetTrainingRequest
from fedround.v1.training_pb2_grpc import TrainingServiceStub
from postgres import Postgres, create_database
from servers import Server


def test_a_training_goes_on_after_a_restart_of_postgresql(tmp_path: Path) -> None:
    is_training, stopped = threading.Barrier(3, timeout=60), threading.Event()

    def train(model: dict[str, np.ndarray], round: fr.Round) -> tuple[dict[str, np.ndarray], int]:
        if round.number == 1:
            is_training.wait()
            stopped.wait(60)
        return {"w": model["w"] + np.float32(1)}, 1

    with (
        public_folder() as folder,
        Postgres(folder / "postgres") as postgres,
        Server(tmp_path / "data", database=create_database(postgres.uri)) as server,
        federation(server, 2) as group,
        grpc.insecure_channel(server.address) as channel,
    ):
        training = group.actor.create_training(
            {"w": np.zeros(3, np.float32)}, name="t", client_ids=group.ids, target_num_updates=3
        )
        ends = [group.take_part(number, train) for number in range(2)]
        group.actor.start_training(training.training_id)
        is_training.wait()
        postgres.stop()
        try:
            request = GetTrainingRequest(training_id=training.training_id)
            token = (("x-token", group.actor_token),)
            with pytest.raises(grpc.RpcError) as found:
                TrainingServiceStub(channel).GetTraining(request, metadata=token)
            assert found.value.code() is grpc.StatusCode.UNAVAILABLE
            assert found.value.details() == "the database does not answer: try again"
            # The updates of the round meet a server without a database.
            stopped.set()
            until(lambda: "code=UNAVAILABLE method=/fedround.v1.RoundService/SubmitUpdate" in server.log)
        finally:
            stopped.set()
            postgres.start()
        assert [end.result(60).rounds for end in ends] == [3, 3]
        found_training = group.actor.get_training(training.training_id)
        assert (found_training.state, found_training.model_version) == (TRAINING_STATE_COMPLETED, 3)
        assert group.actor.download_model(training.model_id)["w"].tolist() == [3, 3, 3]
        assert "the database does not answer" in server.log
        assert "Traceback" not in server.log
        # PostgreSQL's messages of several lines are one line each.
        assert {line[:4] for line in server.log.splitlines()} == {time.strftime("%Y")}
