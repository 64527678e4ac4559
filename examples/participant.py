"""Takes part in a training that it is registered in, to its end. Its data never leaves it."""

import numpy as np

import fedround_client as fr

rng = np.random.default_rng()
x = rng.normal(size=(100, 3)).astype(np.float32)
y = x @ np.float32([1, -2, 3]) + np.float32(0.5)


def train(model, round):
    for _ in range(10):
        error = x @ model["weight"] + model["bias"] - y
        model["weight"] -= 0.1 * x.T @ error / len(x)
        model["bias"] -= 0.1 * error.mean()
    return model, len(x)  # what was learnt, and from how many examples


with fr.connect() as client:
    client.participate(train)
