"""The systems that are compared, and what an environment of each is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A system.

    Attributes:
        label: What it is called in tables.
        packages: What pip installs into its environment; nothing for the environment that the benchmarks run in.
    """

    label: str
    packages: tuple[str, ...] = ()


SYSTEMS = {
    "fedround": System("fedround"),
    "flower_classic": System("Flower, classic server", ("flwr==1.17.0", "numpy<2")),
    "flower_superlink": System("Flower, SuperLink", ("flwr==1.41.0",)),
    "nvflare": System("NVFlare", ("nvflare==2.9.0",)),
}
