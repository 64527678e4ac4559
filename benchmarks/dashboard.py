"""Measures the dashboard in Chromium: from an update to the picture, and from a click to a page.

    python benchmarks/dashboard.py [--participants 20] [--rounds 10] [--tabs 3]

Participants submit one update after the other. In each tab, a script notes when the browser has drawn the new number of
updates. The time before is taken when SubmitUpdate is called, so the server's check and its write to the disk are part
of it. All run on one machine, by one clock. Needs Chromium and the extra `dashboard`.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import fedround_client as fr

# Two frames after the change, so that the one with it has been drawn.
NOTE = """() => {
  window.drawn = {};
  const note = () => {
    const text = ['#round-title', '.big'].map((name) => document.querySelector(name).textContent.trim()).join(' ');
    requestAnimationFrame(() => requestAnimationFrame((time) => {
      window.drawn[text] ??= performance.timeOrigin + time;
    }));
  };
  new MutationObserver(note).observe(document.querySelector('main'), { childList: true, subtree: true });
}"""


@contextmanager
def program(pattern: str, *arguments: str, **environment: str) -> Iterator[re.Match[str]]:
    """Runs a module; yields what it prints once it is ready."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, env={**variables, **environment}, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield next(filter(None, (re.search(pattern, line) for line in process.stdout)))
        finally:
            process.send_signal(signal.SIGINT)


def submit_all(clients: list[fr.Client], training_id: str, rounds: int) -> dict[str, float]:
    """Submits all updates; returns when each call began, in ms, by what the page then says."""
    begun: dict[str, float] = {}
    for number in range(rounds):
        for position, client in enumerate(clients):
            model = {"weight": np.full(1000, number + position / 100, np.float32)}
            key = f"Round {number + 1} of {rounds} {position + 1} of {len(clients)} updates"
            while True:
                begun[key] = time.time() * 1000
                try:
                    client.submit_update(training_id, number, model, 1)
                    break
                except fr.RoundNotOpen:  # the round before is being aggregated
                    time.sleep(0.01)
            time.sleep(0.15)
    return begun


def loads(page: Any, paths: list[str]) -> dict[str, float]:
    """Returns in how many ms each page is loaded and its scripts have run."""
    found = {}
    for path in paths:
        begin = time.perf_counter()
        page.goto(path)
        found[path.rpartition("/")[2]] = (time.perf_counter() - begin) * 1000
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tabs", type=int, default=3)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "data"
        words = ("fedround_server", "--data-dir", str(data), "--listen", "127.0.0.1:0", "--log-level", "error")
        server = stack.enter_context(program(r"serving on (\S+)", *words))[1]
        admin = stack.enter_context(fr.connect(server, (data / "admin.token").read_text().strip()))
        _, token = admin.create_user("actor", "ACTOR")
        users = admin.create_users([f"site {number:03}" for number in range(options.participants)])
        actor = stack.enter_context(fr.connect(server, token))
        clients = [stack.enter_context(fr.connect(server, client_token)) for _, client_token in users]
        training = actor.create_training(
            {"weight": np.zeros(1000, np.float32)},
            name="benchmark",
            target_num_updates=options.rounds,
            client_ids=[user_id for user_id, _ in users],
        )
        actor.start_training(training.training_id)
        words = ("fedround_client", "dashboard", "--listen", "127.0.0.1:0")
        variables = {"FEDROUND_SERVER": server, "FEDROUND_TOKEN": token}
        link = stack.enter_context(program(r"(http://[^/]+)/sign-in/link\?key=\S+", *words, **variables))
        driver = stack.enter_context(sync_playwright())
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        first = browser.new_context(base_url=link[1])
        first.new_page().goto(link[0])
        pages = []
        for _ in range(options.tabs):
            # A window of its own: browsers do not draw hidden tabs.
            context = browser.new_context(base_url=link[1])
            context.add_cookies(first.cookies())
            page = context.new_page()
            page.goto(f"/trainings/{training.training_id}")
            page.wait_for_selector("#connection.on")
            page.evaluate(NOTE)
            pages.append(page)
        begun = submit_all(clients, training.training_id, options.rounds)
        pages[0].wait_for_timeout(2000)
        delays = sorted(
            drawn[key] - start
            for drawn in (page.evaluate("window.drawn") for page in pages)
            for key, start in begun.items()
            if key in drawn
        )
        # Of the last update of a round, the page shows the next round.
        expected = options.tabs * options.rounds * (options.participants - 1)
        print(f"from an update to its picture, {len(delays)} of at least {expected} pictures:", end=" ")
        percentile = statistics.quantiles(delays, n=100)
        print(f"median {statistics.median(delays):.0f} ms, p95 {percentile[94]:.0f} ms, longest {delays[-1]:.0f} ms")
        home = f"/trainings/{training.training_id}"
        tabs = [home, *(f"{home}/{name}" for name in ("participants", "rounds", "versions"))]
        print("pages:", {name: f"{duration:.0f} ms" for name, duration in loads(pages[0], tabs).items()})
        browser.close()


if __name__ == "__main__":
    main()
