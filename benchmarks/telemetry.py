"""Measures what telemetry costs a round: the same training with and without it, in turn, again and again.

A server and its participants, which use the SDK and return the model as it is, in threads of this process. A round
lasts from its start, as the first participant sees it, to that of the next one; the first ones are left out. Each
variant of the server takes its turn: A B A B. The figures are medians over the rounds of all turns of a variant.
Metrics are scraped once a second, which is fifteen times as often as usual. Traces go to a collector in this process
that drops them; every call is traced, and the participants of that variant make spans, too.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import fedround_client as fr
from measure import Running, cpu_seconds, fedround_server, keep, tree

WARM_UP = 3
"""Rounds at the beginning that are left out."""


@dataclass(frozen=True)
class Variant:
    """A server to measure.

    Attributes:
        arguments: More words for its command line.
        metrics: Where its metrics are scraped; empty for nowhere.
        traces: Whether the participants make spans.
    """

    arguments: tuple[str, ...] = ()
    metrics: str = ""
    traces: bool = False


METRICS = "127.0.0.1:19464"
VARIANTS = {
    "plain": Variant(),
    "metrics": Variant(("--metrics-listen", METRICS), f"http://{METRICS}/metrics"),
    "traces": Variant(("--traces",), traces=True),
}
"""The first one is what the others are compared with."""


@dataclass
class Turns:
    """What the turns of a variant took.

    Attributes:
        seconds: Each round.
        cpu: CPU seconds of the server's processes per round, of each turn.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@contextmanager
def scraped(url: str) -> Iterator[None]:
    """Scrapes metrics once a second for the time of the block."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            with urllib.request.urlopen(url, timeout=10) as answer:
                answer.read()

    thread = threading.Thread(target=scrape, daemon=True)
    if url:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if url:
            thread.join()


class Null(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc's class has no types
    """Answers every unary call with an empty message."""

    def service(self, _details: Any) -> Any:
        """Returns the same handler for all methods."""
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")


@contextmanager
def collected() -> Iterator[None]:
    """Runs a collector of traces that drops them, for this process and for servers that are started in the block."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Null(),))
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
        server.stop(None)


def turn(variant: Variant, clients: int, megabytes: float, rounds: int, turns: Turns) -> None:
    """Runs one training on a server of its own."""
    with tempfile.TemporaryDirectory(prefix="telemetry-") as folder, ExitStack() as stack:
        arguments = ("--log-level", "warning", *variant.arguments)
        server = stack.enter_context(fedround_server(Path(folder) / "data", *arguments))
        stack.enter_context(scraped(variant.metrics))
        begins, cpu = train(server, clients, megabytes, rounds + WARM_UP, traces=variant.traces)
    turns.seconds += [after - before for before, after in pairwise(begins[WARM_UP:])]
    turns.cpu.append(cpu)


def train(server: Running, clients: int, megabytes: float, rounds: int, *, traces: bool) -> tuple[list[float], float]:
    """Runs a training; returns when each of its rounds began, and the server's CPU seconds per round."""
    begins: list[float] = []
    spent: list[float] = []

    def participate(token: str, is_first: bool) -> None:
        def return_unchanged(model: Any, _: fr.Round) -> tuple[Any, int]:
            if is_first:
                begins.append(time.perf_counter())
                spent.append(cpu_seconds(tree(server.pid)))
            return model, 1

        with fr.connect(server.address, token, traces=traces) as client:
            client.participate(return_unchanged)

    with fr.connect(server.address, server.token) as admin, ThreadPoolExecutor(clients) as threads:
        made = [admin.create_user(f"client {number}", "CLIENT") for number in range(clients)]
        model = {"w": np.zeros(round(megabytes * 1e6 / 4), np.float32)}
        ids = [user.user_id for user, _ in made]
        training = admin.create_training(model, name="telemetry", target_num_updates=rounds, client_ids=ids)
        running = [threads.submit(participate, token, not number) for number, (_, token) in enumerate(made)]
        admin.start_training(training.training_id)
        for one in running:
            one.result()
    return begins, (spent[-1] - spent[WARM_UP]) / (len(spent) - 1 - WARM_UP)


def summary(found: dict[str, Turns]) -> dict[str, dict[str, float]]:
    """Returns the medians of each variant, and how much more than the first one it took."""
    base, *_ = found.values()
    seconds, cpu = statistics.median(base.seconds), statistics.median(base.cpu)
    return {
        name: {
            "seconds": round(statistics.median(turns.seconds), 5),
            "server_cpu_seconds": round(statistics.median(turns.cpu), 5),
            "more_seconds": round(statistics.median(turns.seconds) / seconds - 1, 4),
            "more_cpu": round(statistics.median(turns.cpu) / cpu - 1, 4),
        }
        for name, turns in found.items()
    }


def main() -> None:
    """Measures, prints a table, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8, help="how many take part")
    parser.add_argument("--megabytes", type=float, default=4.0, help="size of the model, in 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=60, help="how many are counted in a turn")
    parser.add_argument("--turns", type=int, default=4, help="how often each variant has its turn")
    options = parser.parse_args()
    found = {name: Turns() for name in VARIANTS}
    with collected():
        for _ in range(options.turns):
            for name, variant in VARIANTS.items():
                turn(variant, options.clients, options.megabytes, options.rounds, found[name])
                last = found[name].seconds[-options.rounds :]
                print(f"{name:>8}  median {statistics.median(last) * 1000:8.2f} ms a round", flush=True)
    results = summary(found)
    print("\nvariant   ms/round    more  server CPU ms    more")
    for name, figures in results.items():
        print(
            f"{name:<8}  {figures['seconds'] * 1000:8.2f}  {figures['more_seconds']:+6.1%}"
            f"  {figures['server_cpu_seconds'] * 1000:13.2f}  {figures['more_cpu']:+6.1%}"
        )
    sizes = {"clients": options.clients, "megabytes": options.megabytes, "rounds": options.rounds}
    keep("telemetry", {**sizes, "turns": options.turns, "variants": results})


if __name__ == "__main__":
    main()
