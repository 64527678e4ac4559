"""Feeds inputs to a target, one by one, each drawn from its own seed; and what inputs are made of."""

import logging
import random
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from sizes import SEED

CPU_SECONDS = 1.0
MEMORY = 512 << 20
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 255, 256, 1023, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1)
TEXTS = (
    "",
    "a",
    "0",
    "-1",
    "\x00",
    "\ud7ff\U0010ffff",
    "'\"; DROP TABLE",
    "../../x",
    "é" * 300,
    "x" * 3000,
    "{}",
    "[[",
)

Target = Callable[[random.Random], str]
"""Makes an input and feeds it; returns what became of it. What it raises is a finding."""
Hints = Mapping[str, Sequence[Any]]


class TooSlow(BaseException):
    """An input took more CPU time than any may."""


def fuzz(name: str, target: Target, inputs: int) -> Counter[str]:
    """Feeds so many inputs; returns how many of them came to what.

    Raises:
        AssertionError: A finding; its number and the seed bring it back.
    """
    outcomes: Counter[str] = Counter()
    with _bounded_memory(), _silence():
        for number in range(inputs):
            try:
                outcomes[_feed_patiently(name, target, number)] += 1
            except (Exception, TooSlow) as error:
                raise AssertionError(f"input {number} of {name} under FEDROUND_CHAOS_SEED={SEED}: {error!r}") from error
    return outcomes


def feed(name: str, target: Target, number: int) -> str:
    """Feeds one input, within its time."""
    with _bounded_time():
        return target(random.Random(f"{SEED} {name} {number}"))


def _feed_patiently(name: str, target: Target, number: int) -> str:
    try:
        return feed(name, target, number)
    except TooSlow:
        # Once it may have been the collector of garbage, which goes through all that this process has.
        return feed(name, target, number)


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what is logged of so many inputs from filling the memory."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _bounded_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow(f"more than {CPU_SECONDS} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Has whatever takes more than an input ever may end in a MemoryError."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    used = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def mutate(rand: random.Random, data: bytes, most: int = 6) -> bytes:
    """Changes bytes here and there: flips, overwrites, drops, doubles, inserts."""
    changed = bytearray(data)
    for _ in range(rand.randint(0, most)):
        at = rand.randint(0, len(changed))
        end = min(len(changed), at + rand.choice((1, 1, 1, 2, 4, 8, 64)))
        match rand.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rand.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rand.randrange(256)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end]
            case 4:
                changed[at:end] = rand.choice(NUMBERS).to_bytes(8, rand.choice(("little", "big")))
            case _:
                changed[at:at] = rand.randbytes(rand.choice((1, 2, 8)))
    return bytes(changed)


def pieces(rand: random.Random, data: bytes, most: int = 8) -> list[bytes]:
    """Cuts data anywhere; some pieces are empty."""
    cuts = sorted(rand.randint(0, len(data)) for _ in range(rand.randint(0, most)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def message(rand: random.Random, kind: Descriptor, hints: Hints, depth: int = 0) -> Message:
    """Makes a message with some of its fields set to something; hints give meaningful values for fields of a name."""
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if rand.random() < 0.3 + 0.15 * depth:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for _ in range(rand.randint(0, 3)):
                _put(made, field, _value(rand, key, hints, depth), _value(rand, value, hints, depth))
        elif field.is_repeated:
            values = [_value(rand, field, hints, depth) for _ in range(rand.randint(0, 3))]
            getattr(made, field.name).extend(values)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(_value(rand, field, hints, depth))
        else:
            setattr(made, field.name, _value(rand, field, hints, depth))
    return made


def _put(made: Message, field: FieldDescriptor, key: Any, value: Any) -> None:
    entries = getattr(made, field.name)
    if isinstance(value, Message):
        entries[key].CopyFrom(value)
    else:
        entries[key] = value


def _value(rand: random.Random, field: FieldDescriptor, hints: Hints, depth: int) -> Any:
    if field.name in hints and rand.random() < 0.85:
        return rand.choice(hints[field.name])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return message(rand, field.message_type, hints, depth + 1)
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rand.randbytes(rand.choice((0, 1, 4, 100)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rand.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rand.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rand.choice((0.0, -0.0, 0.1, -1.0, 1e-310, 1e300, float("inf"), float("nan")))
        case FieldDescriptor.CPPTYPE_ENUM:
            return rand.choice((0, 1, 2, 3, 99, -1))
        case _:
            bits = 31 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM) else 63
            if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32:
                bits = 32
            number = rand.choice(NUMBERS if rand.random() < 0.5 else NUMBERS[:4]) % (1 << bits)
            signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
            return -number if signed and rand.random() < 0.3 else number
