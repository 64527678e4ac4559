"""`fedround model`, `fedround predict` and `fedround metrics`."""

import csv
import hashlib
import io
import json

import numpy as np
import pytest

from client.scripted import MODEL, OK, TRAINING, USER, chunk_response, done
from fedround.v1.aggregation_pb2 import Ensemble, EnsembleMember, McDropout, Swag
from fedround.v1.event_pb2 import ROUND_KIND_EVALUATE, ROUND_KIND_TRAIN, ModelInfo
from fedround.v1.inference_pb2 import PredictResponse, Tensor
from fedround.v1.model_pb2 import (
    MODEL_PART_MODEL,
    MODEL_PART_POSTERIOR,
    DownloadModelResponse,
    GetMetricsResponse,
    GetModelVersionsResponse,
    LabelMean,
    MetricReport,
    MetricSpread,
    Model,
    ModelVersion,
    PosteriorInfo,
    UploadModelResponse,
)
from fedround.v1.user_pb2 import GetUsersResponse, User
from fedround_client import to_safetensors
from fedround_client.csv_cells import harmless
from fedround_client.options import uncertainty

pytestmark = pytest.mark.timeout(30)

FILE = to_safetensors({"w": np.ones(3, np.float32)})


def test_a_model_is_uploaded(server, command, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(FILE)
    call = command("model", "upload", path, "--architecture", "mlp")
    rpc = server.upload("UploadModel")
    first, data = server.receive(rpc, len(FILE))
    rpc.terminate(UploadModelResponse(model=Model(model_id=MODEL)), *OK)
    assert MODEL in done(call).stdout
    assert (first.spec.name, first.spec.architecture, data) == ("net", "mlp", FILE)


@pytest.mark.parametrize(
    ("options", "version", "tag", "part"),
    [
        ("", None, "", MODEL_PART_MODEL),
        ("--version 0", 0, "", MODEL_PART_MODEL),
        ("--tag best", None, "best", MODEL_PART_MODEL),
        ("--tag best --posterior", None, "best", MODEL_PART_POSTERIOR),
    ],
)
def test_versions_are_downloaded(server, command, tmp_path, monkeypatch, options, version, tag, part):
    monkeypatch.chdir(tmp_path)
    call = command("model", "download", MODEL, *options.split(), "--format", "json")
    request, rpc = server.stream("DownloadModel")
    info = ModelInfo(version=0, sha256=hashlib.sha256(FILE).hexdigest(), size_bytes=len(FILE))
    rpc.send_response(chunk_response(DownloadModelResponse, FILE, info=info))
    rpc.terminate(*OK)
    name = f"{MODEL}.posterior.safetensors" if part == MODEL_PART_POSTERIOR else f"{MODEL}.safetensors"
    assert json.loads(done(call).stdout) == {"path": name}
    assert (request.version if request.HasField("version") else None) == version
    assert (request.tag, request.part) == (tag, part)
    assert (tmp_path / name).read_bytes() == FILE


def test_a_download_is_written_to_the_given_file(server, command, tmp_path):
    target = tmp_path / "down.safetensors"
    target.write_bytes(b"other")
    call = command("model", "download", MODEL, "--output", target, "--force")
    _, rpc = server.stream("DownloadModel")
    info = ModelInfo(version=0, sha256=hashlib.sha256(FILE).hexdigest(), size_bytes=len(FILE))
    rpc.send_response(chunk_response(DownloadModelResponse, FILE, info=info))
    rpc.terminate(*OK)
    assert done(call).stdout == f"{target}\n"
    assert target.read_bytes() == FILE


def test_versions_are_listed_with_tags_and_metrics(server, command):
    versions = [
        ModelVersion(version=2, tags=["best", "last"], stored=True, metrics={"loss": 0.5, "accuracy": 0.123456789}),
        ModelVersion(version=1, posterior=PosteriorInfo(rank=4)),
    ]
    call = command("model", "versions", MODEL)
    server.reply("GetModelVersions", GetModelVersionsResponse(versions=versions))
    _, newest, oldest = done(call).stdout.splitlines()
    assert newest.split() == ["2", "best,", "last", "accuracy=0.123457,", "loss=0.5", "yes", "0"]
    assert oldest.split() == ["1", "rank", "4", "dropped", "0"]


REPORTS = [
    MetricReport(training_id=TRAINING, round=0, kind=ROUND_KIND_TRAIN, num_examples=30, metrics={"loss": 0.123456789}),
    MetricReport(training_id=TRAINING, round=0, kind=ROUND_KIND_TRAIN, reporter_id=USER, metrics={"loss": 0.25}),
    MetricReport(
        training_id=TRAINING, round=1, kind=ROUND_KIND_EVALUATE, model_version=1, metrics={"=accuracy\x1b": -1.0}
    ),
]


def metrics(server, command, *options):
    call = command("metrics", MODEL, *options)
    request = server.reply("GetMetrics", GetMetricsResponse(reports=REPORTS))
    assert request.model_id == MODEL
    if "--by-reporter" in options:
        server.reply("GetUsers", GetUsersResponse(users=[User(user_id=USER, name="=cmd()")]))
    return done(call).stdout


def test_metrics_are_a_table_with_one_column_per_metric(server, command):
    header, first, second = (line.split() for line in metrics(server, command).splitlines())
    assert header == ["ROUND", "KIND", "VERSION", "EXAMPLES", "=accuracy\\x1b", "loss"]
    assert first == ["1", "TRAIN", "0", "30", "0.123457"]
    assert second == ["2", "EVALUATE", "1", "0", "-1"]


def test_metrics_by_reporter(server, command):
    header, *rows = (line.split() for line in metrics(server, command, "--by-reporter").splitlines())
    assert [row[header.index("REPORTER")] for row in rows] == ["all", USER, "all"]


def test_metrics_as_csv_have_all_digits(server, command):
    rows = list(csv.DictReader(io.StringIO(metrics(server, command, "--by-reporter", "--format", "csv"))))
    assert [(row["REPORTER"], row["loss"]) for row in rows] == [("all", "0.123456789"), (USER, "0.25"), ("all", "")]
    assert [row["ROUND"] for row in rows] == ["1", "1", "2"]


def test_cells_of_csv_are_no_formulas(server, command):
    rows = list(csv.DictReader(io.StringIO(metrics(server, command, "--by-reporter", "--format", "csv"))))
    assert rows[1]["NAME"] == "'=cmd()"
    assert rows[2]["'=accuracy\\x1b"] == "-1.0"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (-0.5, "-0.5"),
        (7, "7"),
        (float("-inf"), "-inf"),
        ("-0.5", "'-0.5"),
        ("-1+1", "'-1+1"),
        ("+49", "'+49"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\\t=1"),
        ("\r=1", "'\\r=1"),
        ("\uff1d1", "'\uff1d1"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_texts_that_begin_like_a_formula_get_an_apostrophe(cell, text):
    assert harmless(cell) == text


SPREAD = MetricReport(
    training_id=TRAINING,
    round=1,
    kind=ROUND_KIND_EVALUATE,
    model_version=1,
    metrics={"accuracy": 0.75},
    spread={
        "accuracy": MetricSpread(
            min=0.25,
            median=0.5,
            max=1.0,
            num_reporters=3,
            by_label={"site=north": LabelMean(mean=0.875, num_reporters=2)},
        )
    },
)


def spread(server, command, *options):
    call = command("metrics", MODEL, "--spread", *options)
    server.reply("GetMetrics", GetMetricsResponse(reports=[SPREAD, REPORTS[1]]))
    return done(call).stdout


def test_the_spread_of_metrics_is_a_row_for_all_and_one_for_each_label(server, command):
    header, everybody, north = (line.split() for line in spread(server, command).splitlines())
    assert header == ["ROUND", "KIND", "VERSION", "METRIC", "LABEL", "PARTICIPANTS", "MEAN", "MIN", "MEDIAN", "MAX"]
    assert everybody == ["2", "EVALUATE", "1", "accuracy", "3", "0.75", "0.25", "0.5", "1"]
    assert north == ["2", "EVALUATE", "1", "accuracy", "site=north", "2", "0.875"]


def test_the_spread_of_metrics_as_csv_and_json(server, command):
    rows = list(csv.DictReader(io.StringIO(spread(server, command, "--format", "csv"))))
    assert [(row["LABEL"], row["MEAN"], row["MAX"]) for row in rows] == [
        ("", "0.75", "1.0"),
        ("site=north", "0.875", ""),
    ]
    printed = json.loads(spread(server, command, "--format", "json"))
    assert printed[0]["spread"]["accuracy"]["by_label"] == {"site=north": {"mean": 0.875, "num_reporters": 2}}


def test_metrics_as_json_are_the_reports(server, command):
    printed = json.loads(metrics(server, command, "--format", "json"))
    assert [(report["round"], report["reporter_id"]) for report in printed] == [(0, ""), (1, "")]
    assert printed[0]["metrics"] == {"loss": 0.123456789}


def tensor(values):
    array = np.float32(values)
    return Tensor(dtype="F32", shape=array.shape, data=array.tobytes())


POINTS = PredictResponse(model=ModelInfo(model_id=MODEL, version=4), samples=1, mean=tensor([[1, 2.5], [3, -1 / 3]]))
PROBABILITIES = PredictResponse(
    model=ModelInfo(model_id=MODEL, version=4),
    samples=2,
    uncertainty=uncertainty(McDropout(samples=2)),
    mean=tensor([[0.25, 0.75], [1, 0]]),
    variance=tensor([[0.0625, 0], [0, 0]]),
    std=tensor([[0.25, 0], [0, 0]]),
    predictive_entropy=tensor([0.5, 0]),
    expected_entropy=tensor([0.375, 0]),
    mutual_information=tensor([0.125, 0]),
)


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "inputs.npy"
    np.save(path, np.arange(4, dtype=np.float32).reshape(2, 2))
    return path


def predict(server, command, inputs, response, *options):
    call = command("predict", MODEL, inputs, *options)
    request = server.reply("Predict", response)
    return request, done(call).stdout


def test_point_predictions_have_one_row_per_input(server, command, inputs):
    request, out = predict(server, command, inputs, POINTS)
    assert (list(request.inputs.shape), request.inputs.dtype) == ([2, 2], "F32")
    assert not any(request.HasField(name) for name in ("version", "seed", "uncertainty"))
    assert [line.split() for line in out.splitlines()] == [["INPUT", "MEAN"], ["0", "1", "2.5"], ["1", "3", "-0.3333"]]


def test_probabilities_have_a_class_and_entropies(server, command, inputs):
    _, out = predict(server, command, inputs, PROBABILITIES)
    header, first, second = (line.split() for line in out.splitlines())
    assert header == ["INPUT", "CLASS", "MEAN", "STD", "PREDICTIVE_ENTROPY", "EXPECTED_ENTROPY", "MUTUAL_INFORMATION"]
    assert first == ["0", "1", "0.25", "0.75", "0.25", "0", "0.5", "0.375", "0.125"]
    assert second == ["1", "0", "1", "0", "0", "0", "0", "0", "0"]


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ("--uncertainty mc-dropout --samples 9 --softmax", McDropout(samples=9, softmax=True)),
        ("--uncertainty swag --samples 9", Swag(samples=9)),
        (
            f"--uncertainty ensemble --last-versions 2 --member {USER}:1 --softmax",
            Ensemble(last_versions=2, members=[EnsembleMember(model_id=USER, version=1)], softmax=True),
        ),
    ],
)
def test_predictions_send_the_chosen_options(server, command, inputs, options, choice):
    more = "--tag best --architecture mlp --seed 0"
    request, _ = predict(server, command, inputs, POINTS, *options.split(), *more.split())
    assert request.uncertainty == uncertainty(choice)
    assert (request.tag, request.architecture, request.HasField("seed")) == ("best", "mlp", True)


@pytest.mark.parametrize(("response", "missing"), [(POINTS, 5), (PROBABILITIES, 0)])
def test_predictions_as_json_have_all_arrays(server, command, inputs, response, missing):
    _, out = predict(server, command, inputs, response, "--format", "json")
    printed = json.loads(out)
    assert (printed["model_id"], printed["model_version"], printed["samples"]) == (MODEL, 4, response.samples)
    assert printed["mean"] == np.frombuffer(response.mean.data, "<f4").reshape(2, 2).tolist()
    assert [printed[name] for name in printed].count(None) == missing
    if not missing:
        assert printed["uncertainty"] == {"mc_dropout": {"samples": 2, "softmax": False}}
        assert printed["mutual_information"] == [0.125, 0]


def test_predictions_are_written_to_a_file(server, command, inputs, tmp_path):
    target = tmp_path / "out.data"
    target.write_bytes(b"other")
    _, out = predict(server, command, inputs, PROBABILITIES, "--output", target, "--force", "--format", "json")
    assert json.loads(out) == {"path": str(target)}
    with np.load(target) as arrays:
        assert arrays["variance"].tolist() == [[0.0625, 0], [0, 0]]
        assert len(arrays) == 6


@pytest.mark.parametrize("content", [b"", b"1 2 3", b"PK\x03\x04"])
def test_inputs_that_are_not_a_npy_file_are_rejected(command, tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    assert done(command("predict", MODEL, path), 1).stderr.startswith(f"error: INPUTS: {path} is not a .npy file")


def test_inputs_are_never_unpickled(command, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    assert done(command("predict", MODEL, path), 1).stderr.startswith(f"error: INPUTS: {path} is not a .npy file")


@pytest.mark.parametrize("mean", [Tensor(), Tensor(shape=[2, 3], data=b"1234"), Tensor(shape=[-1]), tensor([1.0])])
def test_a_prediction_that_is_none_is_a_sentence(server, command, inputs, mean):
    call = command("predict", MODEL, inputs)
    server.reply("Predict", PredictResponse(mean=mean))
    assert done(call, 1).stderr.startswith("error: RESPONSE_INVALID: ")


def test_a_metric_does_not_replace_a_column(server, command):
    call = command("metrics", MODEL)
    server.reply("GetMetrics", GetMetricsResponse(reports=[MetricReport(metrics={"VERSION": 0.5})]))
    assert done(call).stdout.splitlines()[0].split() == ["ROUND", "KIND", "VERSION", "EXAMPLES", "VERSION", "(metric)"]
