"""`fedround protoset`: print the path of the API's descriptors."""

from __future__ import annotations

from pathlib import Path

from fedround.v1 import event_pb2
from fedround_client.command.output import echo


def protoset() -> None:
    """Print the path of the API's descriptors, a FileDescriptorSet, for grpcurl, buf and code generators.

    grpcurl -protoset "$(fedround protoset)" describes and calls the API without the server's reflection.
    """
    # Generated with the stubs, beside them.
    echo(str(Path(event_pb2.__file__).with_name("fedround.protoset")))
