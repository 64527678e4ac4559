"""One client of the demo, as a process: participates in the training, then trains alone for comparison."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import fedround_client as fr
from fedround_client.demo import network
from fedround_client.demo.data import Digits
from fedround_client.demo.messages import Message


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the client. Its token is in the environment variable FEDROUND_TOKEN."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    images, share, held_out = (Digits.read(path) for path in (options.images, options.share, options.held_out))
    order_seed = network.derive_seed(options.seed, options.number)

    def train(model: network.State, round: fr.Round) -> fr.Update:
        Message("training", round.model_version).write()
        seed = network.derive_seed(order_seed, round.model_version)
        trained = network.train(model, images, options.local_epochs, seed)
        Message("trained", round.model_version, (network.accuracy(trained, held_out),)).write()
        return fr.Update(trained, len(images))

    def evaluate(model: network.State, round: fr.Round) -> tuple[dict[str, float], int]:
        return {"accuracy": network.accuracy(model, share)}, len(share)

    with fr.connect(options.server) as client:
        client.participate(train, evaluate, training_id=options.training_id)

    Message("alone").write()
    start = network.initial_state(options.seed)
    curve = network.learning_curve(start, images, held_out, options.rounds, options.local_epochs, order_seed)
    Message("done", accuracies=tuple(curve)).write()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One client of `fedround demo`.")
    parser.add_argument("--server", required=True)
    parser.add_argument("--training-id", required=True)
    parser.add_argument("--images", type=Path, required=True, help="npz file with the client's own images")
    parser.add_argument("--share", type=Path, required=True, help="npz file with its held-out images, for evaluation")
    parser.add_argument("--held-out", type=Path, required=True, help="npz file with the held-out images of all clients")
    parser.add_argument("--number", type=int, required=True, help="number of the client, from 0")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="how many rounds to train alone")
    parser.add_argument("--local-epochs", type=int, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
