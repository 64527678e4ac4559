import json
import os

import pytest
import safetensors
import torch
from typer.testing import CliRunner

from fedround_client import from_safetensors
from fedround_client.command import app


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
def test_convert_accepts_state_dicts_and_checkpoints(tmp_path, wrap):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"weight": weight, "tied": weight, "turned": weight.T, "steps": torch.tensor(7)}
    path = tmp_path / "net.pt"
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    result = CliRunner().invoke(app, ["convert", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "net.safetensors")
    back = from_safetensors((tmp_path / "net.safetensors").read_bytes(), "torch")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_convert_unwraps_nested_checkpoints(tmp_path):
    torch.save({"model": {"state_dict": {"weight": torch.zeros(2)}}, "epoch": 3}, tmp_path / "net.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "net.pt")])
    assert result.stderr == "Took 1 tensor of 'model/state_dict'. Dropped 'epoch' (int).\n"
    assert from_safetensors((tmp_path / "net.safetensors").read_bytes()).keys() == {"weight"}


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Trap(), "not a plain state dict"),
        (torch.nn.Linear(2, 2), "it holds other objects than tensors, or torch.save has not written it\n"),
        ([torch.zeros(2)], "holds a list"),
        ({"epoch": 3, "loss": [0.5]}, "has no tensors, only 'epoch', 'loss'"),
    ],
)
def test_convert_rejects_other_objects_and_runs_no_code(tmp_path, content, text):
    assert_rejected(tmp_path, content, text)


def test_convert_rejects_the_state_of_an_optimizer(tmp_path):
    # Not a parameter of the test above: for its first optimizer torch imports seconds of code, in each process that
    # collects tests.
    assert_rejected(tmp_path, torch.optim.Adam([torch.zeros(2)]).state_dict(), "the state of an optimizer")


def assert_rejected(tmp_path, content, text):
    path = tmp_path / "net.pt"
    torch.save(content, path)
    result = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: MODEL_FORMAT: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["net.pt", "net.bin", "net.safetensors"])
@pytest.mark.parametrize("content", [b"not a model", b"", b"\x80\x02", b"PK\x03\x04 cut", b"e" * 100])
def test_convert_rejects_files_of_another_format(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    result = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    assert "MODEL_FORMAT" in result.stderr
    assert not (tmp_path / "out").exists()


def test_convert_never_overwrites_its_input(tmp_path):
    path = tmp_path / "net.safetensors"
    torch.save({"w": torch.zeros(2)}, path)
    before = path.read_bytes()
    result = CliRunner().invoke(app, ["convert", str(path)])
    assert result.exit_code == 1, result.output
    assert "name another one" in result.stderr
    assert path.read_bytes() == before


def test_convert_prints_the_result_as_json(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "net.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "net.pt"), "--format", "json"])
    written = tmp_path / "net.safetensors"
    assert json.loads(result.stdout) == {
        "file": str(written),
        "size_bytes": written.stat().st_size,
        "num_tensors": 1,
        "taken_key": "",
        "removed_prefix": "",
        "dropped": [],
    }


def test_the_file_says_that_it_has_tensors_of_torch(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "net.pt")
    assert CliRunner().invoke(app, ["convert", str(tmp_path / "net.pt")]).exit_code == 0
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_convert_says_what_it_took_removed_and_dropped(tmp_path):
    network = torch.nn.Linear(2, 3)
    state = {f"module._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    path = tmp_path / "net.pt"
    torch.save({"model_state_dict": state | {"module._orig_mod.note": "text"}, "adam": optimizer, "epoch": 3}, path)
    result = CliRunner().invoke(app, ["convert", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        "Took 2 tensors of 'model_state_dict'. Removed the prefix 'module._orig_mod.' from their names."
        " Dropped 'adam' (dict), 'epoch' (int), 'module._orig_mod.note' (str).\n"
    )
    assert from_safetensors((tmp_path / "net.safetensors").read_bytes()).keys() == {"weight", "bias"}
    told = json.loads(CliRunner().invoke(app, ["convert", str(path), "--force", "--format", "json"]).stdout)
    assert told["taken_key"] == "model_state_dict"
    assert told["removed_prefix"] == "module._orig_mod."
    assert told["dropped"] == ["adam", "epoch", "module._orig_mod.note"]


def test_convert_drops_the_state_of_an_optimizer_beside_tensors(tmp_path):
    network = torch.nn.Linear(2, 3)
    content = {"net": network.state_dict(), "adam": torch.optim.Adam(network.parameters()).state_dict()}
    torch.save(content, tmp_path / "net.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "net.pt")])
    assert "Took 2 tensors. Dropped 'adam' (the state of an optimizer).\n" in result.stderr
    assert from_safetensors((tmp_path / "net.safetensors").read_bytes()).keys() == {"net/weight", "net/bias"}
