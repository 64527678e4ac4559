"""The complete demo, in its own processes."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calls import until
from fedround_client import from_safetensors
from fedround_client.demo import network
from fedround_client.demo.data import load, split
from fedround_client.demo.messages import Message
from fedround_client.demo.settings import parse

THEIRS = "postgresql://127.0.0.1:1/theirs"


def start_demo(output: Path, *options: str) -> subprocess.Popen[str]:
    """Starts the demo where the settings of another server are, which it must ignore."""
    (output.parent / "fedround.toml").write_text(f'database = "{THEIRS}"\n')
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TMPDIR": str(output.parent),
        "FEDROUND_DATABASE": THEIRS,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "fedround_client.demo.run", f"--output={output}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=output.parent,
    )


def processes_of(demo_folder: Path) -> list[str]:
    """Returns the command lines of all processes of a demo, which share its folder for temporary files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={demo_folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.mark.examples
@pytest.mark.timeout(600)
def test_the_demo_writes_a_correct_report_plots_and_the_model(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    with start_demo(output) as demo:
        text, _ = demo.communicate()
    assert demo.returncode == 0, text
    rounds = re.findall(r"^round +(\d+) of 8: 5 updates, accuracy", text, re.MULTILINE)
    assert rounds == [str(number) for number in range(1, 9)]

    report = json.loads((output / "report.json").read_text())
    file = (output / "model.safetensors").read_bytes()
    model = from_safetensors(file)
    images = split(load(), report["clients"], report["alpha"], report["seed"])
    assert report["model_sha256"] == hashlib.sha256(file).hexdigest()
    assert report["images"] == [len(digits) for digits in images.clients]
    assert (report["rounds"], report["clients"], len(report["accuracy_by_round"])) == (8, 5, 9)
    assert report["rounds_left_out"] == [0] * 5
    # The mean of the accuracies that the clients reported on their shares is that on all held-out images.
    assert report["final_accuracy"] == report["accuracy_by_round"][-1]
    assert report["final_accuracy"] == pytest.approx(network.accuracy(model, images.held_out))
    assert report["final_accuracy"] >= 0.95
    assert report["centralised_accuracy"] >= 0.95
    # The point of the demo: no client alone is as good.
    assert len(report["local_accuracies"]) == 5
    assert max(report["local_accuracies"]) < report["final_accuracy"]
    found = report["uncertainty"]
    assert (found["degrees"][0], found["degrees"][-1]) == (0, 180)
    upright, *rotated = found["predictive_entropy"]
    assert all(upright < entropy for entropy in rotated)
    parts = zip(found["expected_entropy"], found["mutual_information"], strict=True)
    assert found["predictive_entropy"] == pytest.approx([sum(pair) for pair in parts], abs=1e-4)
    for picture in ("accuracy.png", "uncertainty.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("fedround-demo-*")) == []
    until(lambda: not processes_of(tmp_path))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.examples)]
)
@pytest.mark.examples
def test_a_signal_ends_all_processes(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with start_demo(tmp_path / "demo", "--rounds=1000", "--clients=2") as demo:
        assert demo.stdout is not None
        while "clients at" not in demo.stdout.readline():
            assert demo.poll() is None
        assert any("spawn_main" in command for command in processes_of(tmp_path))  # the engine's worker
        demo.send_signal(number)
        text = demo.stdout.read()
    assert demo.returncode == code
    assert text.splitlines()[-1] == f"Stopped by {number.name}. Nothing is left running."
    assert "Traceback" not in text
    assert list(tmp_path.glob("fedround-demo-*")) == []
    until(lambda: not processes_of(tmp_path))


def test_messages_are_written_and_read(capsys: pytest.CaptureFixture[str]) -> None:
    message = Message("trained", 3, (0.5,))
    message.write()
    assert Message.read(capsys.readouterr().out) == message


@pytest.mark.parametrize("options", [["--clients=0"], ["--rounds=x"], ["--alpha=nan"], ["--seed=-1"]])
def test_invalid_options_are_rejected(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(options)
    assert ended.value.code == 2
    assert options[0].partition("=")[0] in capsys.readouterr().err
