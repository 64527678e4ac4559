"""Rules of aggregation with one participant that sends garbage.

Nine participants train a classifier of handwritten digits for 20 rounds, once with each of five rules. One of them does
not train: it shuffles the weights of each layer of the model, and says that it has six times the examples of another.
The names, shapes, values and norms of its tensors are those of the model, so that no check of an update alone finds it.
FedAvg follows it; the median, the trimmed mean, Multi-Krum and the geometric median do not. For comparison, the first
training is one with FedAvg and nine honest participants.

Run it with `python examples/robust_rules.py`; it takes a few minutes and writes robust-rules.png and robust-rules.json.
"""

import argparse
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fed_dc import Arrays, accuracy, initial_model, step
from local_server import create_users, local_server

import fedround_client as fr
from fedround.v1.aggregation_pb2 import Aggregation, FedAvg, GeometricMedian, Median, MultiKrum, TrimmedMean

PARTICIPANTS, HELD_OUT = 9, 600
ROUNDS, STEPS = 20, 10
CLAIMED = 6
LABEL_GAP = 0.06

Train = Callable[[Arrays, fr.Round], tuple[Arrays, int]]


@dataclass(frozen=True)
class Arm:
    """One training of the experiment, and how it is drawn."""

    name: str
    aggregation: Aggregation
    colour: str
    marker: str
    has_garbage: bool = True


ARMS = [
    Arm("FedAvg, all honest", Aggregation(fed_avg=FedAvg()), "#777777", "", has_garbage=False),
    Arm("FedAvg", Aggregation(fed_avg=FedAvg()), "#d55e00", "o"),
    Arm("median", Aggregation(median=Median()), "#0072b2", "s"),
    Arm("trimmed mean", Aggregation(trimmed_mean=TrimmedMean(beta=0.2)), "#009e73", "^"),
    Arm("Multi-Krum", Aggregation(multi_krum=MultiKrum(f=1)), "#cc79a7", "D"),
    Arm("geometric median", Aggregation(geometric_median=GeometricMedian()), "#56b4e9", "v"),
]


def honest(images: np.ndarray, labels: np.ndarray) -> Train:
    """Returns the train function of a participant that trains."""

    def train(model: Arrays, round: fr.Round) -> tuple[Arrays, int]:
        for _ in range(STEPS):
            step(model, images, labels)
        return model, len(labels)

    return train


def garbage(num_examples: int, seed: int) -> Train:
    """Returns the train function of a participant that shuffles the weights of each layer."""
    rng = np.random.default_rng(seed)

    def train(model: Arrays, round: fr.Round) -> tuple[Arrays, int]:
        shuffled = {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in model.items()}
        return shuffled, CLAIMED * num_examples

    return train


def run(arm: Arm, address: str, actor_token: str, ids: list[str], tokens: list[str], seed: int) -> list[float]:
    """Runs one arm; returns the accuracy of each version of the global model on held-out images."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    held_out, subsets = order[:HELD_OUT], np.array_split(order[HELD_OUT:], PARTICIPANTS)
    functions = [honest(images[own], labels[own]) for own in subsets]
    if arm.has_garbage:
        functions[0] = garbage(len(subsets[0]), seed)
    with fr.connect(address, actor_token) as actor:
        training = actor.create_training(
            initial_model(rng),
            name=arm.name,
            target_num_updates=ROUNDS,
            client_ids=ids,
            aggregation=arm.aggregation,
            evaluation="NEVER",
        )

        def participate(token: str, train: Train) -> None:
            with fr.connect(address, token) as client:
                client.participate(train, training_id=training.training_id)

        threads = [threading.Thread(target=participate, args=pair) for pair in zip(tokens, functions, strict=True)]
        for thread in threads:
            thread.start()
        actor.start_training(training.training_id)
        for thread in threads:
            thread.join()
        versions = (actor.download_model(training.model_id, version=number) for number in range(ROUNDS + 1))
        return [accuracy(version, images[held_out], labels[held_out]) for version in versions]


def spread(ends: Mapping[str, float]) -> dict[str, float]:
    """Moves the labels at the ends of the curves downwards, so that they do not overlap."""
    moved: dict[str, float] = {}
    for name, end in sorted(ends.items(), key=lambda pair: -pair[1]):
        moved[name] = min(end, min(moved.values(), default=2) - LABEL_GAP)
    return moved


def draw(curves: Mapping[str, list[float]], path: Path) -> None:
    """Draws the accuracy over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    heights = spread({name: curve[-1] for name, curve in curves.items()})
    for number, arm in enumerate(ARMS):
        curve = curves[arm.name]
        # Most curves lie on each other: their markers take turns, and the dashes of the first one are on top.
        style = {"markevery": (number, len(ARMS) - 1)} if arm.marker else {"linestyle": "--", "zorder": 9}
        axes.plot(curve, color=arm.colour, marker=arm.marker, markersize=6, clip_on=False, **style)
        label = f"{curve[-1]:.0%}  {arm.name}"
        axes.text(len(curve) - 0.6, heights[arm.name], label, color=arm.colour, verticalalignment="center")
    title = f"One of {PARTICIPANTS} participants sends shuffled weights and claims {CLAIMED} times the examples"
    axes.set_title(title, loc="left", weight="bold", fontsize=11)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on held-out images")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, 0))
    axes.set_xlim(0, ROUNDS)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(description="Rules of aggregation with one participant that sends garbage.")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for robust-rules.png and robust-rules.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    chosen = parser.parse_args()
    with local_server() as (address, admin_token):
        users = create_users(address, admin_token, PARTICIPANTS)
        curves = {}
        for arm in ARMS:
            curves[arm.name] = run(arm, address, *users, chosen.seed)
            print(f"{arm.name:<20} accuracy {curves[arm.name][-1]:.1%}", flush=True)
    chosen.output.mkdir(parents=True, exist_ok=True)
    draw(curves, chosen.output / "robust-rules.png")
    text = json.dumps({"seed": chosen.seed, "accuracies": curves}, indent=2)
    (chosen.output / "robust-rules.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
