"""`python -m fedround_server.objects`: what `fedround objects` runs. It copies files into an object store, and back."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from fedround_server.blobs import BlobDamaged, StagedBlob
from fedround_server.blobs.local import LocalBlobs
from fedround_server.blobs.objects import BucketUnusable, BucketUrl, ObjectBlobs, read_place, write_place
from fedround_server.blobs.places import BucketPlace, FolderPlace, moved_ids
from fedround_server.config import Settings
from fedround_server.domain.errors import ObjectsUnavailable
from fedround_server.domain.model import BlobRef
from fedround_server.domain.place import Place
from fedround_server.host.file_lock import locked_folder
from fedround_server.host.sync import sync_file

AT_A_TIME, BATCH = 8, 1000
PROGRESS_SECONDS = 2.0
READ_BYTES = 1 << 20


class CopyError(RuntimeError):
    """Files cannot be copied; the message says what to do."""


@dataclass
class Copied:
    """What was done.

    Attributes:
        num_copied: How many files were copied.
        bytes_copied: Their size, in bytes.
        num_present: How many files the destination had.
        problems: What is wrong, one sentence for each file.
    """

    num_copied: int = 0
    bytes_copied: int = 0
    num_present: int = 0
    problems: list[str] = field(default_factory=list)


def copy(source: str, target: str, *, verify: bool, progress: Callable[[Copied], None]) -> Copied:
    """Copies all files of a data directory into a bucket, or of a bucket into a data directory.

    Each is compared with its digest on the way. A file that the destination has, with its size, is not copied. The data
    directory remembers where its files are if all could be copied. A source without files counts as mistyped.

    Args:
        source: A data directory, or the s3:// URL of a bucket.
        target: The other one.
        verify: Read the files that the destination has, too.
        progress: Called after each file.

    Raises:
        CopyError: It cannot be done.
        ObjectsUnavailable: The bucket cannot be used any more.
        OSError: A file cannot be read or written.
    """
    if _is_url(source) == _is_url(target):
        raise CopyError("one of FROM and TO must be a data directory, the other one s3://BUCKET or s3://BUCKET/PREFIX")
    data_dir, url = (Path(target), source) if _is_url(source) else (Path(source), target)
    settings = _settings(url)
    if not data_dir.is_dir():
        raise CopyError(f"{data_dir} is no folder: name the data directory of a server")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(data_dir))
        except RuntimeError:
            raise CopyError(f"a server uses {data_dir}: stop it first, so that no file comes after the copy") from None
        place = read_place(data_dir)
        if place not in ("", url):
            raise CopyError(f"the files of {data_dir} are in {place}: copy them from there")
        bucket = BucketUrl(url)
        try:
            bucket.check()
        except BucketUnusable as error:
            raise CopyError(f"{url}: {error}") from error
        local = LocalBlobs(data_dir)
        stack.callback(local.close)
        remote = ObjectBlobs(data_dir, bucket, settings.objects_cache_bytes)
        stack.callback(remote.close)
        copies = _Copies(local, remote, verify, progress)
        places: list[Place] = [FolderPlace(data_dir.absolute(), local), BucketPlace(url.rstrip("/"), remote)]
        origin, destination = reversed(places) if _is_url(source) else places
        if next(origin.stored(), None) is None:
            raise CopyError(f"{source} has no files: check its name")
        ids = moved_ids(origin, destination)
        if _is_url(source):
            copies.run(copies.to_folder, origin.stored())
            remains = ""
        else:
            if local.unsettled() or any(data_dir.glob("process-*/journal/*")):
                raise CopyError(f"start the server on {data_dir} once, and stop it: it has to recover small files")
            copies.run(copies.to_bucket, origin.stored())
            remains = url
        if not copies.done.problems:
            if ids != destination.ids():
                destination.replace(ids)
            write_place(data_dir, remains)
        return copies.done


class _Copies:
    """Copies blobs, several at a time."""

    def __init__(
        self, local: LocalBlobs, remote: ObjectBlobs, verify: bool, progress: Callable[[Copied], None]
    ) -> None:
        self.done = Copied()
        self._local = local
        self._remote = remote
        self._verify = verify
        self._progress = progress

    def run(self, copy_one: Callable[[BlobRef], bool], blobs: Iterable[BlobRef]) -> None:
        """Copies blobs with a function that returns whether it copied one; what is damaged is a problem."""

        def attempt(blob: BlobRef) -> tuple[BlobRef, bool | BlobDamaged]:
            try:
                return blob, copy_one(blob)
            except BlobDamaged as error:
                return blob, error

        left = iter(blobs)
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            while batch := list(islice(left, BATCH)):
                for blob, result in pool.map(attempt, batch):
                    self._count(blob, result)
                    self._progress(self.done)

    def _count(self, blob: BlobRef, result: bool | BlobDamaged) -> None:
        if isinstance(result, BlobDamaged):
            self.done.problems.append(str(result))
        elif result:
            self.done.num_copied += 1
            self.done.bytes_copied += blob.size_bytes
        else:
            self.done.num_present += 1

    def to_bucket(self, blob: BlobRef) -> bool:
        """Copies a blob into the bucket."""
        if self._remote.has(blob) and not (self._verify and self._is_damaged(self._remote, blob)):
            return False
        self._local.examine(blob)
        self._remote.add(blob, self._local.files.local_path(blob))
        return True

    def to_folder(self, blob: BlobRef) -> bool:
        """Copies a blob into the folder."""
        path = self._local.files.local_path(blob)
        is_here = path.is_file() and path.stat().st_size == blob.size_bytes
        if is_here and not (self._verify and self._is_damaged(self._local, blob)):
            return False
        # It has been compared with its digest.
        copied = self._remote.files.fetch(blob)
        with self._local.files.stage() as (staged, target):
            copied.replace(target)
            with target.open("rb") as file:
                sync_file(file.fileno())
        self._local.commit(StagedBlob(staged, blob))
        self._local.keep(blob)
        return True

    def _is_damaged(self, blobs: LocalBlobs | ObjectBlobs, blob: BlobRef) -> bool:
        try:
            blobs.examine(blob)
        except BlobDamaged:
            return True
        return False


def _is_url(text: str) -> bool:
    return "://" in text


def _settings(url: str) -> Settings:
    chosen = {"objects": url}
    try:
        return Settings(**chosen)  # type: ignore[arg-type]
    except ValidationError as error:
        raise CopyError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def main(argv: list[str] | None = None) -> int:
    """Runs a command, with the arguments of the process by default.

    Returns:
        The exit code: 0; 1 after an error, or if a file is damaged; 2 for a wrong command line.
    """
    options = copy_parser().parse_args(_words(sys.argv[1:] if argv is None else argv))
    try:
        done = copy(options.source, options.target, verify=options.verify, progress=_Progress())
    except (CopyError, ObjectsUnavailable, RuntimeError) as error:
        return _fail(str(error), options.format)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), options.format)
    if options.format == "json":
        sys.stdout.write(json.dumps(asdict(done), indent=2) + "\n")
    else:
        for problem in done.problems:
            sys.stderr.write(f"error: {problem}\n")
        sys.stdout.write(
            f"Copied {done.num_copied} files of {done.bytes_copied:,} bytes; {done.num_present} were there.\n"
        )
        if not done.problems and _is_url(options.target):
            sys.stdout.write(f"Next: start the server with --objects {options.target}\n")
    return 1 if done.problems else 0


def copy_parser() -> argparse.ArgumentParser:
    """Returns the parser of `fedround objects copy`."""
    parser = argparse.ArgumentParser(
        prog="fedround objects copy",
        description="Copies the files of a data directory into an object store, or back, while no server runs. It can"
        " be repeated: what is there is not copied again. Credentials come from AWS_* variables; see docs/objects.md.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="FROM", help="A data directory, or s3://BUCKET/PREFIX.")
    parser.add_argument("target", metavar="TO", help="The other one of both.")
    parser.add_argument("--verify", action="store_true", help="Read the files that are there, too.")
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="For people, or JSON for programs. Default: table."
    )
    return parser


def _words(argv: list[str]) -> list[str]:
    """Returns the arguments behind the name of the only command."""
    if argv[:1] != ["copy"]:
        copy_parser().parse_args(["--help"] if argv[:1] in (["--help"], ["-h"], []) else argv[:1])
    return argv[1:]


class _Progress:
    """Shows how far a copy is, from time to time."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, done: Copied) -> None:
        if time.monotonic() - self._shown >= PROGRESS_SECONDS:
            self._shown = time.monotonic()
            sys.stderr.write(f"{done.num_copied} copied ({done.bytes_copied:,} bytes), {done.num_present} were there\n")
            sys.stderr.flush()


def _fail(message: str, form: str) -> int:
    if form == "json":
        error = {"code": "FAILED_PRECONDITION", "reason": "OBJECTS", "message": message, "metadata": {}}
        sys.stderr.write(json.dumps(error) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
