"""Files in memory: mapped, not read, and a thousand of them at once."""

import gc
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedround_server.domain.errors import UpdateMismatch
from fedround_server.engine.format import layouts as engine_layouts
from fedround_server.engine.format import manifest
from fedround_server.engine.format.layouts import Layouts
from fedround_server.engine.format.manifest import Layout, parse_header
from fedround_server.engine.format.tensors import TensorFile
from unit.safetensors_files import entry, with_header, write


def test_a_file_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    elements = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    header = json.dumps({"w": entry("F32", [elements], 0, 4 * elements)}).encode()
    file = tmp_path / "sparse"
    file.write_bytes(with_header(header))
    os.truncate(file, file.stat().st_size + 4 * elements)
    with TensorFile(file) as mapped:
        assert mapped.block("w", elements - 3, 3).tolist() == [0, 0, 0]


def test_a_file_is_not_unmapped_under_a_tensor(tmp_path: Path) -> None:
    file = tmp_path / "file"
    header = json.dumps({"w": entry("F64", [3], 0, 24)}).encode().ljust(64)
    file.write_bytes(with_header(header, np.arange(3.0).tobytes()))
    with TensorFile(file) as mapped:
        held = mapped.block("w", 1, 2)
    del mapped
    assert str(file) in Path("/proc/self/maps").read_text()
    assert held.tolist() == [1, 2]
    del held
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_equal_headers_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def parse(header: bytes, *, own: bool) -> Layout:
        parsed.append(header)
        return parse_header(header, own=own)

    monkeypatch.setattr(engine_layouts, "parse_header", parse)
    layouts = Layouts()
    one, other = {"a": np.zeros(2), "b": np.ones(3)}, {"b": np.ones(3), "a": np.zeros(2)}
    for number, arrays in enumerate((one, other, one, other)):
        file = tmp_path / str(number)
        file.write_bytes(write(arrays))
        with TensorFile(file, layouts) as mapped:
            assert mapped.block("b", 0, 3).tolist() == [1, 1, 1]
            assert mapped.header == write(arrays)[:-40]
    assert len(parsed) == 2


def test_files_of_one_kind_share_what_describes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # The cache of the latest headers has a bound of its own.
    monkeypatch.setattr(manifest, "_parse_header", manifest._parse_header.__wrapped__)
    count, files = 1000, 10

    def header(number: int) -> bytes:
        described = {f"layer.{n}.weight": entry("F32", [1], 4 * n, 4 * n + 4) for n in range(count)}
        return json.dumps({"__metadata__": {"by": str(number)}, **described}).encode()

    layouts = Layouts()
    layouts.read(header(0))
    tracemalloc.start()
    try:
        kept = [layouts.read(header(number)) for number in range(1, files + 1)]
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [layout.offsets["layer.7.weight"] - layout.data_start for layout in kept] == [28] * files
    # Eight bytes a tensor, and something a file; a parsed header takes hundreds a tensor.
    assert used < files * (count * 8 + 4000)


def test_files_of_another_kind_are_rejected(tmp_path: Path) -> None:
    layouts = Layouts()
    layouts.read(json.dumps({"a": entry("F32", [1], 0, 4)}).encode())
    with pytest.raises(UpdateMismatch, match="'a' is F32"):
        layouts.read(json.dumps({"a": entry("F32", [2], 0, 8)}).encode())
