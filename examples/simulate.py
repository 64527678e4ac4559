"""A simulation: many clients, each with images of a few digits only, train a classifier together on this machine.

    fedround simulate simulate:make_client --clients 100 --rounds 10 --metric accuracy
    python examples/simulate.py --clients 100 --rounds 10

The first command runs in the folder of this file. Needs the extra `demo`, for the images of scikit-learn.
"""

import argparse
from functools import cache

import numpy as np
from sklearn.datasets import load_digits

import fedround_client as fr

EXAMPLES_OF_A_CLIENT = 40
HELD_OUT = 10
CLASSES = 10


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, shape (1797, 64), from 0 to 1, and their labels. Loaded once in each worker."""
    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target


def make_model() -> dict[str, np.ndarray]:
    return {"weight": np.zeros((64, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}


def make_client(index: int):
    rng = np.random.default_rng(index)
    x, y = images()
    # Three digits are frequent at this client, the others rare.
    probabilities = np.where(np.isin(y, rng.choice(CLASSES, 3, replace=False)), 1.0, 0.05)
    mine = rng.choice(len(y), EXAMPLES_OF_A_CLIENT, replace=False, p=probabilities / probabilities.sum())
    x_train, y_train, x_held_out, y_held_out = (
        x[mine[HELD_OUT:]],
        y[mine[HELD_OUT:]],
        x[mine[:HELD_OUT]],
        y[mine[:HELD_OUT]],
    )

    def train(model, round):
        for _ in range(5):
            error = probabilities_of(model, x_train) - np.eye(CLASSES, dtype=np.float32)[y_train]
            model["weight"] -= 0.5 * x_train.T @ error / len(x_train)
            model["bias"] -= 0.5 * error.mean(axis=0)
        return model, len(x_train)

    def evaluate(model, round):
        right = probabilities_of(model, x_held_out).argmax(axis=1) == y_held_out
        return {"accuracy": float(right.mean())}, len(x_held_out)

    return train, evaluate


def probabilities_of(model, x):
    """Returns the probabilities of the classes, shape (examples, classes)."""
    scores = x @ model["weight"] + model["bias"]
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulates clients that classify handwritten digits.")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    result = fr.simulate(
        make_client,
        make_model(),
        clients=options.clients,
        rounds=options.rounds,
        workers=options.workers,
        metric_names=["accuracy"],
    )
    for record in result.rounds:
        if record.kind == "EVALUATE":
            print(f"version {record.model_version}: accuracy {record.metrics['accuracy']:.3f}")
    x, y = images()
    print(f"accuracy on all images: {(probabilities_of(result.model, x).argmax(axis=1) == y).mean():.3f}")


if __name__ == "__main__":
    main()
