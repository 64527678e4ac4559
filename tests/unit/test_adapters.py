"""Adapters are found by their names, and models that do not fit a rule for adapters are refused, naming the tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fedround_server.aggregators.lora import AdapterRule, FreezeA, LoraStack, LoraSvd
from fedround_server.domain.adapters import AdapterPair, find_pairs, of_ranks_in
from fedround_server.domain.errors import AggregationIncompatible, FieldInvalid, UpdateMismatch
from fedround_server.domain.model import Dtype, Manifest, TensorSpec
from fedround_server.domain.rounds.kind import ExpectedTensors
from fedround_server.domain.tensor_selection import ALL_TENSORS, TensorSelection
from fedround_server.engine.format.compare import check_same

ADAPTERS = TensorSelection(("*lora_*",))


def manifest(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype = Dtype.F32) -> Manifest:
    return {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}


def layer(prefix: str = "q.", rank: int = 4, weight: str = "weight") -> Manifest:
    return manifest(
        {f"{prefix}{weight}": (9, 7), f"{prefix}lora_A.weight": (rank, 7), f"{prefix}lora_B.weight": (9, rank)}
    )


def changed(name: str, **spec: Any) -> Manifest:
    """A layer in which one tensor is another one."""
    model = layer()
    return {**model, f"q.{name}": replace(model[f"q.{name}"], **spec)}


MODEL = {**layer("a."), **layer("b.", 2)}


@pytest.mark.parametrize(
    ("a", "module"),
    [
        ("lora_A", ""),
        ("lora_A.weight", ""),
        ("layers.0.q_proj.lora_A.weight", "layers.0.q_proj."),
        ("base_model.model.q.lora_A.default.weight", "base_model.model.q."),
        ("lora_A.lora_A.x.weight", "lora_A."),
        ("q.lora_A", "q."),
    ],
)
def test_pairs_have_the_names_of_peft_and_loralib(a: str, module: str) -> None:
    other = "lora_B".join(a.rsplit("lora_A", 1))
    assert find_pairs([other, a, "head.weight"]) == ([AdapterPair(a, other, module)], [])
    assert find_pairs([other]) == ([], [other])


@pytest.mark.parametrize(
    "name", ["xlora_A.weight", "q.lora_A.a.b.weight", "q.lora_A.bias", "q.lora_embedding_A.default"]
)
def test_other_names_are_those_of_no_pair(name: str) -> None:
    assert find_pairs([name, name.replace("_A", "_B")]) == ([], [])


@pytest.mark.parametrize("rule", [LoraStack(), LoraSvd(), LoraSvd(2), FreezeA()])
@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        layer("base_model.model.q.", weight="base_layer.weight"),
        manifest({"c.weight": (6, 3, 5, 5), "c.lora_A.weight": (2, 3, 5, 5), "c.lora_B.weight": (6, 2, 1, 1)}),
    ],
)
def test_models_that_fit(rule: AdapterRule, model: Manifest) -> None:
    rule.check_model(model, ADAPTERS)


def refused(rule: AdapterRule, model: Manifest, field: str, *words: str, tensors: TensorSelection = ADAPTERS) -> None:
    with pytest.raises((AggregationIncompatible, FieldInvalid)) as raised:
        rule.check_model(model, tensors)
    assert raised.value.field == field
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("rule", [LoraStack(), LoraSvd(), FreezeA()])
def test_models_that_fit_no_rule(rule: AdapterRule) -> None:
    field = f"spec.aggregation.{rule.name}"
    refused(rule, manifest({"head": (2,)}), field, "among the trained tensors", "'head'", tensors=ALL_TENSORS)
    alone = {name: spec for name, spec in MODEL.items() if name != "b.lora_B.weight"}
    refused(rule, alone, field, "'b.lora_A.weight' without the other matrix")
    for shape in ((9, 3), (4, 9), (9,), (9, 4, 2), (0, 4)):
        words = f"'q.lora_B.weight' {list(shape)} do not fit"
        refused(rule, changed("lora_B.weight", shape=shape), field, words)
    for dtype in (Dtype.I8, Dtype.C64):
        refused(rule, changed("lora_A.weight", dtype=dtype), field, f"'q.lora_A.weight' is {dtype.name}")
    embedding = {**MODEL, **manifest({"e.lora_embedding_A": (4, 50)})}
    refused(rule, embedding, field, "adapters of embeddings, such as 'e.lora_embedding_A'")


def test_only_one_matrix_is_trained() -> None:
    only_a, only_b = TensorSelection(("*lora_A*",)), TensorSelection(("*lora_B*",))
    for rule in (LoraStack(), LoraSvd()):
        refused(
            rule, MODEL, "spec.tensors.trainable", "leaves out 'a.lora_B.weight', 'b.lora_B.weight'", tensors=only_a
        )
        refused(rule, MODEL, "spec.tensors.trainable", "leaves out 'a.lora_A.weight'", tensors=only_b)
    private = TensorSelection(private=("*lora_A*",))
    refused(LoraSvd(), MODEL, "spec.tensors.private", "leaves out 'a.lora_A.weight'", tensors=private)
    FreezeA().check_model(MODEL, only_b)
    refused(FreezeA(), MODEL, "spec.tensors.trainable", "'a.lora_A.weight', 'b.lora_A.weight' and not", tensors=only_a)
    # One of the adapters may stay as it is.
    LoraSvd(4).check_model(MODEL, TensorSelection(("a.lora*",)))


def test_a_rank_above_that_of_an_adapter() -> None:
    refused(LoraSvd(3), MODEL, "spec.aggregation.lora_svd.rank", "is 3; tensor 'b.lora_A.weight' has the rank 2")


def test_weights_that_products_cannot_be_added_to() -> None:
    field = "spec.aggregation.lora_stack"
    rule = LoraStack()
    without = {name: spec for name, spec in MODEL.items() if name != "b.weight"}
    refused(rule, without, field, "'b.base_layer.weight' nor 'b.weight' for 'b.lora_A.weight'", "external base")
    LoraSvd().check_model(without, ADAPTERS)
    refused(rule, changed("weight", dtype=Dtype.I8), field, "'q.weight' is I8")
    refused(rule, changed("weight", shape=(7, 9)), field, "[9, 7] for 'q.lora_A.weight'", "fan_in_fan_out")
    refused(rule, changed("weight", shape=(9, 8)), field, "it has [9, 8]")
    refused(rule, MODEL, "spec.tensors.trainable", "selects 'a.weight'", tensors=ALL_TENSORS)
    private = TensorSelection(("*lora_*",), ("a.weight",))
    refused(rule, MODEL, "spec.tensors.private", "'a.weight', to which lora_stack adds", tensors=private)
    two = {**layer(), **manifest({"q.lora_A.two.weight": (1, 7), "q.lora_B.two.weight": (9, 1)})}
    refused(rule, two, field, "both 'q.lora_A.weight' and 'q.lora_A.two.weight' adapt 'q.weight'")
    LoraSvd().check_model(two, ADAPTERS)
    dora = {**MODEL, **manifest({"a.lora_magnitude_vector.default.weight": (9,)})}
    refused(rule, dora, field, "DoRA")


PAIRS = tuple(find_pairs(MODEL)[0])
TRAINED = ADAPTERS.trained(MODEL)


def at(ranks: Mapping[str, int], **changed: TensorSpec) -> Manifest:
    found = dict(TRAINED)
    for pair in PAIRS:
        found |= pair.of_rank(found, ranks.get(pair.module, pair.rank(found)))
    return found | changed


@pytest.mark.parametrize("ranks", [{}, {"a.": 1}, {"a.": 3, "b.": 1}, {"b.": 1}])
def test_updates_of_lower_ranks_are_expected(ranks: Mapping[str, int]) -> None:
    assert of_ranks_in(at(ranks), TRAINED, PAIRS) == at(ranks)


@pytest.mark.parametrize(
    "update",
    [
        at({"a.": 5}),
        at({"a.": 0}),
        at({"a.": 2}) | {"a.lora_B.weight": TRAINED["a.lora_B.weight"]},
        at({"a.": 2}) | {"a.lora_B.weight": TensorSpec(Dtype.F32, (8, 2))},
        at({"a.": 2}) | {"a.lora_A.weight": TensorSpec(Dtype.F32, (2, 6))},
        at({"a.": 2}) | {"a.lora_A.weight": TensorSpec(Dtype.F16, (2, 7))},
        at({"a.": 2}) | {"a.lora_A.weight": TensorSpec(Dtype.F32, ())},
    ],
)
def test_other_shapes_are_not(update: Manifest) -> None:
    assert of_ranks_in(update, TRAINED, PAIRS) == TRAINED
    words = r"tensor 'a\.lora_.\.weight' is .*lower rank, from 1 on, the same in lora_A and lora_B"
    with pytest.raises(UpdateMismatch, match=words):
        check_same(update, TRAINED, notes=ExpectedTensors(TRAINED, adapters=PAIRS).notes)
