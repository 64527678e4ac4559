"""`fedround collect`, against a scripted server."""

import json

import pytest

from fedround.v1.server_pb2 import CollectFilesResponse


@pytest.mark.parametrize(
    ("found", "printed"),
    [
        (CollectFilesResponse(num_files=214, size_bytes=21_474_837), "Deleted 214 files of 21,474,837 bytes.\n"),
        (CollectFilesResponse(num_files=1, size_bytes=96), "Deleted 1 file of 96 bytes.\n"),
        (CollectFilesResponse(), "No file was deleted: all are needed, or were stored within the last hour.\n"),
    ],
)
def test_collect_says_what_was_given_back(server, command, found, printed):
    call = command("collect")
    server.reply("CollectFiles", found)
    assert call.result(10).stdout == printed


def test_collect_prints_json(server, command):
    call = command("collect", "--format", "json")
    server.reply("CollectFiles", CollectFilesResponse(num_files=1, size_bytes=96))
    assert json.loads(call.result(10).stdout) == {"num_files": 1, "size_bytes": "96"}
