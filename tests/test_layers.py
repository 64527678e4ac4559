"""The layers: what a module of the server may import, and what the SDK never loads.

Imports are read from the source, also those inside functions; a few subprocesses confirm what really gets loaded.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "server" / "fedround_server"
CLIENT = ROOT / "client" / "fedround_client"
WIRE = ROOT / "wire" / "fedround_wire"
LONGEST_FILE = 400


@dataclass(frozen=True)
class Layer:
    """What the modules of a layer may import besides their own layer and the standard library."""

    own: frozenset[str] | None  # layers of fedround_server; None: all of them
    foreign: frozenset[str]  # packages of others, and fedround, the generated one


def layer(own: str | None, foreign: str = "") -> Layer:
    return Layer(None if own is None else frozenset(own.split()), frozenset(foreign.split()))


# Arrows point at what is imported, and nothing points up: each layer may import from lines above its own only.
LAYERS = {
    **dict.fromkeys(("__init__", "domain", "wakeups", "failpoints", "counters", "traces", "start_errors"), layer("")),
    "batch": layer(""),
    "host": layer("", "fedround_wire"),
    "blobs": layer("domain failpoints host", "google_crc32c obstore"),
    "aggregators": layer("domain", "torch numpy"),
    "store": layer("domain failpoints batch counters aggregators", "cachetools peewee playhouse psycopg psycopg_pool"),
    "engine": layer("domain host counters blobs aggregators", "cachetools torch safetensors numpy dp_accounting ray"),
    "coordinator": layer("domain wakeups failpoints batch host counters traces blobs store engine", "structlog"),
    "methods": layer("domain"),
    "interceptors": layer(
        "domain host counters traces coordinator methods",
        "fedround_wire grpc grpc_status google.protobuf google.rpc structlog",
    ),
    "services": layer(
        "domain coordinator interceptors aggregators",
        "fedround fedround_wire grpc grpc_health google.protobuf google_crc32c structlog",
    ),
    "config": layer("domain", "pydantic pydantic_core pydantic_settings"),
    "tls": layer("host", "grpc structlog"),
    "logs": layer("domain", "structlog"),
    **dict.fromkeys(("audit", "backup", "doctor", "objects"), layer("domain host blobs store config", "pydantic")),
    "database": layer("domain host store"),
    "grpc_server": layer(
        "domain host counters traces coordinator methods interceptors services config tls",
        "fedround google.rpc grpc grpc_channelz grpc_health grpc_reflection",
    ),
    "metrics_port": layer("counters coordinator", "prometheus_client structlog"),
    "otel": layer("traces", "opentelemetry"),
    "processes": layer("host config", "structlog"),
    "app": layer(None, "structlog"),
    "__main__": layer(None, "pydantic structlog"),
}

# The store's own layers: each may import from those before it. Of db, the audit trail alone knows the schema of tables.
SUBLAYERS = ("tables", "db", "queries", "transitions", "verbs", "store", "__init__")
DB_KNOWS_TABLES = "db/audit_trail.py"
READS = {"select", "get_or_none", "get_by_id", "raw"}
WRITES = {"create", "insert", "insert_many", "insert_from", "bulk_create", "update", "delete", "replace"}
WRITES_ON_ALL = {"save", "delete_instance", "execute"}  # also `table.delete().execute()`
WRITE_FUNCTIONS = {"insert", "save", "record"}

# What a participant has not installed, and what takes seconds to load.
NOT_IN_THE_CLIENT = {"torch", "peewee", "playhouse", "fedround_server", "sklearn", "matplotlib"}


@dataclass(frozen=True)
class Import:
    """One imported module, with its full name."""

    name: str
    line: int

    @property
    def package(self) -> str:
        """The installable thing that it belongs to; `google` is shared by several."""
        return ".".join(self.name.split(".")[: 2 if self.name.startswith("google.") else 1])


def imports(node: ast.AST, package: str, *, lazy: bool = True) -> Iterator[Import]:
    """Every import below a node; without `lazy` only those that run when the module is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from package import module` names the module only behind the `import`.
            yield from (Import(f"{base}.{alias.name}", child.lineno) for alias in child.names)
        elif lazy or not (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        ):
            yield from imports(child, package, lazy=lazy)


def modules(root: Path) -> Iterator[tuple[Path, ast.Module, str]]:
    """Each module below a package's folder: its path in the package, its tree, and the package that it lies in."""
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        yield inside, ast.parse(path.read_text(encoding="utf-8")), ".".join([root.name, *inside.parts[:-1]])


def server_violations(root: Path) -> list[str]:
    """Imports that the table does not allow, one line each."""
    found = []
    for inside, tree, package in modules(root):
        name = inside.parts[0].removesuffix(".py")
        if name not in LAYERS:
            found.append(f"{inside}: the layer {name} is not in the table")
            continue
        rule = LAYERS[name]
        for item in imports(tree, package):
            if item.package in sys.stdlib_module_names:
                continue
            if item.package == root.name:
                target = f"{item.name}.".split(".")[1]
                # What is no module of its own comes from the package's __init__: it has a version, and no more.
                allowed = rule.own is None or target == name or target in rule.own or target not in LAYERS
            else:
                allowed = item.package in rule.foreign
            if not allowed:
                found.append(f"{inside}:{item.line}: {name} may not import {item.name}")
    return found


def client_violations(root: Path) -> list[str]:
    """What the SDK imports while it is loaded, and must not. The demo and the template of `init` train, so they may."""
    return [
        f"{inside}:{item.line}: imports {item.name} at module level"
        for inside, tree, package in modules(root)
        if inside.parts[0] not in ("demo", "template")
        for item in imports(tree, package, lazy=False)
        if item.package in NOT_IN_THE_CLIENT
    ]


def wire_violations(root: Path) -> list[str]:
    """What the package that both ends share imports, and must not: it knows neither of them."""
    return [
        f"{inside}:{item.line}: imports {item.name}"
        for inside, tree, package in modules(root)
        for item in imports(tree, package)
        if item.package not in {*sys.stdlib_module_names, root.name, "google.protobuf"}
    ]


def sublayer_violations(root: Path) -> list[str]:
    """Imports within the store that point up, or from db into the tables' schema; root is the store's folder."""
    found = []
    for inside, tree, package in modules(root):
        name = inside.parts[0].removesuffix(".py")
        for item in imports(tree, f"fedround_server.{package}"):
            if not item.name.startswith("fedround_server.store."):
                continue
            target, *rest = item.name.split(".")[2:]
            up = target in SUBLAYERS and SUBLAYERS.index(target) > SUBLAYERS.index(name)
            deep = name == "db" and target == "tables" and rest[:1] != ["base"] and str(inside) != DB_KNOWS_TABLES
            if up or deep:
                found.append(f"{inside}:{item.line}: imports {item.name}")
    return found


def called(node: ast.AST) -> tuple[str, set[str]]:
    """Returns the name that a chain of calls begins with, and the methods in it: `A.b(x).c()` is A and {b, c}."""
    methods = set()
    while isinstance(node, ast.Call | ast.Attribute):
        if isinstance(node, ast.Attribute):
            methods.add(node.attr)
            node = node.value
        else:
            node = node.func
    return (node.id if isinstance(node, ast.Name) else ""), methods


def reads(node: ast.AST, *, writing: bool = False) -> Iterator[str]:
    """Every read of the database below a node, except the subselects of a statement that writes."""
    for child in ast.iter_child_nodes(node):
        root, methods = called(child) if isinstance(child, ast.Call) else ("", set())
        if isinstance(child, ast.Name) and child.id in {"compiled", "compiled_values"}:
            yield f"{child.lineno}: {child.id}"
        elif isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and not writing:
            method = child.func.attr
            if method in READS or (method == "get" and root.endswith("Row")):
                yield f"{child.lineno}: {root}.{method}()"
        yield from reads(child, writing=writing or (root.endswith("Row") and not methods.isdisjoint(WRITES)))


def writes(tree: ast.AST) -> Iterator[str]:
    """Every write to the database in a module."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in WRITE_FUNCTIONS:
            yield f"{node.lineno}: {node.func.id}()"
        elif isinstance(node.func, ast.Attribute):
            root, method = called(node)[0], node.func.attr
            if method in WRITES_ON_ALL or (method in WRITES and root.endswith("Row")):
                yield f"{node.lineno}: {root}.{method}()"


def misplaced(root: Path) -> list[str]:
    """Reads of the store outside of its queries, and writes among them; root is the store's folder."""
    rules = {"queries": writes, "transitions": reads, "verbs": reads}
    placed = [(inside, tree, rules[inside.parts[0]]) for inside, tree, _ in modules(root) if inside.parts[0] in rules]
    return [f"{inside}:{one}" for inside, tree, rule in placed for one in rule(tree)]


def put(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(source)


def test_the_table_itself_points_down_only() -> None:
    names = list(LAYERS)
    for position, (name, rule) in enumerate(LAYERS.items()):
        assert (rule.own or set()) <= set(names[:position]), name


def test_server_keeps_to_the_layers() -> None:
    assert len(list(SERVER.rglob("*.py"))) > len(LAYERS)
    assert server_violations(SERVER) == []


def test_the_store_keeps_to_its_layers_with_reads_in_queries_alone() -> None:
    assert {path.stem for path in (SERVER / "store").iterdir() if path.name != "__pycache__"} == set(SUBLAYERS)
    assert sublayer_violations(SERVER / "store") == []
    assert misplaced(SERVER / "store") == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("tables/schema.py", "from fedround_server.store.db.compiled import compiled"),
        ("db/rows.py", "from fedround_server.store.tables.schema import AuditRow"),
        ("db/run.py", "from ..queries import training"),
        ("queries/round.py", "from fedround_server.store.transitions.training import state_of"),
        ("transitions/open_round.py", "def late():\n    from fedround_server.store.verbs import round"),
        ("verbs/user.py", "from fedround_server.store.store import Store"),
        ("verbs/user.py", "UserRow.select().where(UserRow.name == name).exists()"),
        ("verbs/user.py", "row = UserRow.get_or_none(UserRow.name == name)"),
        ("verbs/user.py", "row = UserRow.get(UserRow.name == name)"),
        ("verbs/user.py", "@compiled\ndef _user(user_id): ..."),
        ("transitions/versions.py", "tagged = table.select(table.version)"),
        ("queries/user.py", "UserRow.create(user_id=user_id)"),
        ("queries/user.py", "changed = UserRow.update(name=name).where(UserRow.name == old)"),
        ("queries/user.py", "table.delete().where(table.user_id == user_id).execute()"),
        ("queries/user.py", "row.save()"),
        ("queries/user.py", "insert(UserRow(user_id=user_id))"),
    ],
)
def test_a_violation_in_the_store_is_found(tmp_path: Path, file: str, source: str) -> None:
    put(tmp_path / "store" / file, source)
    (violation,) = sublayer_violations(tmp_path / "store") + misplaced(tmp_path / "store")
    assert violation.startswith(file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("db/audit_trail.py", "from fedround_server.store.tables.schema import AuditRow"),
        ("db/rows.py", "from fedround_server.store.tables.base import Row\nRow.select()\nRow.delete()"),
        ("queries/round.py", "from fedround_server.store.queries.training import find_training\nRoundRow.select()"),
        ("queries/user.py", "known.update(row.user_id for row in UserRow.select())"),
        ("verbs/user.py", "TokenRow.delete().where(TokenRow.user_id.in_(UserRow.select(UserRow.user_id))).execute()"),
        ("verbs/user.py", "views.get(user_id)\nUserRow.create(user_id=user_id)\nrow.save()\nrecord('user_created')"),
    ],
)
def test_what_the_store_allows_is_no_violation(tmp_path: Path, file: str, source: str) -> None:
    put(tmp_path / "store" / file, source)
    assert sublayer_violations(tmp_path / "store") + misplaced(tmp_path / "store") == []


def test_only_the_composition_root_chooses_how_blobs_are_stored() -> None:
    # What callers use is in the package itself. objects.py copies from one store into another one.
    inner = {f"fedround_server.blobs.{path.stem}" for path in (SERVER / "blobs").glob("*.py")}
    chosen = {
        str(inside)
        for inside, tree, package in modules(SERVER)
        for item in imports(tree, package)
        if inside.parts[0] != "blobs" and item.name.rpartition(".")[0] in inner
    }
    assert chosen == {"app.py", "objects.py"}


def test_client_loads_neither_torch_nor_a_database() -> None:
    assert client_violations(CLIENT) == []


def test_what_is_shared_knows_neither_end(tmp_path: Path) -> None:
    assert wire_violations(WIRE) == []
    (tmp_path / "frames.py").write_text("import os\nfrom google.protobuf.descriptor import Descriptor\nimport grpc")
    assert wire_violations(tmp_path) == ["frames.py:3: imports grpc"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("domain/round.py", "import grpc"),
        ("domain/round.py", "from fedround_server.store import store"),
        ("domain/round.py", "from ..store import store"),
        ("domain/round.py", "from .. import store"),
        ("domain/round.py", "from fedround_server import blobs as files"),
        ("domain/round.py", "def late():\n    import numpy"),
        ("wakeups.py", "from fedround_server.domain import event"),
        ("blobs/local.py", "from fedround.v1 import training_pb2"),
        ("store/store.py", "from fedround_server.wakeups import Hub"),
        ("engine/exact.py", "from ...store import schema"),
        ("coordinator/training.py", "import torch"),
        ("coordinator/training.py", "from peewee import IntegrityError"),
        ("coordinator/training.py", "from fedround_server.services import convert"),
        ("coordinator/training.py", "from google.protobuf import timestamp_pb2"),
        ("services/training_service.py", "from fedround_server.store.store import Store"),
        ("interceptors/auth.py", "from fedround_server import app"),
        ("grpc_server.py", "import torch"),
        ("app.py", "import grpc"),
        ("methods.py", "from fedround_server.interceptors import auth"),
        ("util.py", "import os"),
    ],
)
def test_a_violation_in_the_server_is_found(tmp_path: Path, file: str, source: str) -> None:
    put(tmp_path / "fedround_server" / file, source)
    (violation,) = server_violations(tmp_path / "fedround_server")
    assert violation.startswith(file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("domain/round.py", "import enum\nfrom . import errors\nfrom .update import Update"),
        ("domain/round.py", "import fedround_server\nfrom fedround_server import __version__"),
        ("engine/exact.py", "import torch\nfrom ..tensors import blocks"),
        ("coordinator/training.py", "from fedround_server import blobs\nfrom fedround_server.store.store import Store"),
        ("services/convert.py", "from google.protobuf.timestamp_pb2 import Timestamp"),
        ("grpc_server.py", "import grpc\nfrom .services import training_service"),
    ],
)
def test_what_the_table_allows_is_no_violation(tmp_path: Path, file: str, source: str) -> None:
    put(tmp_path / "fedround_server" / file, source)
    assert server_violations(tmp_path / "fedround_server") == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", True),
        ("from torch.nn import functional", True),
        ("if True:\n    import peewee", True),
        ("class A:\n    import peewee", True),
        ("from fedround_server.app import serve", True),
        ("def convert():\n    import torch", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", False),
        ("import numpy", False),
    ],
)
def test_a_violation_in_the_client_is_found(tmp_path: Path, source: str, found: bool) -> None:
    (tmp_path / "models.py").write_text(source)
    assert bool(client_violations(tmp_path)) == found


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fedround_server.app", {"torch", "dp_accounting", "scipy"}),
        ("fedround_client", NOT_IN_THE_CLIENT | {"typer", "numpy"}),
        ("fedround_client.api", NOT_IN_THE_CLIENT | {"typer"}),
        ("fedround_client.command", NOT_IN_THE_CLIENT),
    ],
)
def test_loading_leaves_heavy_packages_alone(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*({absent!r} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_files_stay_short() -> None:
    folders = ["server", "client", "wire", "tests", "benchmarks", "examples", "scripts"]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}
