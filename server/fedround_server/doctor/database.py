"""The database: whether it answers, its schema, its integrity, and the files that it refers to."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fedround_server.blobs import read_entries
from fedround_server.blobs.objects import BucketUrl, ObjectFiles
from fedround_server.config import Settings
from fedround_server.doctor.data_directory import check_token_file
from fedround_server.doctor.finding import Finding
from fedround_server.domain.errors import ObjectsUnavailable, StoreUnavailable
from fedround_server.domain.model import BlobRef
from fedround_server.domain.token import hash_token
from fedround_server.store.db import inspection
from fedround_server.store.db.connection import database_name, reading
from fedround_server.store.db.place import find_database
from fedround_server.store.db.wal import check_log
from fedround_server.store.queries.audit import find_last_time
from fedround_server.store.queries.blob import page_needed_files
from fedround_server.store.queries.credentials import find_token_owners, have_certificate_names, list_live_tokens
from fedround_server.store.queries.user import list_admin_ids

INTEGRITY_SECONDS = 10.0
FILES_SECONDS = 20.0
"""How long the checks take at most that read everything."""
BATCH = 1000
MAX_NAMED = 3
AT_A_TIME = 16
"""How many files are looked for at the same time: an object store answers after a while."""


class Database:
    """The checks of one database.

    Attributes:
        last_time: When the audit log had its last entry, once that was read.
    """

    def __init__(self, settings: Settings, *, is_running: bool, has_bucket: bool = True) -> None:
        self._settings = settings
        self._has_bucket = has_bucket
        self._is_running = is_running
        self.last_time: datetime | None = None

    def check(self) -> Iterator[Finding]:
        """Checks the database; stops where the rest depends on what is wrong."""
        try:
            url = find_database(self._settings.data_dir, self._settings.database)
        except RuntimeError as error:
            yield Finding("database", "fail", str(error))
            return
        name = database_name(url)
        if isinstance(url, Path) and not url.exists():
            yield Finding("database", "note", f"{name} does not exist: the first start of a server makes it")
            return
        try:
            if isinstance(url, Path) and not self._is_running:
                check_log(url)
            with reading(url):
                yield Finding("database", "ok", f"{name} answers: {inspection.version()}")
                yield from self._check_open()
        except (StoreUnavailable, RuntimeError) as error:
            yield Finding("database", "fail", f"{name}: {error}")

    def _check_open(self) -> Iterator[Finding]:
        schema = inspection.schema()
        if not schema.can_be_used:
            newest = schema.unknown[-1]
            yield Finding("schema", "fail", f"of a newer version of fedround (it has {newest}): install that version")
            return
        if schema.missing:
            missing = ", ".join(one.name for one in schema.missing)
            yield Finding("schema", "note", f"of an older version: the next start adds {missing}")
            return
        if schema.unknown:
            newest = schema.unknown[-1]
            yield Finding("schema", "note", f"of a newer version (it has {newest}), beside which this one can go on")
        else:
            yield Finding("schema", "ok", "of this version")
        yield from map(_of_setting, inspection.durability())
        yield self._check_integrity()
        yield self._check_files()
        yield self._check_admins()
        self.last_time = find_last_time()

    def _check_integrity(self) -> Finding:
        problem = inspection.quick_check(INTEGRITY_SECONDS)
        if problem is None:
            return Finding("integrity", "note", f"not checked to the end within {INTEGRITY_SECONDS:.0f} s")
        if problem:
            return Finding("integrity", "fail", f"the database is damaged ({problem}): restore it from a backup")
        return Finding("integrity", "ok", "no damage found")

    def _check_files(self) -> Finding:
        """Checks that files exist with their size; their bytes are verified when they are used."""
        settings = self._settings
        look = partial(_look_in_folder, settings.data_dir / "objects")
        if settings.objects:
            if not self._has_bucket:
                return Finding("files", "note", f"not checked: {settings.objects} cannot be used")
            bucket = ObjectFiles(settings.data_dir, BucketUrl(settings.objects), settings.objects_cache_bytes)
            look = partial(_look_in_bucket, bucket)
        after, count = "", 0
        end, bad = time.monotonic() + FILES_SECONDS, dict[str, str]()
        try:
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                while page := page_needed_files(after, BATCH):
                    for (sha256, _), problem in zip(page, pool.map(look, page), strict=True):
                        if problem:
                            bad[sha256] = f"{sha256} ({problem})"
                    after, count = page[-1][0], count + len(page)
                    if time.monotonic() > end:
                        break
        except ObjectsUnavailable as error:
            return Finding("files", "fail", f"not checked: {error}")
        checked = f"{count} checked by size" + (", not all of them" if page else "")
        in_journal = bad.keys() & self._journaled() if bad else set()
        lost = [text for sha256, text in bad.items() if sha256 not in in_journal]
        if lost:
            more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
            problem = f"{checked}, damaged or missing: {', '.join(lost[:MAX_NAMED])}{more}: restore a backup"
            return Finding("files", "fail", problem)
        if in_journal:
            return Finding("files", "note", f"{checked}; the next start makes {len(in_journal)} anew from the journal")
        return Finding("files", "ok", checked)

    def _journaled(self) -> set[str]:
        """Returns the digests of the files that the next start makes anew if they are missing or damaged."""
        found: set[str] = set()
        for path in (self._settings.data_dir / "journal").glob("*"):
            # A running server may have removed it.
            with suppress(OSError):
                found.update(file.blob.sha256 for file in read_entries(path))
        return found

    def _check_admins(self) -> Finding:
        path = self._settings.data_dir / "admin.token"
        problem, token = check_token_file(path)
        if problem is not None:
            return problem
        now, admins = datetime.now(UTC), list_admin_ids()
        can_enter = have_certificate_names(admins) or any(list_live_tokens(user_id, now) for user_id in admins)
        if not can_enter:
            return Finding(
                "admin.token", "note", "no admin has a valid token: the next start writes one to admin.token"
            )
        if not token:
            return Finding("admin.token", "ok", f"an admin has a valid credential; {path} is kept elsewhere")
        owner = find_token_owners([hash_token(token)]).get(hash_token(token))
        if owner is None or not owner[1].is_live(now):
            return Finding("admin.token", "note", f"the token in {path} is not valid any more: remove the file")
        return Finding("admin.token", "ok", f"{path} has a valid token")


def _look_in_folder(objects: Path, file: tuple[str, int]) -> str:
    """Returns what is wrong with a file of a folder, if anything."""
    sha256, size_bytes = file
    try:
        found = (objects / sha256[:2] / sha256).stat().st_size
    except OSError as error:
        return str(error.strerror)
    return "" if found == size_bytes else f"{found} of {size_bytes} bytes"


def _look_in_bucket(bucket: ObjectFiles, file: tuple[str, int]) -> str:
    """Returns what is wrong with a file of a bucket, if anything."""
    return "" if bucket.has(BlobRef(*file)) else "not in the object store with its size"


def _of_setting(found: tuple[str, str, str]) -> Finding:
    name, value, problem = found
    return Finding(f"database {name}", "fail" if problem else "ok", f"{value}: {problem}" if problem else value)
