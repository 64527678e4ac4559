"""Takes the pictures of docs/dashboard.md: a real training on a real server, in Chromium.

    python scripts/screenshots.py

Six participants train until a round in which one has failed, one is slow, and one has lost its connection.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import fedround_client as fr

DOCS = Path(__file__).parent.parent / "docs"
HOSPITALS = ("Aarau", "Basel", "Chur", "Genève", "Lugano", "Sion")
HELD_ROUND = 24
"""The round, from 0, in which the pictures are taken."""
FAILS, IS_SLOW, IS_LOST = "Chur", "Sion", "Lugano"
PICTURES = {
    "dashboard": {"viewport": {"width": 1280, "height": 860}},
    "dashboard-dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "dashboard-phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
MAX_BYTES = 150_000


class Hospital:
    """A participant with numbers of its own."""

    def __init__(self, number: int) -> None:
        self.name = HOSPITALS[number]
        self.examples = 400 + 230 * number
        self.random = np.random.default_rng(number)
        self.held = threading.Event()
        self.client: fr.Client | None = None

    def train(self, model: dict[str, np.ndarray], round: fr.Round) -> Any:
        """Trains, or does not deliver in the last round."""
        if round.number >= HELD_ROUND:
            if self.name == FAILS:
                raise MemoryError("CUDA out of memory")
            if self.name == IS_LOST and self.client is not None:
                self.client.close()
            if self.name in (IS_SLOW, IS_LOST):
                self.held.wait()
        progress = np.exp(-0.13 * round.number)
        for name in model:
            model[name] += self.random.normal(0, 0.02 + 0.1 * progress, model[name].shape).astype(np.float32)
        return model, self.examples, {"train_loss": 0.21 + 1.9 * progress + self.random.normal(0, 0.015)}

    def evaluate(self, model: dict[str, np.ndarray], round: fr.Round) -> Any:
        """Reports metrics that become better."""
        progress = np.exp(-0.11 * round.number)
        noise = self.random.normal(0, 0.008)
        return {"accuracy": 0.93 - 0.42 * progress + noise, "loss": 0.3 + 1.7 * progress - noise}, self.examples // 5

    def participate(self, server: str, token: str) -> None:
        """Takes part until the end of the training or of this program."""
        with suppress(MemoryError, fr.FedroundError, ValueError), fr.connect(server, token) as client:
            self.client = client
            client.participate(self.train, self.evaluate)


@contextmanager
def program(pattern: str, *arguments: str, **environment: str) -> Iterator[re.Match[str]]:
    """Runs a module; yields what it prints once it is ready."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("FEDROUND_")}
    with subprocess.Popen(
        [sys.executable, "-m", *arguments], env={**variables, **environment}, text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield next(filter(None, (re.search(pattern, line) for line in process.stdout)))
        finally:
            process.send_signal(signal.SIGINT)


def train(server: str, admin: fr.Client, stack: ExitStack) -> str:
    """Runs a training until the round of the pictures; returns its id."""
    hospitals = [Hospital(number) for number in range(len(HOSPITALS))]
    users = [admin.create_user(hospital.name) for hospital in hospitals]
    _, token = admin.create_user("radiology", "ACTOR")
    actor = stack.enter_context(fr.connect(server, token))
    for hospital, (_, client_token) in zip(hospitals, users, strict=True):
        stack.callback(hospital.held.set)
        threading.Thread(target=hospital.participate, args=(server, client_token), daemon=True).start()
    training = actor.create_training(
        {"weight": np.zeros((60, 40), np.float32), "bias": np.zeros(60, np.float32)},
        name="Pneumonia on chest x-rays",
        description="DenseNet-121, pretrained; six hospitals.",
        target_num_updates=20,
        client_ids=[user.user_id for user, _ in users],
        metric_names=["accuracy", "loss"],
        selection=fr.Selection("accuracy", "MAXIMIZE"),
        aggregation=fr.aggregate(fr.FedAvg(), clipping=fr.FixedClipping(norm=5)),
        deadline=5400,
        max_retries=2,
    )
    actor.start_training(training.training_id)
    for event in actor.watch(training.training_id):
        if event.HasField("participant_failed"):
            break
    while True:
        found = actor.get_round(training.training_id)
        states = {one.name: one.subscribed for one in found.participants}
        if found.updates_arrived == len(HOSPITALS) - 3 and not states[IS_LOST]:
            return training.training_id


def take(chromium: str, url: str, link: str, training_id: str) -> None:
    """Writes the pictures."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        first = browser.new_context()
        first.new_page().goto(link)
        cookies = first.cookies()
        for name, look in PICTURES.items():
            context = browser.new_context(base_url=url, locale="en-GB", **look)
            context.add_cookies(cookies)
            page = context.new_page()
            page.goto(f"/trainings/{training_id}")
            page.wait_for_selector("#connection.on")
            page.wait_for_selector(".chart canvas")
            if "phone" not in name:
                page.hover(".plot", position={"x": 190, "y": 90})
            path = DOCS / f"{name}.png"
            page.screenshot(path=path)
            size = path.stat().st_size
            print(f"{path.name}: {size:,} bytes")
            assert size <= MAX_BYTES, f"{path.name} has more than {MAX_BYTES:,} bytes"
            context.close()
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    chromium = parser.parse_args().chromium
    if not chromium:
        parser.error("Chromium is not installed: apt-get install chromium")
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "data"
        options = ("--data-dir", str(data), "--listen", "127.0.0.1:0", "--log-level", "error")
        server = stack.enter_context(program(r"serving on (\S+)", "fedround_server", *options))[1]
        admin = stack.enter_context(fr.connect(server, (data / "admin.token").read_text().strip()))
        _, viewer = admin.create_user("tumour board", "VIEWER")
        training_id = train(server, admin, stack)
        words = ("fedround_client", "dashboard", "--listen", "127.0.0.1:0")
        variables = {"FEDROUND_SERVER": server, "FEDROUND_TOKEN": viewer}
        link = stack.enter_context(program(r"(http://[^/]+)/sign-in/link\?key=\S+", *words, **variables))
        take(chromium, link[1], link[0], training_id)


if __name__ == "__main__":
    main()
