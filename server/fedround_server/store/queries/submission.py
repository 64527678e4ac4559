"""Whether what a participant submits fits; runs inside verbs about rounds, behind a lock of its training."""

import json
from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache, cached
from peewee import ModelSelect

from fedround_server.domain.errors import (
    FieldInvalid,
    MetricsExist,
    NotInCohort,
    NumExamples,
    RoundNotOpen,
    TrainingNotFound,
    UpdateExists,
)
from fedround_server.domain.model import Manifest, differences
from fedround_server.domain.round import RoundKind, RoundState
from fedround_server.domain.swag import MEAN, moments
from fedround_server.domain.update import NewUpdate, NormBound, Update
from fedround_server.store.db.compiled import compiled_values
from fedround_server.store.queries.model import model_info
from fedround_server.store.queries.round import find_assignment, find_round, find_submission, get_round, is_member
from fedround_server.store.queries.training import took_part
from fedround_server.store.tables.mapping import to_manifest, to_spec, to_update
from fedround_server.store.tables.schema import ModelRow, RoundRow, TrainingRow, UpdateRow

CACHED_TENSORS = 20_000
"""Tensors of all manifests that are cached; each takes some 500 bytes."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What an update must look like to be accepted.

    Attributes:
        manifest: Its tensors.
        differences: Those of one that tells differences in half precision; None if none may.
        bound: How far it may be from its origin.
        receipt: Set if it was accepted before.
    """

    manifest: Manifest
    differences: Manifest | None
    bound: NormBound | None
    receipt: Update | None


def admit(training: TrainingRow, new: NewUpdate) -> Admission:
    """Tells whether an update would be accepted now."""
    found = check(training, new, RoundKind.TRAIN)
    if isinstance(found, Update):
        receipt, row = found, get_round(new.training_id, new.round)
    else:
        receipt, row = None, found
    spec = to_spec(training.spec)
    [(text,)] = _manifest.all(training.model_id)
    manifest = _read_manifest(text)
    narrow, half = None, spec.update_precision.dtype
    if row.kind == RoundKind.SWAG.value:
        manifest = moments(manifest, int(spec.uncertainty.options["rank"]))
    elif half is not None:
        narrow = differences(manifest, half)
    return Admission(manifest, narrow, _bound(training, row, new.user_id, spec.max_update_norm), receipt)


def check(training: TrainingRow, new: NewUpdate, kind: RoundKind) -> RoundRow | Update:
    """Checks whether a submission fits; returns its open round, or the stored one if it is the same again."""
    if not took_part(training, new.user_id):
        raise TrainingNotFound(new.training_id)
    before = find_submission(new.training_id, new.round, new.user_id)
    if before is not None:
        return _same(before, new)
    row = find_round(new.training_id, new.round)
    if row is None or row.state != RoundState.OPEN.value or _is_report(row.kind) != (kind is RoundKind.EVALUATE):
        raise RoundNotOpen(_why_not_open(training, row, new.round, kind), training_id=new.training_id)
    if not is_member(new.training_id, new.round, new.user_id):
        raise NotInCohort(f"you do not belong to the cohort of round {new.round}: wait for the next round_started")
    spec = to_spec(training.spec)
    if not 1 <= new.num_examples <= spec.max_num_examples:
        raise NumExamples(new.num_examples, spec.max_num_examples)
    lacking = sorted(set(spec.metric_names) - set(new.metrics)) if kind is RoundKind.EVALUATE else []
    if lacking:
        raise FieldInvalid("metrics", f"the training asks for {', '.join(lacking)} too")
    return row


def _bound(training: TrainingRow, row: RoundRow, user_id: str, limit: float) -> NormBound | None:
    """Returns how far a member's update may be from what the member started from."""
    if not limit:
        return None
    origin = find_assignment(row, user_id) or model_info(training.model_id, row.model_version).blob
    return NormBound(limit, origin, f"{MEAN}/" if row.kind == RoundKind.SWAG.value else "")


def _same(before: UpdateRow, new: NewUpdate) -> Update:
    if (before.sha256 or "") == new.blob.sha256:
        if new.blob.sha256 or (before.metrics == dict(new.metrics) and before.num_examples == new.num_examples):
            return to_update(before)
        raise MetricsExist(f"you have reported other metrics for round {new.round}: they stand")
    raise UpdateExists(
        f"you have submitted another update for round {new.round}: it stands", update_id=before.update_id
    )


def _why_not_open(training: TrainingRow, row: RoundRow | None, number: int, kind: RoundKind) -> str:
    if row is None:
        current = find_round(training.training_id, training.round)
        now = "the training is not started" if current is None else f"the current round is {training.round}"
        return f"round {number} is not open: {now}"
    if row.state == RoundState.OPEN.value:
        verb_ = "SubmitMetrics" if _is_report(row.kind) else "SubmitUpdate"
        return f"round {number} is of kind {row.kind}: use {verb_}"
    return f"round {number} is {row.state}: follow the subscription for the next one"


@compiled_values
def _manifest(model_id: str) -> "ModelSelect[ModelRow]":
    return ModelRow.select(ModelRow.manifest).where(ModelRow.model_id == model_id)


@cached(LRUCache(CACHED_TENSORS, getsizeof=len), lock=Lock())
def _read_manifest(text: str) -> Manifest:
    return to_manifest(json.loads(text))


def _is_report(kind: str) -> bool:
    return kind == RoundKind.EVALUATE.value
