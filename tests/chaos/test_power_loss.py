"""Files that the journal has are there after losses of power, whatever each takes."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from chaos.power_loss import lose_power
from contracts.blobs import small
from fedround_server import failpoints
from fedround_server.blobs import SmallFile
from fedround_server.blobs.local import LocalBlobs

Groups = Sequence[Sequence[SmallFile]]


def draw_groups(draw: Random) -> Groups:
    """Draws groups of files, some of which fill blocks of the journal exactly."""
    sizes = [100, 4048, 4049, 20_000]
    return [
        [small(draw.randbytes(draw.choice(sizes))) for _ in range(draw.randint(1, 4))]
        for _ in range(draw.randint(2, 5))
    ]


def store_and_die(folder: Path, groups: Groups, failpoint: str) -> None:
    """Stores groups in a process that is killed at a point."""
    pid = os.fork()
    if pid == 0:
        try:
            failpoints.listen(failpoints.Kill(failpoint))
            blobs = LocalBlobs(folder)
            for group in groups:
                blobs.store(group)
            blobs.close()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["journal.written", "journal.synced", "blob.stored", "journal.settled"])
def test_a_start_makes_lost_files_anew(point: str, tmp_path: Path) -> None:
    lost = 0
    for seed in range(3):
        draw, folder = Random(f"{point} {seed}"), tmp_path / str(seed)
        folder.mkdir()
        groups = draw_groups(draw)
        files = [file for group in groups for file in group]
        # At the last group, which was not acknowledged yet; or when all are about to be given up.
        times = {"blob.stored": len(files), "journal.settled": 1}.get(point, len(groups))
        store_and_die(folder, groups, f"{point}:{times}")
        acknowledged = groups if point == "journal.settled" else groups[:-1]
        needed = {file.blob.sha256 for group in acknowledged for file in group if draw.random() < 0.9}
        lost += lose_power(folder, draw, is_unsynced=point == "journal.written")
        # And again, before the start had made anything anew.
        lost += lose_power(folder, draw, is_unsynced=False)
        blobs = LocalBlobs(folder)
        blobs.recover(needed)
        for file in files:
            path = blobs.files.local_path(file.blob)
            assert path.is_file() or file.blob.sha256 not in needed
            assert not path.exists() or path.read_bytes() == file.data
        assert list((folder / "journal").iterdir()) == []
        blobs.close()
    assert lost > 3
