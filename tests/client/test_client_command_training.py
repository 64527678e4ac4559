"""`fedround training`: create with all options, show, wait and watch."""

import json
import re

import numpy as np
import pytest
from typer import BadParameter

from client.scripted import MODEL, OK, TRAINING, USER, done, fields
from fedround.v1.aggregation_pb2 import (
    UPDATE_PRECISION_BFLOAT16,
    UPDATE_PRECISION_FULL,
    UPDATE_PRECISION_INT8,
    Aggregation,
    Clipping,
    Mixing,
    ServerOptimizer,
    TensorPrecision,
)
from fedround.v1.training_pb2 import (
    GOAL_MAXIMIZE,
    GOAL_MINIMIZE,
    INTEGER_TENSORS_MEAN,
    ON_FAILURE_FAIL,
    ON_MISSED_RETRY,
    TRAINING_STATE_COMPLETED,
    CreateTrainingResponse,
    GetTrainingResponse,
    GetTrainingsResponse,
    ModelSelection,
    PrivacySpent,
    Training,
    TrainingSpec,
)
from fedround_client import (
    Adam,
    AdaptiveClipping,
    DifferentialPrivacy,
    Ensemble,
    EnsembleMember,
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedDc,
    FedYogi,
    FixedClipping,
    FlTrust,
    Krum,
    McDropout,
    NearestNeighbor,
    NoUncertainty,
    Swag,
    TrimmedMean,
    to_safetensors,
)
from fedround_client.command.aggregation import aggregation_option
from fedround_client.command.transport import parse_tensor_precisions
from fedround_client.options import aggregation, uncertainty

pytestmark = pytest.mark.timeout(30)

FILE = to_safetensors({"w": np.ones(3, np.float32)})
SPEC = TrainingSpec(name="digits", target_num_updates=5, selection=ModelSelection(metric="accuracy"))
TRAINED = Training(training_id=TRAINING, spec=SPEC, best_version=3, best_value=0.75)
TRAINED.start_time.FromSeconds(1_800_000_000)


