"""`fedround training create`: create a training with all its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fedround_client.command import names
from fedround_client.command.aggregation import (
    AggregationChoice,
    BufferingOption,
    BufferOption,
    ClippingOption,
    MixingOption,
    OptimizerOption,
    PrivacyOption,
    ShadowOption,
    aggregation_option,
    with_user_ids,
)
from fedround_client.command.cohort import (
    AvailableOnlyOption,
    EvaluationMinUpdatesOption,
    FractionOption,
    LabelOption,
    MinAvailableOption,
    OverSelectionOption,
    SeedOption,
    SizeOption,
    WaitAfterMinOption,
    cohort_option,
)
from fedround_client.command.config_options import ClientConfigOptions, ConfigOptions, parse, parse_clients
from fedround_client.command.model import NonFiniteOption
from fedround_client.command.output import UINT32, Format, FormatOption, progress
from fedround_client.command.session import client_of
from fedround_client.command.training_summary import show_training
from fedround_client.command.transport import (
    PrecisionChoice,
    PrecisionOption,
    StochasticRoundingOption,
    TensorPrecisionOption,
    parse_tensor_precisions,
)
from fedround_client.command.uncertainty import (
    LastVersionsOption,
    MemberOption,
    MethodOption,
    SamplesOption,
    SoftmaxOption,
    uncertainty_option,
    with_member_ids,
)
from fedround_client.options import Selection, round_policy

MIN_UPDATES_HELP = "Number of updates that closes a round; 0 for all participants. At most the size of the cohort."


class EvaluationChoice(StrEnum):
    """When participants evaluate the model."""

    EVERY_ROUND = "EVERY_ROUND"
    FINAL_ONLY = "FINAL_ONLY"
    NEVER = "NEVER"


EvaluationOption: TypeAlias = Annotated[
    EvaluationChoice | None,
    typer.Option(
        case_sensitive=False,
        help="When participants evaluate the model; by default after every round, and in an asynchronous training the"
        " last version.",
    ),
]


class OnFailureChoice(StrEnum):
    """What happens if a participant reports a failure."""

    CONTINUE = "CONTINUE"
    FAIL = "FAIL"


class IntegerTensorsChoice(StrEnum):
    """How tensors of integers and booleans are aggregated."""

    HEAVIEST = "HEAVIEST"
    MEAN = "MEAN"


def create(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="A name for people, at most 200 characters.")],
    target_num_updates: Annotated[
        int, typer.Option(min=0, max=UINT32, help="Updates of the global model to make; 0 to evaluate a stored model.")
    ],
    model_file: Annotated[Path | None, typer.Argument(help="The initial model, a safetensors file.")] = None,
    model_id: Annotated[
        str, typer.Option(help="Instead of a file: name or id of a stored model.", autocompletion=names.complete_models)
    ] = "",
    model_version: Annotated[
        int | None,
        typer.Option(min=0, max=UINT32, help="The version of --model-id to start from; the latest by default."),
    ] = None,
    architecture: Annotated[str, typer.Option(help="Registered architecture that predictions use.")] = "",
    description: Annotated[str, typer.Option(help="A description for people.")] = "",
    client: Annotated[
        list[str] | None,
        typer.Option(help="Name or id of a user to register; repeat for more.", autocompletion=names.complete_users),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric that evaluations report; repeat for more.")] = None,
    min_updates: Annotated[int, typer.Option(min=0, max=UINT32, help=MIN_UPDATES_HELP)] = 0,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds that a round may stay open; no limit by default.")
    ] = None,
    max_retries: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="How often a round that misses its deadline is repeated; 0 ends the training."
        ),
    ] = 0,
    on_failure: Annotated[
        OnFailureChoice,
        typer.Option(
            case_sensitive=False, help="If a participant fails: continue without it, or end the training in ERROR."
        ),
    ] = OnFailureChoice.CONTINUE,
    absent_after: Annotated[
        float | None,
        typer.Option(help="Seconds without a connection after which a round does not wait for a participant."),
    ] = None,
    wait_after_min: WaitAfterMinOption = None,
    fraction: FractionOption = None,
    cohort_size: SizeOption = None,
    min_available: MinAvailableOption = 0,
    over_selection: OverSelectionOption = None,
    label: LabelOption = None,
    available_only: AvailableOnlyOption = False,
    cohort_seed: SeedOption = None,
    aggregation: AggregationChoice = "",
    clipping: ClippingOption = "",
    mixing: MixingOption = "",
    server_optimizer: OptimizerOption = "",
    buffering: BufferingOption = "",
    buffer: BufferOption = None,
    differential_privacy: PrivacyOption = "",
    shadow: ShadowOption = None,
    evaluation: EvaluationOption = None,
    evaluation_min_updates: EvaluationMinUpdatesOption = None,
    minimize: Annotated[str, typer.Option(metavar="METRIC", help="The best version has its smallest value.")] = "",
    maximize: Annotated[str, typer.Option(metavar="METRIC", help="The best version has its largest value.")] = "",
    patience: Annotated[
        int, typer.Option(min=0, max=UINT32, help="Stop after this many updates in a row without a better version.")
    ] = 0,
    keep_versions: Annotated[
        int,
        typer.Option(min=0, max=UINT32, help="Latest versions that keep their files, besides tagged ones; 0 for all."),
    ] = 0,
    keep_update_rounds: Annotated[
        int | None,
        typer.Option(
            min=0, max=UINT32, help="Latest rounds that keep the files of their updates; 0 for none, all by default."
        ),
    ] = None,
    allow_relays: Annotated[
        bool,
        typer.Option("--allow-relays", help="Participants may be relays, which send the sum of many updates as one."),
    ] = False,
    uncertainty: MethodOption = None,
    samples: SamplesOption = 0,
    softmax: SoftmaxOption = False,
    swag_every: Annotated[
        int,
        typer.Option(
            min=0, max=UINT32, help="Updates between SWAG rounds; 0 for one SWAG round after the last update."
        ),
    ] = 0,
    swag_rank: Annotated[int, typer.Option(min=0, max=UINT32, help="How many deviations each participant sends.")] = 0,
    last_versions: LastVersionsOption = 0,
    member: MemberOption = None,
    max_num_examples: Annotated[
        int, typer.Option(min=0, max=2**31, help="Largest num_examples of an update; 0 for the server's limit.")
    ] = 0,
    max_update_norm: Annotated[
        float, typer.Option(min=0, help="Largest L2 distance of an update from its model; 0 for no limit.")
    ] = 0.0,
    update_precision: PrecisionOption = PrecisionChoice.FULL,
    tensor_precision: TensorPrecisionOption = None,
    stochastic_rounding: StochasticRoundingOption = False,
    allow_non_finite_buffers: NonFiniteOption = False,
    integer_tensors: Annotated[
        IntegerTensorsChoice,
        typer.Option(
            case_sensitive=False,
            help="Integers and booleans: HEAVIEST takes them from the update with the most examples, MEAN averages and"
            " rounds them. num_batches_tracked gets the maximum.",
        ),
    ] = IntegerTensorsChoice.HEAVIEST,
    trainable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Updates contain only tensors with matching names, such as '*.lora_?'; repeat for more.",
        ),
    ] = None,
    private: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Tensors that each participant keeps, and never sends; repeat for more."),
    ] = None,
    external_base: Annotated[
        str, typer.Option(metavar="SHA256", help="Digest of a file of other tensors that only the participants have.")
    ] = "",
    config: ConfigOptions = None,
    client_config: ClientConfigOptions = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Create a training from a model file or a stored model."""
    if (model_file is None) == (not model_id):
        raise typer.BadParameter("give either a MODEL_FILE or a --model-id")
    if not target_num_updates and not (model_id and metric):
        raise typer.BadParameter("--target-num-updates 0 evaluates a stored model: it needs --model-id and --metric")
    if deadline is not None and not 0 < deadline <= 366 * 86_400:
        raise typer.BadParameter("--deadline must be more than 0 seconds, and at most a year")
    if max_retries and deadline is None:
        raise typer.BadParameter("--max-retries needs a --deadline: it repeats a round that misses it")
    if absent_after is not None and not 0 < absent_after <= 365 * 86_400:
        raise typer.BadParameter("--absent-after must be more than 0 seconds, and at most 365 days")
    if wait_after_min and not min_updates:
        raise typer.BadParameter("--wait-after-min needs --min-updates: without it a round waits for everybody")
    cohort = cohort_option(
        fraction,
        cohort_size,
        min_available=min_available,
        over_selection=over_selection,
        labels=label or (),
        available_only=available_only,
        seed=cohort_seed,
    )
    evaluation_policy = None
    if evaluation_min_updates is not None:
        wait = wait_after_min if evaluation_min_updates else None
        evaluation_policy = round_policy(
            evaluation_min_updates, deadline, max_retries, on_failure.value, absent_after, wait
        )
    stages = aggregation_option(
        aggregation,
        clipping,
        mixing,
        server_optimizer,
        buffer or (),
        buffering,
        shadows=shadow or (),
        differential_privacy=differential_privacy,
    )
    selection = _selection(minimize, maximize, patience)
    method = uncertainty_option(
        uncertainty,
        samples=samples,
        softmax=softmax,
        every=swag_every,
        rank=swag_rank,
        last_versions=last_versions,
        members=member,
    )
    values = parse(config or ())
    tensor_precisions = parse_tensor_precisions(tensor_precision or ())
    with client_of(context) as connection, progress("upload") as report:
        client_ids = names.user_ids(connection, client or ())
        training = connection.create_training(
            model_file,
            name=name,
            target_num_updates=target_num_updates,
            model_id=names.model_id(connection, model_id) if model_id else "",
            model_version=model_version,
            architecture=architecture,
            description=description,
            metric_names=metric or (),
            client_ids=client_ids,
            aggregation=with_user_ids(connection, stages),
            uncertainty=with_member_ids(connection, method),
            min_updates=min_updates,
            deadline=deadline,
            max_retries=max_retries,
            on_failure=on_failure.value,
            absent_after=absent_after,
            wait_after_min=wait_after_min,
            cohort=cohort,
            evaluation=None if evaluation is None else evaluation.value,
            evaluation_policy=evaluation_policy,
            selection=selection,
            keep_versions=keep_versions,
            keep_update_rounds=keep_update_rounds,
            max_num_examples=max_num_examples,
            max_update_norm=max_update_norm,
            update_precision=update_precision.value,
            tensor_precisions=tensor_precisions,
            stochastic_rounding=stochastic_rounding,
            allow_non_finite_buffers=allow_non_finite_buffers,
            integer_tensors=integer_tensors.value,
            trainable=trainable or (),
            private=private or (),
            external_base_sha256=external_base,
            config=values,
            client_config=parse_clients(connection, client_config or ()),
            allow_relays=allow_relays,
            progress=report,
        )
    show_training(training, form)


def _selection(minimize: str, maximize: str, patience: int) -> Selection | None:
    if minimize and maximize:
        raise typer.BadParameter("--minimize and --maximize contradict each other: choose one metric")
    if minimize:
        return Selection(minimize, "MINIMIZE", patience)
    if maximize:
        return Selection(maximize, "MAXIMIZE", patience)
    if patience:
        raise typer.BadParameter("--patience needs a metric to --minimize or to --maximize")
    return None
