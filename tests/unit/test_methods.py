"""The table of RPCs fits what their descriptors say."""

import pytest
from google.protobuf.descriptor import MethodDescriptor

from fedround_server.grpc_server import METHOD_NAMES, SERVICES
from fedround_server.methods import METHODS, Limit, Method, OnDrain, check_methods

RPCS = [
    pytest.param(METHODS[f"/{service.full_name}/{rpc.name}"], rpc, id=rpc.name)
    for service in SERVICES
    for rpc in service.methods
]


def test_the_table_has_every_rpc_and_no_other() -> None:
    assert METHODS.keys() == set(METHOD_NAMES)
    check_methods(METHOD_NAMES)


def test_a_method_without_an_entry_is_not_served() -> None:
    with pytest.raises(RuntimeError, match=r"who may call /a\.B/C, /a\.B/D: add an entry to methods\.py"):
        check_methods(["/a.B/D", *METHOD_NAMES, "/a.B/C"])


@pytest.mark.parametrize(("method", "rpc"), RPCS)
def test_every_stream_has_a_limit_or_is_ended_on_drain(method: Method, rpc: MethodDescriptor) -> None:
    streams = rpc.client_streaming or rpc.server_streaming
    assert streams == (method.limit is not None or method.on_drain is OnDrain.END)
    assert (method.limit is Limit.UPLOADS) == (rpc.client_streaming and not rpc.server_streaming)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_drain_rejects_file_transfers_and_ends_what_needs_no_token(method: Method) -> None:
    if method.limit in (Limit.UPLOADS, Limit.DOWNLOADS):
        assert method.on_drain is OnDrain.REJECT
    if method.on_drain is OnDrain.END:
        assert method.roles is None
