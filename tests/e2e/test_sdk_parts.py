"""Trainings of a part of a model with the SDK against a real server: private tensors, deltas, external bases."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround_client as fr
from calls import until
from e2e.federation import Federation, federation
from fedround.v1.training_pb2 import TRAINING_STATE_COMPLETED
from fedround_client.participation import Train
from servers import Server

State = dict[str, Any]
MODEL = {"body": np.ones((50, 40), np.float32), "lora_B": np.zeros(7, np.float32), "bn.mean": np.zeros(5, np.float32)}


class Stopped(BaseException):
    """Ends a participant's program, as Ctrl+C does."""


def take_part(group: Federation, functions: list[Train], **options: Any) -> list[BaseException | None]:
    """Lets the clients take part; returns how each ended."""

    def run(number: int) -> None:
        with group.connect(number) as client:
            client.participate(functions[number], **options)

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.exception(60) for future in [pool.submit(run, number) for number in range(len(functions))]]


@pytest.mark.parametrize("precision", ["FULL", "FLOAT16", "BFLOAT16"])
def test_private_tensors_are_each_ones_own_also_over_a_restart(server: Server, tmp_path: Path, precision: Any) -> None:
    seen: list[tuple[int, int, float, float]] = []

    def adding(number: int, last: int) -> Train:
        def train(model: State, round_: fr.Round) -> tuple[State, int]:
            if round_.number > last:
                raise Stopped
            assert (model["body"] == 1).all()
            seen.append((number, round_.number, float(model["lora_B"][0]), float(model["bn.mean"][0])))
            changed = {name: tensor + np.float32(number + 1) for name, tensor in model.items()}
            return changed, 1

        return train

    with federation(server, 2) as group:
        training = group.actor.create_training(
            MODEL,
            name="parts",
            target_num_updates=4,
            client_ids=group.ids,
            trainable=["lora_*"],
            private=["bn.*"],
            update_precision=precision,
        )
        group.actor.start_training(training.training_id)
        folder = tmp_path / "private"
        ends = take_part(group, [adding(0, 1), adding(1, 1)], private_folder=folder)
        assert [type(end) for end in ends] == [Stopped, Stopped]
        until(lambda: not any(one.subscribed for one in group.actor.get_round(training.training_id).participants))
        ends = take_part(group, [adding(0, 9), adding(1, 9)], private_folder=folder, cache=tmp_path / "cache")
        assert ends == [None, None]
        assert group.actor.get_training(training.training_id).state == TRAINING_STATE_COMPLETED
    assert sorted(seen) == [
        (number, round_number, round_number * 1.5, round_number * (number + 1))
        for number in range(2)
        for round_number in range(4)
    ]
    assert len(list(folder.iterdir())) == 2


def test_what_is_downloaded_are_deltas(server: Server, tmp_path: Path) -> None:
    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        assert (model["body"] == 1).all()
        assert round_.trainable == ("lora_?",)
        return {"lora_B": model["lora_B"] + np.float32(1)}, 1

    with federation(server, 2) as group:
        training = group.actor.create_training(
            MODEL, name="parts", target_num_updates=3, client_ids=group.ids, trainable=["lora_?"]
        )
        group.actor.start_training(training.training_id)
        assert take_part(group, [train, train], cache=tmp_path) == [None, None]
        assert group.actor.get_training(training.training_id).state == TRAINING_STATE_COMPLETED
        versions = list(group.actor.model_versions(training.model_id))
        whole = group.actor.download_model(training.model_id, to=tmp_path / "whole.safetensors")
        assert hashlib.sha256(whole.read_bytes()).hexdigest() == versions[0].sha256
        assert list(group.actor.download_model(training.model_id, part="DELTA")) == ["lora_B"]
        assert list(group.actor.download_model(training.model_id, tensors=["b*"])) == ["bn.mean", "body"]
    cached = {path.stem for path in tmp_path.glob("*.safetensors")} - {"whole"}
    # The first version, and the deltas of those that rounds started from.
    assert cached == {versions[-1].sha256, versions[-2].delta_sha256, versions[-3].delta_sha256}


def test_an_external_base_never_gets_to_the_server(server: Server, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(fr.to_safetensors({"body": MODEL["body"]}))
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()

    def train(model: State, round_: fr.Round) -> tuple[State, int]:
        assert (model["body"] == 1).all()
        return {name: tensor + np.float32(1) for name, tensor in model.items()}, 1

    with federation(server, 1) as group:
        training = group.actor.create_training(
            {"lora_B": MODEL["lora_B"]},
            name="external",
            target_num_updates=2,
            client_ids=group.ids,
            external_base_sha256=sha256,
        )
        group.actor.start_training(training.training_id)
        assert take_part(group, [train], base=base) == [None]
        final = group.actor.download_model(training.model_id)
        assert {name: tensor.tolist() for name, tensor in final.items()} == {"lora_B": [2] * 7}
        assert not (server.data_dir / "objects" / sha256[:2] / sha256).exists()
        again = group.actor.create_training(
            {"lora_B": MODEL["lora_B"]},
            name="external",
            target_num_updates=1,
            client_ids=group.ids,
            external_base_sha256=sha256,
        )
        group.actor.start_training(again.training_id)
        [end] = take_part(group, [train], training_id=again.training_id)
        assert isinstance(end, fr.BaseMissing)
        failed = group.actor.get_training(again.training_id)
        assert failed.error.reason == "PARTICIPANTS_FAILED"
        assert "BASE_MISSING" in failed.error.message
