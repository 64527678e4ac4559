"""The options of the demo."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ARCHITECTURE, FACTORY = "digits", "fedround_client.demo.network:build"
"""The network's architecture, as the server knows it, and the function that builds it."""

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Settings:
    """The options of `fedround demo`.

    Attributes:
        rounds: Number of training rounds.
        clients: Number of clients.
        alpha: How similar the label distributions of the clients are.
        local_epochs: Epochs per client and round.
        seed: Determines the split, the initial weights and the order of the images.
        output: Folder for the results and the logs.
    """

    rounds: int
    clients: int
    alpha: float
    local_epochs: int
    seed: int
    output: Path


def parse(arguments: Sequence[str]) -> Settings:
    """Parses the command line; exits if it is not valid, or for --help."""
    parser = argparse.ArgumentParser(
        prog="fedround demo",
        description="Several clients, each a process with its own images, train a classifier of handwritten digits"
        " together, through a real server on this machine. Ctrl-C ends all processes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=_between(int, 1, 1000), default=8, help="number of rounds", metavar="N")
    parser.add_argument("--clients", type=_between(int, 1, 50), default=5, help="number of clients", metavar="N")
    parser.add_argument(
        "--alpha",
        type=_between(float, 0.01, 1000),
        default=0.3,
        help="concentration of the Dirichlet distribution of labels: the smaller, the less similar are the clients",
    )
    parser.add_argument(
        "--local-epochs", type=_between(int, 1, 100), default=3, help="epochs per client and round", metavar="N"
    )
    parser.add_argument("--seed", type=_between(int, 0, 2**32 - 1), default=1, help="seed of all random numbers")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for results and logs", metavar="DIR")
    return Settings(**vars(parser.parse_args(arguments)))


def _between(kind: type[Number], least: Number, most: Number) -> Callable[[str], Number]:
    def parse_number(text: str) -> Number:
        number = kind(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return number

    parse_number.__name__ = kind.__name__  # for argparse's message "invalid int value"
    return parse_number
