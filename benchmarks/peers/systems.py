"""The systems that are compared, and what an environment of each is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A system.

    Attributes:
        label: What it is called in tables.
        packages: What pip installs into its environment; nothing for fedround, which is in the benchmarks' own.
        environment: Folder of its environment, below .peers; systems may share one.
        is_limit: Whether it does nothing but the calls.
    """

    label: str
    packages: tuple[str, ...] = ()
    environment: str = ""
    is_limit: bool = False

    @property
    def is_peer(self) -> bool:
        """Whether it is something else than fedround."""
        return bool(self.packages)


SYSTEMS = {
    "fedround": System("fedround"),
    "fedround_sdk": System("fedround, SDK clients"),
    "bare": System("the bare calls", is_limit=True),
    "flower_classic": System("Flower, classic server", ("flwr==1.17.0", "numpy<2"), "flower_classic"),
    "flower_superlink": System("Flower, SuperLink", ("flwr==1.41.0",), "flower_superlink"),
    "nvflare": System("NVFlare", ("nvflare==2.9.0",), "nvflare"),
    "nvflare_quick": System("NVFlare, asking often", ("nvflare==2.9.0",), "nvflare"),
}

SIMULATORS = {
    "fedround_simulation": System("fedround"),
    "flower_simulation": System("Flower, simulation", ("flwr[simulation]==1.41.0",), "flower_simulation"),
}

AGGREGATORS = {
    "byzfl": System("byzfl", ("byzfl==0.0.11",), "byzfl"),
}
