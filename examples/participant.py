"""Takes part in a training in which this client is registered, until it ends. The data never leaves this machine."""

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
    return model, len(x)  # the update, and the number of examples behind it


with fr.connect() as client:
    client.participate(train)