def test_training_create_sends_the_file_and_all_options(server, command, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(FILE)
    options = f"--name digits --target-num-updates 5 --client {USER} --client {MODEL} --metric accuracy --min-updates 2"
    options += (
        " --deadline 90 --max-retries 4 --aggregation fed_prox:mu=0.1 --evaluation final_only --description d"
        " --max-num-examples 9"
        " --max-update-norm 2.5 --update-precision bfloat16 --allow-non-finite-buffers --integer-tensors mean"
        " --tensor-precision a=b*=int8 --tensor-precision *.bias=FULL --stochastic-rounding"
    )
    options += " --on-failure fail --absent-after 45"
    options += " --maximize accuracy --keep-versions 4 --architecture mlp"
    options += " --uncertainty swag --samples 3 --softmax --swag-every 2 --swag-rank 1"
    call = command("training", "create", path, *options.split(), "--format", "json")
    rpc = server.upload("CreateTraining")
    first, data = server.receive(rpc, len(FILE))
    rpc.terminate(CreateTrainingResponse(training=TRAINED), *OK)
    assert json.loads(done(call).stdout)["training_id"] == TRAINING
    spec = first.spec
    assert data == FILE
    assert (spec.name, spec.target_num_updates, spec.description, spec.max_num_examples) == ("digits", 5, "d", 9)
    assert (list(spec.client_ids), list(spec.metric_names)) == ([USER, MODEL], ["accuracy"])
    assert (spec.round_policy.min_updates, spec.round_policy.deadline.seconds) == (2, 90)
    assert (spec.max_update_norm, spec.update_precision) == (2.5, UPDATE_PRECISION_BFLOAT16)
    assert spec.stochastic_rounding
    assert list(spec.tensor_precisions) == [
        TensorPrecision(tensors="a=b*", precision=UPDATE_PRECISION_INT8, stochastic_rounding=True),
        TensorPrecision(tensors="*.bias", precision=UPDATE_PRECISION_FULL, stochastic_rounding=True),
    ]
    assert (spec.allow_non_finite_buffers, spec.integer_tensors) == (True, INTEGER_TENSORS_MEAN)
    assert (spec.round_policy.on_missed, spec.round_policy.max_retries) == (ON_MISSED_RETRY, 4)
    assert (spec.round_policy.on_failure, spec.round_policy.absent_after.seconds) == (ON_FAILURE_FAIL, 45)
    assert (spec.aggregation.fed_prox.mu, spec.evaluation) == (0.1, 2)
    assert spec.selection == ModelSelection(metric="accuracy", goal=GOAL_MAXIMIZE)
    assert (spec.keep_versions, spec.architecture) == (4, "mlp")
    assert spec.uncertainty.swag == Swag(samples=3, softmax=True, every=2, rank=1)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("", TrainingSpec()),
        ("--model-version 0", TrainingSpec(model_version=0)),
        ("--aggregation fed_dc", TrainingSpec(aggregation=aggregation(FedDc()))),
        (
            "--aggregation fed_dc:daisy_period=2,aggregation_period=6,seed=7",
            TrainingSpec(aggregation=aggregation(FedDc(daisy_period=2, aggregation_period=6, seed=7))),
        ),
        (
            "--aggregation trimmed_mean:beta=0.2 --clipping fixed:norm=1 --mixing nearest_neighbor:f=1"
            " --server-optimizer adam:learning_rate=0.1 --buffer *running* --buffer steps",
            TrainingSpec(
                aggregation=Aggregation(
                    trimmed_mean=TrimmedMean(beta=0.2),
                    clipping=Clipping(fixed=FixedClipping(norm=1)),
                    mixing=Mixing(nearest_neighbor=NearestNeighbor(f=1)),
                    server_optimizer=ServerOptimizer(adam=Adam(learning_rate=0.1)),
                    buffers=["*running*", "steps"],
                )
            ),
        ),
        (
            "--server-optimizer yogi",
            TrainingSpec(aggregation=Aggregation(server_optimizer=ServerOptimizer(yogi=Adam()))),
        ),
        ("--aggregation FedAvgM:momentum=0.5", TrainingSpec(aggregation=FedAvgM(momentum=0.5))),
        ("--aggregation fedadagrad", TrainingSpec(aggregation=FedAdagrad())),
        ("--aggregation fedadam:bias_correction=true", TrainingSpec(aggregation=FedAdam(bias_correction=True))),
        (
            "--aggregation fedyogi:tau=1e-4 --clipping fixed",
            TrainingSpec(aggregation=FedYogi(tau=1e-4, clipping=FixedClipping())),
        ),
        (
            "--clipping adaptive:quantile=0,noise_std=2"
            " --differential-privacy noise_multiplier=1,epsilon_budget=8,tree=true",
            TrainingSpec(
                aggregation=Aggregation(
                    clipping=Clipping(adaptive=AdaptiveClipping(quantile=0, noise_std=2)),
                    differential_privacy=DifferentialPrivacy(noise_multiplier=1, epsilon_budget=8, tree=True),
                )
            ),
        ),
        ("--aggregation krum:f=0", TrainingSpec(aggregation=aggregation(Krum(f=0)))),
        (
            f"--aggregation fl_trust:trusted_client_id={USER}",
            TrainingSpec(aggregation=aggregation(FlTrust(trusted_client_id=USER))),
        ),
        (
            "--minimize loss --patience 3",
            TrainingSpec(selection=ModelSelection(metric="loss", goal=GOAL_MINIMIZE, patience=3)),
        ),
        ("--uncertainty none", TrainingSpec(uncertainty=uncertainty(NoUncertainty()))),
        ("--uncertainty mc-dropout", TrainingSpec(uncertainty=uncertainty(McDropout()))),
        (
            f"--uncertainty ensemble --last-versions 4 --member {USER} --member {MODEL}:0",
            TrainingSpec(
                uncertainty=uncertainty(
                    Ensemble(
                        last_versions=4,
                        members=[EnsembleMember(model_id=USER), EnsembleMember(model_id=MODEL, version=0)],
                    )
                )
            ),
        ),
    ],
)
def test_training_create_of_a_stored_model(server, command, options, wanted):
    call = command(
        "training", "create", "--model-id", MODEL, "--name", "n", "--target-num-updates", 1, *options.split()
    )
    rpc = server.upload("CreateTraining")
    spec = rpc.take_request().spec
    rpc.terminate(CreateTrainingResponse(training=TRAINED), *OK)
    assert TRAINING in done(call).stdout
    for name in ("request_id", "round_policy", "evaluation", "update_precision", "integer_tensors"):
        spec.ClearField(name)
    wanted.MergeFrom(TrainingSpec(model_id=MODEL, name="n", target_num_updates=1))
    assert spec == wanted


@pytest.mark.parametrize(
    ("privacy", "text"),
    [
        (
            PrivacySpent(epsilon=4.37718, next_epsilon=6.57297, delta=1e-5, rounds=1, rounds_left=1),
            "epsilon 4.377 at delta 1e-05 for 1 round of a budget of 8, which allows 1 more; 6.573 after the next one",
        ),
        (
            PrivacySpent(epsilon=6.57297, next_epsilon=8.4, delta=1e-5, rounds=2, rounds_left=0),
            "epsilon 6.573 at delta 1e-05 for 2 rounds of a budget of 8, which allows 0 more",
        ),
        (
            PrivacySpent(epsilon=2, next_epsilon=3, delta=1e-6, rounds=7),
            "epsilon 2 at delta 1e-06 for 7 rounds; 3 after the next one",
        ),
    ],
)
def test_spent_privacy_is_shown(server, command, privacy, text):
    made = Training(training_id=TRAINING, privacy=privacy, state=TRAINING_STATE_COMPLETED)
    made.error.reason, made.error.message = "PRIVACY_BUDGET", "it allows no further round"
    made.spec.aggregation.differential_privacy.epsilon_budget = 8
    call = command("training", "show", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=made))
    found = fields(done(call).stdout)
    assert found["privacy"] == text
    assert found["state"] == "completed: PRIVACY_BUDGET: it allows no further round"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "'1' is not OPTION=VALUE, as in OPTION=VALUE,OPTION=VALUE"),
        ("noise=1", "differential_privacy has no option 'noise'; known are noise_multiplier, delta"),
        ("delta=x", "delta is 'x'; must be a number"),
    ],
)
def test_options_of_privacy_are_checked(text, message):
    with pytest.raises(BadParameter, match=re.escape(message)):
        aggregation_option("", "", "", "", (), differential_privacy=text)


