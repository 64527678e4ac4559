"""Daisy chaining compared with averaging, where every participant has only four images.

Sixteen participants train a classifier of handwritten digits for 100 local rounds of one gradient step, three times:

- FedAvg with an average after every 20 local rounds: each participant overfits its four images;
- FedDC (Kamp et al., Federated Learning from Small Datasets, ICLR 2023) with as few averages, which assigns the local
  models to other participants after every local round, so that each model sees the images of many participants;
- FedAvg with an average after every local round: the best result of averaging, with twenty times as many averages.

Run it with `python examples/fed_dc.py`; it takes a few minutes and writes fed_dc.png and fed_dc.json.
"""

import argparse
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from local_server import create_users, local_server

import fedround_client as fr

PARTICIPANTS, IMAGES = 16, 4
LOCAL_ROUNDS, PERIOD = 100, 20
HIDDEN, LEARNING_RATE = 64, 0.5
LABEL_GAP = 0.06

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arm:
    """One arm of the experiment: gradient steps per round, and the number of updates of the global model."""

    name: str
    steps: int
    versions: int
    aggregation: fr.FedAvg | fr.FedDc

    @property
    def steps_per_version(self) -> int:
        """Local rounds between two versions of the global model."""
        return LOCAL_ROUNDS // self.versions


ARMS = [
    Arm(f"FedDC, averages every {PERIOD}", 1, LOCAL_ROUNDS // PERIOD, fr.FedDc(aggregation_period=PERIOD, seed=1)),
    Arm(f"FedAvg, averages every {PERIOD}", PERIOD, LOCAL_ROUNDS // PERIOD, fr.FedAvg()),
    Arm("FedAvg, averages every 1", 1, LOCAL_ROUNDS, fr.FedAvg()),
]


def initial_model(rng: np.random.Generator) -> Arrays:
    """Returns the weights of a network with one hidden layer."""
    return {
        "hidden.weight": rng.uniform(-1 / 8, 1 / 8, (64, HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "digit.weight": rng.uniform(-1 / 8, 1 / 8, (HIDDEN, 10)).astype(np.float32),
        "digit.bias": np.zeros(10, np.float32),
    }


def probabilities(model: Arrays, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hidden activations and the probability of each digit."""
    hidden = np.maximum(images @ model["hidden.weight"] + model["hidden.bias"], 0)
    scores = hidden @ model["digit.weight"] + model["digit.bias"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, powers / powers.sum(axis=1, keepdims=True)


def step(model: Arrays, images: np.ndarray, labels: np.ndarray) -> None:
    """Takes one step of gradient descent on the cross-entropy of all images."""
    hidden, gradient = probabilities(model, images)
    gradient[np.arange(len(labels)), labels] -= 1
    gradient /= len(labels)
    back = (gradient @ model["digit.weight"].T) * (hidden > 0)
    model["digit.weight"] -= LEARNING_RATE * hidden.T @ gradient
    model["digit.bias"] -= LEARNING_RATE * gradient.sum(axis=0)
    model["hidden.weight"] -= LEARNING_RATE * images.T @ back
    model["hidden.bias"] -= LEARNING_RATE * back.sum(axis=0)


def accuracy(model: Arrays, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of images that the network classifies correctly."""
    return float((probabilities(model, images)[1].argmax(axis=1) == labels).mean())


def trainer(images: np.ndarray, labels: np.ndarray, steps: int) -> Callable[[Arrays, fr.Round], tuple[Arrays, int]]:
    """Returns the train function of a participant."""

    def train(model: Arrays, round: fr.Round) -> tuple[Arrays, int]:
        for _ in range(steps * round.local_rounds):
            step(model, images, labels)
        return model, len(labels)

    return train


def run(arm: Arm, address: str, actor_token: str, ids: list[str], tokens: list[str], seed: int) -> list[float]:
    """Runs one arm; returns the accuracy of each version of the global model on held-out images."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    held_out, subsets = order[:600], order[600 : 600 + PARTICIPANTS * IMAGES].reshape(PARTICIPANTS, IMAGES)
    with fr.connect(address, actor_token) as actor:
        training = actor.create_training(
            initial_model(rng),
            name=arm.name,
            target_num_updates=arm.versions,
            client_ids=ids,
            aggregation=arm.aggregation,
            evaluation="NEVER",
        )

        def participate(token: str, own: np.ndarray) -> None:
            with fr.connect(address, token) as client:
                client.participate(trainer(images[own], labels[own], arm.steps), training_id=training.training_id)

        threads = [threading.Thread(target=participate, args=pair) for pair in zip(tokens, subsets, strict=True)]
        for thread in threads:
            thread.start()
        actor.start_training(training.training_id)
        for thread in threads:
            thread.join()
        versions = (actor.download_model(training.model_id, version=number) for number in range(arm.versions + 1))
        return [accuracy(version, images[held_out], labels[held_out]) for version in versions]


def spread(ends: dict[str, float]) -> dict[str, float]:
    """Moves the labels at the ends of the curves apart, so that they do not overlap."""
    moved: dict[str, float] = {}
    for name, end in sorted(ends.items(), key=lambda pair: pair[1]):
        moved[name] = max(end, max(moved.values(), default=-1) + LABEL_GAP)
    return moved


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Draws the accuracy over the local rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    heights = spread({name: curve[-1] for name, curve in curves.items()})
    for arm, colour, marker in zip(ARMS, ("#0072b2", "#d55e00", "#777777"), ("o", "s", ""), strict=True):
        curve = curves[arm.name]
        steps = [number * arm.steps_per_version for number in range(len(curve))]
        axes.plot(steps, curve, color=colour, marker=marker, linewidth=2 if marker else 1, clip_on=False)
        label = f"{curve[-1]:.0%}  {arm.name}"
        axes.text(steps[-1] * 1.03, heights[arm.name], label, color=colour, verticalalignment="center")
    axes.set_title(f"{PARTICIPANTS} participants with {IMAGES} images each", loc="left", weight="bold")
    axes.set_xlabel("local rounds of each participant")
    axes.set_ylabel("accuracy on held-out images")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, 0))
    axes.set_xlim(0, LOCAL_ROUNDS)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description="Daisy chaining compared with averaging, on tiny local data sets.")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for fed_dc.png and fed_dc.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    chosen = parser.parse_args()
    with local_server() as (address, admin_token):
        users = create_users(address, admin_token, PARTICIPANTS)
        curves = {}
        for arm in ARMS:
            curves[arm.name] = run(arm, address, *users, chosen.seed)
            print(f"{arm.name:<26} accuracy {curves[arm.name][-1]:.1%}", flush=True)
    chosen.output.mkdir(parents=True, exist_ok=True)
    draw(curves, chosen.output / "fed_dc.png")
    (chosen.output / "fed_dc.json").write_text(json.dumps({"seed": chosen.seed, "accuracies": curves}, indent=2) + "\n")


if __name__ == "__main__":
    main()
