"""constraints.txt pins what `.[dev]` installs, and nothing else."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements_of(name: str, extra: str) -> list[Requirement]:
    """What a distribution requires, with one of its extras; fedround's are those of the checkout."""
    if name == "fedround":
        lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        return [Requirement(line) for line in lines]
    found = [Requirement(line) for line in requires(name) or ()]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_constraints_pin_what_a_developer_installs() -> None:
    needed: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [("fedround", ""), ("fedround", "dev")]
    missing = set()
    while left:
        name, extra = left.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        needed.add(name)
        try:
            below = requirements_of(name, extra)
        except PackageNotFoundError:
            missing.add(name)
            continue
        for one in below:
            left += [(canonicalize_name(one.name), more) for more in ("", *one.extras)]
    assert missing == set(), "run `make install`"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(found[1]) for line in lines if (found := re.match(r"([\w.-]+)==", line))}
    assert (needed - {"fedround"} - pinned, pinned - needed) == (set(), set())