def test_the_best_version_is_shown(server, command):
    call = command("training", "show", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=TRAINED))
    assert fields(done(call).stdout)["best"] == "version 3: accuracy 0.75"

    call = command("training", "list")
    server.reply("GetTrainings", GetTrainingsResponse(trainings=[TRAINED, Training(training_id=MODEL)]))
    header, best, none = (line.split() for line in done(call).stdout.splitlines())
    assert best[header.index("BEST")] == "3"
    assert best[header.index("ROUND")] == "1/5"
    assert none[-1] == "0/0"


def test_all_stages_of_an_aggregation_are_shown(server, command):
    stages = FedAdam(aggregation=TrimmedMean(beta=0.2), clipping=FixedClipping(norm=2))
    training = Training(training_id=TRAINING, spec=TrainingSpec(aggregation=stages))
    call = command("training", "show", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=training))
    assert fields(done(call).stdout)["aggregation"] == (
        "FedAdam(learning_rate=0.1, beta1=0.9, beta2=0.99, tau=0.001) over trimmed mean(beta=0.2) after fixed"
        " clipping(norm=2)"
    )
    call = command("training", "show", TRAINING, "--format", "json")
    server.reply("GetTraining", GetTrainingResponse(training=training))
    assert json.loads(done(call).stdout)["spec"]["aggregation"]["server_optimizer"]["adam"]["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("mean", "", "", ""), "there is no 'mean'; known are fed_avg, .*fl_trust, .*fedavgm, .*fedyogi"),
        (("krum:g=1", "", "", ""), "krum has no option 'g'; known are f"),
        (("median:f=1", "", "", ""), "median has no option 'f'; it has none"),
        (("krum:f", "", "", ""), "'f' is not OPTION=VALUE, as in krum:OPTION=VALUE"),
        (("krum:f=1,f=2", "", "", ""), "f is given twice"),
        (("krum:f=-1", "", "", ""), "f is '-1'; must be a whole number"),
        (("trimmed_mean:beta=much", "", "", ""), "beta is 'much'; must be a number"),
        (("krum:f=0.5", "", "", ""), "f is '0.5'; must be a whole number from 0 to 4294967295"),
        (("fedadam:bias_correction=1", "", "", ""), "must be true or false"),
        (("fedadam:tau=0", "", "", ""), "tau must be a finite number > 0"),
        (("", "percentile", "", ""), "--clipping: there is no 'percentile'; known are fixed, adaptive"),
        (("", "", "buckets", ""), "--mixing: there is no 'buckets'; known are nearest_neighbor, bucketing"),
        (("", "", "", "fedadam"), "--server-optimizer: there is no 'fedadam'; known are sgd, adagrad, adam, yogi"),
        (("fedadam", "", "", "sgd"), "--server-optimizer: The aggregation has a server_optimizer already"),
    ],
)
def test_unknown_stages_and_options_are_rejected_before_a_call(options, words):
    with pytest.raises(BadParameter, match=words):
        aggregation_option(*options, ())


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"update_precision": UPDATE_PRECISION_FULL}, None),
        ({"update_precision": UPDATE_PRECISION_INT8}, "INT8"),
        (
            {
                "tensor_precisions": [
                    TensorPrecision(tensors="*.bias", precision=UPDATE_PRECISION_FULL),
                    TensorPrecision(tensors="w*", precision=UPDATE_PRECISION_INT8, stochastic_rounding=True),
                ],
                "update_precision": UPDATE_PRECISION_BFLOAT16,
            },
            "*.bias FULL, w* INT8 (stochastic rounding), others BFLOAT16",
        ),
    ],
)
def test_the_precisions_of_updates_are_shown(server, command, spec, text):
    call = command("training", "show", TRAINING)
    server.reply("GetTraining", GetTrainingResponse(training=Training(training_id=TRAINING, spec=TrainingSpec(**spec))))
    assert fields(done(call).stdout).get("update precision") == text


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["w"], "'w' is not GLOB=PRECISION"),
        (["=INT8"], "'=INT8' is not GLOB=PRECISION"),
        (["w=INT4"], "precisions are FULL, FLOAT16, BFLOAT16, INT8"),
        (["w=INT8", "w=FULL"], "has 'w' twice"),
    ],
)
def test_impossible_precisions_are_rejected_before_a_call(texts, words):
    with pytest.raises(BadParameter, match=words):
        parse_tensor_precisions(texts)
