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
        module: Its module in this folder, if that is not called as the system is.
        kinds: Of which kinds its servers are (see servers.py).
        relative_error: The largest of a number in the differences that its clients send; 0 if they send whole models.
    """

    label: str
    packages: tuple[str, ...] = ()
    environment: str = ""
    is_limit: bool = False
    module: str = ""
    kinds: tuple[str, ...] = ()
    relative_error: float = 0.0

    @property
    def is_peer(self) -> bool:
        """Whether it is something else than fedround."""
        return bool(self.packages)


SYSTEMS = {
    "fedround": System("fedround"),
    "fedround_sdk": System("fedround, SDK clients"),
    "fedround_int8": System("fedround, SDK clients, INT8", relative_error=1 / 254),
    "fedround_bfloat16": System("fedround, SDK clients, BFLOAT16", relative_error=1 / 256),
    "fedround_before": System("fedround before", module="fedround", kinds=("before",)),
    "fedround_slow": System("fedround, slow syncs", module="fedround", kinds=("slow",)),
    "fedround_slow_before": System("fedround before, slow syncs", module="fedround", kinds=("slow", "before")),
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
