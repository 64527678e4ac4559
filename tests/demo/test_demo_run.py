"""The whole demo, in its own processes; small, so that it takes seconds."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedround_client import from_safetensors
from fedround_client.demo import network
from fedround_client.demo.messages import Message
from fedround_client.demo.settings import parse


def start_demo(output: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(output.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "fedround_client.demo.run", f"--output={output}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def processes_about(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder) in command:
                found.append(command)
    return found


def test_the_demo_leaves_a_report_a_plot_and_a_model(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    with start_demo(output, "--rounds=2", "--clients=2", "--alpha=1", "--local-epochs=1") as demo:
        text, _ = demo.communicate()
    assert demo.returncode == 0, text
    assert re.findall(r"^round (\d) of 2: 2 updates, accuracy", text, re.MULTILINE) == ["1", "2"]

    report = json.loads((output / "report.json").read_text())
    model = (output / "model.safetensors").read_bytes()
    assert (report["rounds"], report["clients"], len(report["local_accuracies"])) == (2, 2, 2)
    assert report["model_sha256"] == hashlib.sha256(model).hexdigest()
    assert from_safetensors(model).keys() == network.initial_state(1).keys()
    assert (output / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("fedround-demo-*")) == []
    assert processes_about(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_everything(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with start_demo(tmp_path / "demo", "--rounds=1000") as demo:
        assert demo.stdout is not None
        while "clients at" not in demo.stdout.readline():
            assert demo.poll() is None
        demo.send_signal(number)
        text = demo.stdout.read()
    assert demo.returncode == code
    assert text.splitlines()[-1] == f"Stopped by {number.name}. Nothing is left running."
    assert "Traceback" not in text
    assert list(tmp_path.glob("fedround-demo-*")) == []
    assert processes_about(tmp_path) == []


def test_messages_survive_the_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    message = Message("trained", 3, (0.5,))
    message.say()
    assert Message.read(capsys.readouterr().out) == message


@pytest.mark.parametrize("options", [["--clients=0"], ["--rounds=x"], ["--alpha=nan"], ["--seed=-1"]])
def test_impossible_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(options)
    assert ended.value.code == 2
    assert options[0].partition("=")[0] in capsys.readouterr().err
