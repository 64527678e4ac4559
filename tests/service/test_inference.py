"""Predictions by raw calls: what each method answers, and what is rejected."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from calls import TIMEOUT, Person, fails_with, new_id
from fedround.v1 import inference_pb2, model_pb2
from servers import Server

FACTORIES = ("line", "classifier", "endless")
INPUTS = np.float32([[1, 2], [3, -1], [0, 0]])
PIXELS = np.uint8([[0, 255], [51, 102]])
RNG = np.random.default_rng(3)
CLASSIFIER = {
    "hidden.weight": RNG.normal(size=(8, 2)).astype(np.float32),
    "hidden.bias": RNG.normal(size=8).astype(np.float32),
    "out.weight": RNG.normal(size=(3, 8)).astype(np.float32),
    "out.bias": RNG.normal(size=3).astype(np.float32),
}
DROPOUT = {"mc_dropout": {"samples": 20, "softmax": True}}


def serving(data_dir: Path, *options: str) -> Server:
    """A server that knows the architectures, which are in a module beside the tests."""
    named = (word for name in FACTORIES for word in ("--architecture", f"{name}=e2e.networks:{name}"))
    return Server(data_dir, options=(*named, *options))


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=":")
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, importable: None) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("inference") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Person]:
    with grpc.insecure_channel(server.address) as channel:
        yield Person(channel, server.admin_token)


def a_line(slope: float, bias: float) -> dict[str, np.ndarray]:
    return {"weight": np.float32([[slope, 1]]), "bias": np.float32([bias])}


def along(line: dict[str, np.ndarray]) -> np.ndarray:
    return INPUTS @ line["weight"].T + line["bias"]


def upload(person: Person, tensors: dict[str, np.ndarray], architecture: str = "") -> str:
    spec = model_pb2.ModelSpec(name="m", architecture=architecture)
    message = model_pb2.UploadModelRequest(spec=spec, chunk=save(tensors))
    return str(person.models.UploadModel(iter([message]), timeout=TIMEOUT).model.model_id)


def tensor(values: np.ndarray) -> dict[str, Any]:
    dtype = {"float32": "F32", "uint8": "U8"}[values.dtype.name]
    return {"dtype": dtype, "shape": values.shape, "data": values.tobytes()}


def array(found: inference_pb2.Tensor) -> np.ndarray:
    assert found.dtype == "F32"
    return np.frombuffer(found.data, np.float32).reshape(found.shape)


def predict(person: Person, model_id: str, values: np.ndarray = INPUTS, **request: Any) -> Any:
    asked = inference_pb2.PredictRequest(**{"model_id": model_id, "inputs": tensor(values), **request})
    return person.inference.Predict(asked, timeout=TIMEOUT)


@pytest.fixture
def line(actor: Person) -> str:
    return upload(actor, a_line(2, 0.5), "line")


class TestMethods:
    def test_none_is_one_pass(self, actor: Person, line: str) -> None:
        found = predict(actor, line)
        assert np.array_equal(array(found.mean), along(a_line(2, 0.5)))
        assert (found.model.model_id, found.model.version, found.samples) == (line, 0, 1)
        assert found.uncertainty.WhichOneof("method") == "none"
        for name in ("variance", "std", "predictive_entropy", "expected_entropy", "mutual_information"):
            assert not found.HasField(name)
        for chosen in ({"version": 0}, {"tag": "last"}, {"uncertainty": {"none": {}}}, {"architecture": "line"}):
            assert predict(actor, line, **chosen) == found

    def test_mc_dropout_is_reproducible_by_its_seed(self, actor: Person) -> None:
        model_id = upload(actor, CLASSIFIER, "classifier")
        first = predict(actor, model_id, PIXELS, uncertainty=DROPOUT, seed=7)
        assert predict(actor, model_id, PIXELS, uncertainty=DROPOUT, seed=7) == first
        assert predict(actor, model_id, PIXELS, uncertainty=DROPOUT, seed=8).mean != first.mean
        assert predict(actor, model_id, PIXELS, uncertainty=DROPOUT).mean != first.mean
        assert (first.samples, first.uncertainty.mc_dropout.samples) == (20, 20)
        np.testing.assert_allclose(array(first.mean).sum(1), 1, rtol=1e-6)
        assert (array(first.variance) > 0).all()
        assert array(first.mutual_information).shape == (2,)

    def test_an_ensemble_is_the_mean_of_its_votes(self, actor: Person, line: str) -> None:
        other = upload(actor, a_line(10, 5), "line")
        chosen = {"ensemble": {"members": [{"model_id": other}]}}
        found = predict(actor, line, uncertainty=chosen, seed=1)
        outputs = np.stack([along(a_line(2, 0.5)), along(a_line(10, 5))])
        np.testing.assert_allclose(array(found.mean), outputs.mean(0), rtol=1e-6)
        np.testing.assert_allclose(array(found.variance), outputs.var(0), rtol=1e-5)
        np.testing.assert_allclose(array(found.std), outputs.std(0), rtol=1e-5)
        assert found.samples == 2
        assert not found.HasField("predictive_entropy")
        assert predict(actor, line, uncertainty=chosen, seed=1) == found


class TestRefusals:
    def test_an_architecture_that_is_missing_or_unknown(self, actor: Person, line: str) -> None:
        helping = ("registered are classifier, endless, line", "--architecture NAME=package.module:factory")
        with fails_with("FAILED_PRECONDITION", "ARCHITECTURE_UNKNOWN", "the model names no architecture", *helping):
            predict(actor, upload(actor, a_line(0, 0)))
        with fails_with("FAILED_PRECONDITION", "ARCHITECTURE_UNKNOWN", "'mlp' is not registered", *helping):
            predict(actor, upload(actor, a_line(0, 0), "mlp"))
        with fails_with("FAILED_PRECONDITION", "ARCHITECTURE_UNKNOWN", "'mlp' is not registered", *helping):
            predict(actor, line, architecture="mlp")

    def test_a_posterior_that_was_not_collected(self, actor: Person, line: str) -> None:
        words = ("version 0 has no SWAG posterior", "train with uncertainty swag", "GetModelVersions")
        with fails_with("FAILED_PRECONDITION", "POSTERIOR_MISSING", *words):
            predict(actor, line, uncertainty={"swag": {}})

    def test_weights_that_do_not_fit(self, actor: Person, line: str) -> None:
        wide = upload(actor, {**a_line(0, 0), "weight": np.zeros((1, 3), np.float32)}, "line")
        words = ("does not fit the architecture", "size mismatch for weight")
        with fails_with("FAILED_PRECONDITION", "PREDICTION_FAILED", *words):
            predict(actor, wide)
        with fails_with("FAILED_PRECONDITION", "PREDICTION_FAILED", *words):
            predict(actor, line, uncertainty={"ensemble": {"members": [{"model_id": wide}]}})
        with fails_with("FAILED_PRECONDITION", "PREDICTION_FAILED", "does not fit the architecture", "hidden.weight"):
            predict(actor, line, PIXELS, architecture="classifier")

    def test_dropout_that_the_architecture_lacks(self, actor: Person, line: str) -> None:
        with fails_with("FAILED_PRECONDITION", "PREDICTION_FAILED", "no dropout", "every pass would be the same"):
            predict(actor, line, uncertainty={"mc_dropout": {}})

    @pytest.mark.parametrize(
        ("field", "inputs", "words"),
        [
            ("inputs.dtype", {}, "'' is not one of F64, F32"),
            ("inputs.dtype", {"dtype": "F33", "shape": [1, 2], "data": bytes(8)}, "'F33' is not one of F64, F32"),
            ("inputs.shape", {"dtype": "F32", "data": bytes(4)}, "must be 1 to 16 numbers"),
            ("inputs.shape", {"dtype": "F32", "shape": [0, 2]}, "is [0, 2]; must be 1 to 16 numbers, each >= 1"),
            ("inputs.shape", {"dtype": "F32", "shape": [-1, 2], "data": bytes(8)}, "each >= 1"),
            ("inputs.data", {"dtype": "F32", "shape": [1, 2], "data": bytes(7)}, "has 7 bytes; dtype and shape need 8"),
            ("inputs.data", {"dtype": "F32", "shape": [1, 2], "data": bytes(9)}, "has 9 bytes; dtype and shape need 8"),
            ("inputs", {"dtype": "F32", "shape": [1, 3], "data": bytes(12)}, "the architecture takes [N, 2]"),
            ("inputs", {"dtype": "I32", "shape": [1, 2], "data": bytes(8)}, "the network does not take these inputs"),
        ],
    )
    def test_inputs_that_are_none(
        self, actor: Person, line: str, field: str, inputs: dict[str, Any], words: str
    ) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words) as call:
            predict(actor, line, inputs=inputs)
        assert list(call.details.fields) == [field]

    @pytest.mark.parametrize(
        ("field", "request_", "words"),
        [
            ("tag", {"tag": "last", "version": 0}, "choose one"),
            ("seed", {"seed": 2**63}, "at most"),
            ("architecture", {"architecture": "a b"}, "is not a name"),
            ("uncertainty.mc_dropout.samples", {"uncertainty": {"mc_dropout": {"samples": 1001}}}, "in 1..1000"),
        ],
    )
    def test_fields_that_are_out_of_range(
        self, actor: Person, line: str, field: str, request_: dict[str, Any], words: str
    ) -> None:
        with fails_with("INVALID_ARGUMENT", "FIELD_INVALID", words) as call:
            predict(actor, line, **request_)
        assert list(call.details.fields) == [field]

    def test_models_and_versions_that_are_not_the_callers(
        self, actor: Person, person: Callable[..., Person], line: str
    ) -> None:
        unrelated = person("ACTOR")
        for model_id in (line, new_id()):
            with fails_with("NOT_FOUND", "MODEL_NOT_FOUND"):
                predict(unrelated, model_id)
        own = upload(unrelated, a_line(0, 0), "line")
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", line):
            predict(unrelated, own, uncertainty={"ensemble": {"members": [{"model_id": line}]}})
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "version 1 (the latest is 0)"):
            predict(actor, line, version=1)
        with fails_with("NOT_FOUND", "MODEL_NOT_FOUND", "tagged best"):
            predict(actor, line, tag="best")

    @pytest.mark.chaos
    def test_a_prediction_that_takes_too_long(self, tmp_path: Path) -> None:
        with (
            serving(tmp_path / "data", "--predict-seconds", "0.5") as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            person = Person(channel, server.admin_token).make(server.address, "ACTOR")
            model_id = upload(person, a_line(0, 0), "endless")
            # The second time shows that the first one is not in the way any more.
            for _ in range(2):
                with fails_with(
                    "RESOURCE_EXHAUSTED", "PREDICTION_LIMIT", "longer than the operator allows", "send fewer"
                ):
                    predict(person, model_id)
            person.channel.close()
