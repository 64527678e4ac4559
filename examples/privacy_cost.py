"""What rounds cost of privacy: epsilon over rounds, for some settings.

The noise multiplier, the part of the participants that is drawn for a round, and whether noise is that of a tree decide
how epsilon grows. It needs no server: it asks the accountant that the server asks.

Run it with `python examples/privacy_cost.py`; it takes a minute and writes privacy.png and privacy.json.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from fedround_server.domain.privacy import Mechanism
from fedround_server.engine.accountant import epsilon

DELTA = 1e-5
ROUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Setting:
    """One curve, and how it is drawn."""

    name: str
    mechanism: Mechanism
    colour: str
    marker: str


SETTINGS = [
    Setting("z = 1, everybody", Mechanism(1, DELTA), "#d55e00", "o"),
    Setting("z = 5, everybody", Mechanism(5, DELTA), "#cc79a7", "D"),
    Setting("z = 1, fraction 0.1", Mechanism(1, DELTA, 0.1), "#0072b2", "s"),
    Setting("z = 1, fraction 0.01", Mechanism(1, DELTA, 0.01), "#009e73", "^"),
    Setting("z = 100, tree", Mechanism(100, DELTA, tree=True), "#777777", "v"),
]


def costs(settings: list[Setting], rounds: tuple[int, ...]) -> dict[str, list[float]]:
    """Returns epsilon after each of some numbers of rounds, by setting."""
    return {one.name: [epsilon(one.mechanism, number) for number in rounds] for one in settings}


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Draws the curves, each with its name at its end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for one in SETTINGS:
        if one.name not in curves:
            continue
        values = [(number, value) for number, value in zip(ROUNDS, curves[one.name], strict=False) if 0 < value < 100]
        axes.plot(*zip(*values, strict=True), color=one.colour, marker=one.marker, markersize=4, label=one.name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ROUNDS, [str(number) for number in ROUNDS])
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.set_xlabel("rounds")
    axes.set_ylabel(f"epsilon, with delta {DELTA:g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER")
    options = parser.parse_args()
    curves = costs(SETTINGS, ROUNDS)
    for name, values in curves.items():
        print(f"{name:22}", " ".join(f"{value:8.3f}" for value in values))
    (options.output / "privacy.json").write_text(json.dumps({"rounds": ROUNDS, "epsilon": curves}, indent=2) + "\n")
    draw(curves, options.output / "privacy.png")


if __name__ == "__main__":
    main()
