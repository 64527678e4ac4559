"""The descriptors of the API in the wheel, for clients without the server's reflection."""

import tomllib
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from typer.testing import CliRunner

from calls import Person
from fedround_client.command import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files() -> dict[str, FileDescriptorProto]:
    """The files in the protoset, by name, in its order."""
    printed = CliRunner().invoke(app, ["protoset"]).stdout
    path = Path(printed.removesuffix("\n"))
    assert path.is_relative_to(ROOT / "generated/fedround")
    return {file.name: file for file in FileDescriptorSet.FromString(path.read_bytes()).file}


def test_the_protoset_is_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "generated/fedround" in wheel["packages"]


def test_the_protoset_has_all_protos_with_their_comments(files: dict[str, FileDescriptorProto]) -> None:
    protos = {str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto")}
    assert protos == {name for name in files if name.startswith("fedround/")}
    for name in protos:
        comments = [one.leading_comments for one in files[name].source_code_info.location if one.leading_comments]
        assert len(comments) > 10, name


def test_the_protoset_loads_by_itself(files: dict[str, FileDescriptorProto]) -> None:
    pool = DescriptorPool()
    for file in files.values():  # each one behind its imports
        pool.Add(file)
    assert pool.FindMethodByName("fedround.v1.RoundService.SubmitUpdate").client_streaming


def test_the_protoset_is_what_the_server_describes(admin: Person, files: dict[str, FileDescriptorProto]) -> None:
    served = ProtoReflectionDescriptorDatabase(admin.channel)
    services = [name for name in served.get_services() if name.startswith("fedround.")]
    names = [served.FindFileContainingSymbol(service).name for service in services]
    for name in names:
        file, described = files[name], served.FindFileByName(name)
        names.extend(one for one in file.dependency if one not in names)
        for one in (file, described):
            one.ClearField("source_code_info")
            _clear_json_names(one)
        assert file == described, name
    assert len(names) > 10


def _clear_json_names(file: FileDescriptorProto) -> None:
    """Removes the names in JSON, which follow from the others and which generated code leaves out."""
    messages = list(file.message_type)
    for message in messages:
        messages.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")
