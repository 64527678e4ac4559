"""Clients of simulations, and what the workers import."""

import random
import sys
import time

import numpy as np

import fedround_client as fr
from fedround_client import round_model


def make_model():
    return {"w": np.zeros(8, np.float32), "b": np.zeros((), np.float64)}


def make_client(index):
    target = np.random.normal(size=8)  # from the global generator, which the simulation seeds

    def train(model, round):
        model["w"] += 0.3 * (target - model["w"] + np.random.normal(size=8)).astype(np.float32)
        model["b"] += random.random() / (index + 3)
        return model, 1 + index % 5, {"loss": float(index)}

    def evaluate(model, round):
        return {"distance": float(np.abs(target - model["w"]).mean())}, 4

    return train, evaluate


def make_client_that_counts(index):
    calls = []

    def train(model, round):
        calls.append(round.number)
        model["w"][:] = len(calls)
        return model, 1

    return train


downloads = []


def make_client_that_counts_downloads(index):
    if not downloads:
        download = round_model.download
        downloads.append(None)
        round_model.download = lambda *words, **options: (downloads.append(index), download(*words, **options))

    def train(model, round):
        model["w"] += 1
        return model, 1, {"downloads": len(downloads) - 1}

    return train


def make_client_with_a_tensor_of_its_own(index):
    calls = []

    def train(model, round):
        assert float(model["b"]) == len(calls) * (index + 1)
        calls.append(round.number)
        model["b"] += index + 1
        model["w"] += 1
        return model, 1

    return train


def make_client_that_fails_at_3(index):
    if index == 3:
        raise KeyError("no data")
    return lambda model, round: (model, 1)


def make_client_that_raises_at_2(index):
    def train(model, round):
        if index == 2:
            raise ValueError("boom")
        return model, 1

    return train


def make_client_that_raises(index):
    def train(model, round):
        raise ValueError(f"boom {index}")

    return train


def make_client_that_sleeps(index):
    def train(model, round):
        sys.stdout.write("asleep\n")
        sys.stdout.flush()
        time.sleep(600)

    return train


def make_nothing(index):
    return None


not_a_function = 3


def make_client_with_control_variates(index):
    def train(model, round):
        for _ in range(3):
            gradients = {"w": (index + 1) * (model["w"] - index)}
            model["w"] -= 0.1 * round.control.correct(gradients)["w"]
        return fr.Update(model, 1, local_steps=3, learning_rate=0.1)

    return train
