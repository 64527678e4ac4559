"""What can be chosen about the demo."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Settings:
    """The options of `fedround demo`.

    Attributes:
        rounds: How many rounds the clients train together.
        clients: How many clients there are.
        alpha: How alike the clients' images are.
        local_epochs: How often a client goes through its images in a round.
        seed: Decides the split, the first weights and the order of the images.
        output: Folder for the results and the logs.
    """

    rounds: int
    clients: int
    alpha: float
    local_epochs: int
    seed: int
    output: Path


def parse(arguments: Sequence[str]) -> Settings:
    """Reads the command line; ends the program if it is wrong or asks for help."""
    parser = argparse.ArgumentParser(
        prog="fedround demo",
        description="Several clients, each a process with images of its own, learn handwritten digits together through"
        " a real server on this machine. Ctrl-C ends all of it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=_between(int, 1, 1000), default=8, help="rounds of training", metavar="N")
    parser.add_argument("--clients", type=_between(int, 1, 50), default=5, help="number of clients", metavar="N")
    parser.add_argument(
        "--alpha",
        type=_between(float, 0.01, 1000),
        default=0.3,
        help="concentration of the Dirichlet distribution that deals the images: the smaller, the less the clients'"
        " images are alike",
    )
    parser.add_argument(
        "--local-epochs", type=_between(int, 1, 100), default=3, help="passes over its images a round", metavar="N"
    )
    parser.add_argument("--seed", type=_between(int, 0, 2**32 - 1), default=1, help="makes the demo repeatable")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for results and logs", metavar="DIR")
    return Settings(**vars(parser.parse_args(arguments)))


def _between(kind: type[Number], least: Number, most: Number) -> Callable[[str], Number]:
    def parse_number(text: str) -> Number:
        number = kind(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return number

    parse_number.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse_number
