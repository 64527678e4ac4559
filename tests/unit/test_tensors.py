"""Files in memory: mapped, not read, and a thousand of them at once."""

import json
import os
from pathlib import Path

import numpy as np

from fedround_server.engine.tensors import TensorFile
from unit.safetensors_files import entry, with_header


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
