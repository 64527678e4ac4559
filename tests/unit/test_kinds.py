"""Kinds of rounds: only their own modules know them apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedround_server.domain import rounds
from fedround_server.domain.rounds import KINDS

ROUNDS = Path(rounds.__file__).parent
SERVER = ROUNDS.parent.parent
CLASSES = {type(kind).__name__ for kind in KINDS.values()}
NAMES = KINDS.keys() | {kind.public_name for kind in KINDS.values()}
CONSTANTS = NAMES | {f"ROUND_KIND_{name}" for name in NAMES}


def conditionals(tree: ast.AST) -> Iterator[int]:
    """The lines that look at which kind a round has: by its name, by its class, or by its place in the registry."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
                if any(_names_a_kind(found) for one in operands for found in ast.walk(one)):
                    yield node.lineno
            case ast.match_case() if any(_names_a_kind(found) for found in ast.walk(node.pattern)):
                yield node.pattern.lineno
            case ast.Subscript(value=ast.Name(id="KINDS"), slice=ast.Constant()):
                yield node.lineno
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]) if _classes(kinds) & CLASSES:
                yield node.lineno
            case ast.ImportFrom(module=str(module)) if {alias.name for alias in node.names} & CLASSES and (
                ".rounds" in module
            ):
                yield node.lineno


def _names_a_kind(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str(value)):
            return value in CONSTANTS
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name.startswith("ROUND_KIND_") or name in CLASSES
    return False


def _classes(node: ast.AST) -> set[str]:
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def test_no_module_but_those_of_kinds_depends_on_the_kind_of_a_round() -> None:
    found = [
        f"{path.relative_to(SERVER)}:{line}"
        for path in sorted(SERVER.rglob("*.py"))
        if ROUNDS not in path.parents and "migrations" not in path.parts
        for line in conditionals(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'if row.kind == "SWAG": pass',
        'if kind.name in ("TRAIN", "CHAINED"): pass',
        'state = 1 if KINDS["EVALUATE"] is kind else 2',
        'match kind.name:\n    case "EVALUATE": pass',
        "if isinstance(kind, Chained): pass",
        "if started.kind == event_pb2.ROUND_KIND_SWAG: pass",
        "from fedround_server.domain.rounds.train import Train",
    ],
)
def test_a_conditional_on_the_kind_is_found(source: str) -> None:
    assert list(conditionals(ast.parse(source))) != []


@pytest.mark.parametrize("source", ["kind = KINDS[row.kind]", "x = kind.name", "if training.state == ONGOING: pass"])
def test_what_asks_the_kind_itself_is_none(source: str) -> None:
    assert list(conditionals(ast.parse(source))) == []


def test_names_are_unique_and_fit_their_column() -> None:
    assert [kind.name for kind in KINDS.values()] == list(KINDS)
    assert all(len(name) <= 16 and name.isupper() for name in KINDS)
