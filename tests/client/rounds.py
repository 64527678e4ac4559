"""A participant under test, and the server's side of its rounds."""

import hashlib

import numpy as np

from client.scripted import MODEL, OK, TRAINING, USER, chunk_response
from fedround.v1 import event_pb2
from fedround.v1.event_pb2 import ROUND_KIND_TRAIN, Event, ModelInfo, RoundStarted
from fedround.v1.model_pb2 import DownloadModelResponse
from fedround.v1.round_pb2 import ReportFailureResponse, SubmitUpdateResponse
from fedround.v1.training_pb2 import (
    TRAINING_STATE_COMPLETED,
    TRAINING_STATE_ONGOING,
    GetTrainingResponse,
    GetTrainingsResponse,
    Training,
)
from fedround.v1.user_pb2 import GetMyselfResponse, User
from fedround_client import Update, from_safetensors, to_safetensors


def file_of(version):
    return to_safetensors({"w": np.full(3, version, np.float32)})


def info_of(version, file):
    return ModelInfo(model_id=MODEL, version=version, sha256=hashlib.sha256(file).hexdigest(), size_bytes=len(file))


def round_started(sequence, number, *, version=None, kind=ROUND_KIND_TRAIN, training_id=TRAINING, **options):
    version = number if version is None else version
    info = info_of(version, file_of(version))
    started = RoundStarted(**{"round": number, "kind": kind, "model": info, "local_rounds": 1, **options})
    return Event(training_id=training_id, sequence=sequence, round_started=started)


def finished(sequence, training_id=TRAINING, version=9):
    payload = event_pb2.TrainingFinished(model_id=MODEL, model_version=version)
    return Event(training_id=training_id, sequence=sequence, training_finished=payload)


def plus_one(model, round_):
    return Update({"w": model["w"] + 1}, 10, {"loss": 0.25})


class Rounds:
    """A participant under test, and the server's side of its rounds."""

    def __init__(self, server, train=plus_one, evaluate=None, training_id=TRAINING, over=(), **options):
        self.server = server
        self.call = server.run(server.client.participate, train, evaluate, training_id=training_id, **options)
        server.reply("GetMyself", GetMyselfResponse(user=User(user_id=USER)))
        if training_id is None:
            ended = [Training(training_id=id_, state=TRAINING_STATE_COMPLETED) for id_ in over]
            server.reply("GetTrainings", GetTrainingsResponse(trainings=ended))
        self.subscribe()

    def subscribe(self):
        self.request, self.rpc = self.server.stream("Subscribe")

    def send(self, *events):
        for event in events:
            self.rpc.send_response(event)

    def training_is_at(self, number, state=TRAINING_STATE_ONGOING):
        self.server.reply("GetTraining", GetTrainingResponse(training=Training(state=state, round=number)))

    def serve_model(self, version):
        request, rpc = self.server.stream("DownloadModel")
        assert (request.model_id, request.version) == (MODEL, version)
        file = file_of(version)
        rpc.send_response(chunk_response(DownloadModelResponse, file, info=info_of(version, file)))
        rpc.terminate(*OK)

    def take_tensors(self, status=OK, receipt=None):
        rpc = self.server.upload("SubmitUpdate")
        first = rpc.take_request()
        rpc.terminate(SubmitUpdateResponse(receipt=receipt), *status)
        assert hashlib.sha256(first.chunk).hexdigest() == first.spec.sha256
        return first.spec, from_safetensors(first.chunk)

    def take_update(self, status=OK, receipt=None):
        spec, tensors = self.take_tensors(status, receipt)
        return spec, tensors["w"]

    def run_round(self, sequence, number, status=OK):
        self.send(round_started(sequence, number))
        self.training_is_at(number)
        self.serve_model(number)
        return self.take_update(status)

    def reported(self):
        """Accepts the report of a failure, and returns it."""
        return self.server.reply("ReportFailure", ReportFailureResponse())

    def result(self):
        return self.call.result(10)

    def error(self):
        return self.call.exception(10)
