"""Rules for adapters in the SDK and the command; adapters of lower ranks."""

import numpy as np
import pytest
import torch

import fedround_client as fr
from fedround.v1.aggregation_pb2 import Aggregation
from fedround_client.command.aggregation import aggregation_option, aggregation_text

A, B = "q.lora_A.weight", "q.lora_B.weight"


@pytest.mark.parametrize(
    ("text", "made", "shown"),
    [
        ("lora_svd:rank=8", Aggregation(lora_svd=fr.LoraSvd(rank=8)), "FlexLoRA(rank=8)"),
        ("lora_stack:scaling=0.5", Aggregation(lora_stack=fr.LoraStack(scaling=0.5)), "FLoRA(scaling=0.5)"),
        ("freeze_a", Aggregation(freeze_a=fr.FreezeA()), "FFA-LoRA"),
    ],
)
def test_the_command_takes_and_shows_them(text, made, shown):
    found = aggregation_option(text, "", "", "", ())
    assert found == made
    assert aggregation_text(found) == shown


@pytest.mark.parametrize("rank", [1, 3, 4, 9])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_a_participant_truncates_its_adapters(rank, make):
    rng = np.random.default_rng(1)
    plain = {A: rng.standard_normal((4, 7)), B: rng.standard_normal((9, 4)), "low.lora_A.x.weight": np.ones((2, 7))}
    model = {name: make(array) for name, array in plain.items()} | {"q.weight": make(np.ones((9, 7)))}
    made = fr.lora.truncate(model, rank)
    assert list(made) == list(model)
    assert np.array_equal(made[A], plain[A][:rank])
    assert np.array_equal(made[B], plain[B][:, :rank])
    assert tuple(made["low.lora_A.x.weight"].shape) == (min(rank, 2), 7)
    assert made["q.weight"] is model["q.weight"]
    sent = fr.from_safetensors(fr.to_safetensors(made), framework="numpy")
    assert np.array_equal(sent[B], plain[B][:, :rank])


def test_a_rank_below_one():
    with pytest.raises(ValueError, match="rank is 0"):
        fr.lora.truncate({}, 0)
