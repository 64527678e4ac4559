"""A server scripted by the test, over the fake channel and fake time of grpcio-testing."""

import threading
import time
from concurrent.futures import Future

import google_crc32c
import grpc
import grpc_testing
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from fedround.v1 import audit_pb2, control_pb2, inference_pb2, model_pb2, round_pb2, server_pb2, training_pb2, user_pb2
from fedround_client import Client

TRAINING = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
MODEL = "33333333-3333-4333-8333-333333333333"
USER = "44444444-4444-4444-8444-444444444444"

METHODS = {
    method.name: method
    for module in (user_pb2, training_pb2, control_pb2, model_pb2, round_pb2, inference_pb2, audit_pb2, server_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

OK = ((), grpc.StatusCode.OK, "")
UNAVAILABLE = ((), grpc.StatusCode.UNAVAILABLE, "connection reset")


def error_status(code, reason, message="no", metadata=None, violations=None, domain="fedround", retry=None):
    """Returns how the server terminates a failed call: trailing metadata, code, details."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata or {})
    details = [info]
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            for field, text in violations.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(round(retry * 1000))
        details.append(info)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return (("grpc-status-details-bin", status.SerializeToString()),), code, message


def chunk_response(response, data, **fields):
    """Returns a message of a download with a chunk and its checksum."""
    return response(chunk=data, chunk_crc32c=google_crc32c.value(data), **fields)


def until(condition):
    """Waits for a condition that another thread fulfils; the test's own timeout is the limit."""
    while not condition():
        time.sleep(0.001)


def drain(rpc):
    """Waits until the client has read all responses: the fake channel drops unread ones when a call fails."""
    until(lambda: not rpc._rpc_state._responses)


def cut(rpc):
    """Cuts the connection after the responses that were sent."""
    drain(rpc)
    rpc.terminate(*UNAVAILABLE)


def is_cancelled(rpc):
    """Returns whether the client has cancelled the call."""
    return rpc._rpc_state._code is grpc.StatusCode.CANCELLED


def done(call, code=0):
    """Waits for the end of a command, and checks its exit code."""
    result = call.result(20)
    assert result.exit_code == code, result.output
    assert "my-secret-token" not in result.output
    return result


class Server:
    """Answers the calls of a client that runs in another thread."""

    def __init__(self):
        self.time = grpc_testing.strict_fake_time(1000.0)
        self.channel = grpc_testing.channel([method.containing_service for method in METHODS.values()], self.time)
        self.client = Client(self.channel, "secret", address="there:1", clock=self.time)

    def run(self, function, *args, **options) -> Future:
        future = Future()

        def work():
            try:
                future.set_result(function(*args, **options))
            except BaseException as error:
                future.set_exception(error)

        # A daemon, since in a failing test it may wait for a response forever.
        threading.Thread(target=work, daemon=True).start()
        return future

    def unary(self, name):
        """Returns the request of the next call of a unary method, and a function that answers it."""
        _, request, rpc = self.channel.take_unary_unary(METHODS[name])

        def answer(response=None, status=OK):
            rpc.terminate(response, *status)

        return request, answer

    def reply(self, name, response):
        request, answer = self.unary(name)
        answer(response)
        return request

    def fail(self, name, status):
        request, answer = self.unary(name)
        answer(None, status)
        return request

    def stream(self, name):
        """Returns the request of the next call of a server-streaming method, and the rpc."""
        _, request, rpc = self.channel.take_unary_stream(METHODS[name])
        return request, rpc

    def upload(self, name):
        """Returns the next call of a client-streaming method."""
        _, rpc = self.channel.take_stream_unary(METHODS[name])
        return rpc

    def receive(self, rpc, size):
        """Returns the first message, and a number of bytes of chunks after it."""
        first = rpc.take_request()
        data = first.chunk
        while len(data) < size:
            data += rpc.take_request().chunk
        return first, data

    def called(self, name, call):
        """Waits for the next call of a method, or the end of the caller; returns whether there is a call."""
        waiting = self.channel._state._rpc_states[f"/{METHODS[name].containing_service.full_name}/{name}"]
        until(lambda: waiting or call.done())
        return bool(waiting)

    def alarm_in(self, seconds):
        """Waits until the client has set an alarm for a number of seconds from now."""
        until(lambda: self.time.time() + seconds in self.time._state.times_to_behaviors)


def fields(text):
    """Returns the lines of a summary by name."""
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in text.splitlines())}
