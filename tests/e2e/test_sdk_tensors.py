"""Tensors and metrics of many kinds against a real server, with the SDK."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedround_client as fr
from e2e.federation import federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_client.command import app
from servers import Server

State = dict[str, Any]


def test_updates_of_other_widths_are_cast_with_one_warning(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        return {"w": model["w"] + np.ones(3), "n": model["n"]}, 1

    with federation(server, 1) as group, caplog.at_level(logging.WARNING):
        model = {"w": np.zeros(3, np.float32), "n": np.array([1, 2], np.uint16)}
        training = group.run(lambda _: (train,), model, target_num_updates=3)
        assert training.state == TRAINING_STATE_COMPLETED
        found = group.actor.download_model(training.model_id)
    assert (found["w"].dtype, found["w"].tolist(), found["n"].tolist()) == (np.float32, [3, 3, 3], [1, 2])
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("fedround_client")]
    assert len(warned) == 1
    assert "'w' from float64 to float32" in warned[0]


class Attention(torch.nn.Module):
    """A network with a mask, a complex and a float8 buffer, tensors without elements, and counters."""

    def __init__(self) -> None:
        super().__init__()
        self.query = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("rotation", torch.polar(torch.ones(4), torch.arange(4.0)))
        self.register_buffer("quantized", torch.arange(4.0).to(torch.float8_e4m3fn))
        self.register_buffer("position", torch.arange(4).to(torch.uint32))
        self.register_buffer("none", torch.zeros(0, 4))


@pytest.mark.parametrize("precision", ["FULL", "FLOAT16", "INT8"])
def test_a_network_with_every_kind_of_tensor_is_trained(
    server: Server, precision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    network = Attention()
    before = network.state_dict()

    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        mine = Attention()
        mine.load_state_dict(model)
        for parameter in mine.parameters():
            parameter.data += 1
        mine.norm.num_batches_tracked += 1
        return mine.state_dict(), 1

    with federation(server, 2) as group, caplog.at_level(logging.WARNING):
        training = group.actor.create_training(
            network.state_dict(),
            name="t",
            target_num_updates=2,
            client_ids=group.ids,
            allow_non_finite_buffers=True,
            update_precision=precision,
        )

        def participate(number: int) -> fr.Participation:
            with group.connect(number) as client:
                return client.participate(train, framework="torch")

        ends = [group._pool.submit(participate, number) for number in range(2)]
        group.actor.start_training(training.training_id)
        assert [end.result(60).rounds for end in ends] == [2, 2]
        found = group.actor.download_model(training.model_id, framework="torch")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in before.items()
    }
    for name in ("mask", "rotation", "quantized", "position"):
        assert torch.equal(found[name].view(torch.uint8), before[name].view(torch.uint8)), name
    torch.testing.assert_close(found["query.weight"], before["query.weight"] + 2)
    assert found["norm.num_batches_tracked"] == 2
    # Also in half precision: the difference of equal infinities is zero.
    assert not [record for record in caplog.records if "is sent in full" in record.getMessage()]


def test_an_update_may_be_a_file(server: Server, tmp_path: Path) -> None:
    def train(model: State, round_: fr.Round) -> tuple[Any, int]:
        path = tmp_path / "update.safetensors"
        path.write_bytes(fr.to_safetensors({"w": model["w"] + 1}))
        return path, 1

    with federation(server, 1) as group:
        training = group.run(lambda _: (train,), {"w": np.zeros(2)}, target_num_updates=2)
        assert group.actor.download_model(training.model_id)["w"].tolist() == [2, 2]


def test_texts_and_lists_reach_the_actor(server: Server) -> None:
    def train(model: State, round_: fr.Round) -> tuple[State, int, dict[str, Any]]:
        metrics = {f"class_{number}": 0.5 for number in range(150)}
        return model, 1, {**metrics, "note": "on a CPU", "recall": np.array([0.5, math.nan])}

    def evaluate(model: State, round_: fr.Round) -> tuple[dict[str, Any], int]:
        return {"loss": torch.tensor(0.25), "device": "cpu"}, 1

    with federation(server, 1) as group:
        training = group.run(
            lambda _: (train, evaluate), {"w": np.zeros(2)}, target_num_updates=1, metric_names=["loss"]
        )
        trained, evaluated = [one for one in group.actor.metrics(training.model_id) if one.reporter_id]
        assert dict(trained.text_metrics) == {"note": "on a CPU"}
        assert [str(value) for value in trained.list_metrics["recall"].values] == ["0.5", "nan"]
        assert len(trained.metrics) == 150
        assert (dict(evaluated.metrics), dict(evaluated.text_metrics)) == ({"loss": 0.25}, {"device": "cpu"})
        environment = {"FEDROUND_SERVER": server.address, "FEDROUND_TOKEN": group.actor_token}
        command = ["metrics", training.model_id, "--by-reporter", "--format", "csv"]
        result = CliRunner().invoke(app, command, env=environment)
        assert result.exit_code == 0, result.output
        header, *rows = result.stdout.splitlines()
        assert {"note", "recall", "device", "loss"} <= set(header.split(","))
        assert any('"0.5, nan"' in row and "on a CPU" in row for row in rows)


def test_a_mismatch_of_names_tells_how_to_remove_the_prefix(server: Server) -> None:
    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        return {f"module.{name}": tensor for name, tensor in model.items()}, 1

    with federation(server, 1) as group:

        def start() -> str:
            model = {"w": np.zeros(2)}
            training = group.actor.create_training(model, name="t", target_num_updates=1, client_ids=group.ids)
            group.actor.start_training(training.training_id)
            return training.training_id

        start()
        with pytest.raises(fr.TensorsMismatch, match=r"fedround_client\.strip_prefix\(state_dict, 'module\.'\)"):
            group.take_part(0, train).result(60)
        training_id = start()
        group.take_part(0, lambda model, round_: (fr.strip_prefix(train(model, round_)[0]), 1)).result(60)
        assert group.actor.wait(training_id, 60).state == TRAINING_STATE_COMPLETED
