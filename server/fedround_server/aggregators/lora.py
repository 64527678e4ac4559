"""Rules for adapters (LoRA): the mean of the products B A is not the product of the means.

FLoRA: Wang et al., Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations, NeurIPS 2024,
arXiv 2409.05976.
FlexLoRA: Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources,
NeurIPS 2024, arXiv 2402.11505.
FFA-LoRA: Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv 2403.12313.

The tensors that are no adapters are aggregated as by FedAvg.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround_server.aggregators.fed_avg import FedAvg
from fedround_server.aggregators.options import check_positive, check_range
from fedround_server.aggregators.rule import NoAggregate
from fedround_server.domain.adapters import AdapterPair, Adapters, find_pairs
from fedround_server.domain.errors import AggregationIncompatible, FieldInvalid
from fedround_server.domain.tensor_selection import some

if TYPE_CHECKING:
    from torch import Tensor

    from fedround_server.domain.model import Manifest
    from fedround_server.domain.tensor_selection import TensorSelection

TRAINABLE = "spec.tensors.trainable"
OTHER_FORMS = ("lora_embedding_A", "lora_embedding_B")
"""Matrices of PEFT that have other shapes."""
MAGNITUDE = "lora_magnitude_vector"
"""What DoRA multiplies the sum of weight and product by."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix, as the product of two.

    Attributes:
        left: Shape (outputs, columns), float64.
        right: Shape (columns, inputs), float64; None for the identity.
    """

    left: Tensor
    right: Tensor | None = None

    def rows(self, start: int, count: int) -> Tensor:
        """Returns some rows of the matrix: shape (count, inputs), float64."""
        rows = self.left[start : start + count]
        return rows if self.right is None else rows @ self.right


class AdapterRule(FedAvg):
    """A rule that treats adapters in a way of its own."""

    nests = False

    def check_model(self, model: Manifest, tensors: TensorSelection) -> None:
        """Checks that the model has adapters that fit the rule.

        Raises:
            AggregationIncompatible: It has none, or some that do not.
            FieldInvalid: spec.tensors.trainable or an option does not fit them.
        """
        pairs, alone = find_pairs(model)
        trained = tensors.trained(model)
        pairs = [pair for pair in pairs if not trained.keys().isdisjoint(pair.names)]
        if lone := [name for name in alone if name in trained]:
            raise self._incompatible(
                f"finds {some(lone)} without the other matrix: a model has both lora_A and lora_B of an adapter"
            )
        for pair in pairs:
            self._check_pair(pair, model)
        if others := [name for name in trained if any(form in name.split(".") for form in OTHER_FORMS)]:
            raise self._incompatible(
                f"aggregates no adapters of embeddings, such as {some(others)}: adapt other layers, or take fed_avg"
            )
        self.check_trained(pairs, model, tensors)

    @abstractmethod
    def check_trained(self, pairs: Collection[AdapterPair], model: Manifest, tensors: TensorSelection) -> None:
        """Checks the adapters of which a matrix is trained; raises as `check_model`."""

    def _check_pair(self, pair: AdapterPair, model: Manifest) -> None:
        for name in pair.names:
            dtype = model[name].dtype
            if not dtype.is_floating or dtype.is_complex:
                raise self._incompatible(f"needs real floating-point adapters, and tensor {name!r} is {dtype.name}")
        if not pair.has_shapes(model):
            shapes = " and ".join(f"{name!r} {list(model[name].shape)}" for name in pair.names)
            raise self._incompatible(
                f"needs lora_A of shape [rank, in] and lora_B of shape [out, rank]: {shapes} do not fit"
            )

    def _incompatible(self, problem: str) -> AggregationIncompatible:
        return AggregationIncompatible(self.name, problem)

    def _none(self, what: str, model: Manifest) -> AggregationIncompatible:
        return self._incompatible(
            f"finds no {what}: names end in lora_A.weight and lora_B.weight, as PEFT gives them, and the model has"
            f" {some(model)}"
        )


@dataclass(frozen=True)
class FreezeA(AdapterRule):
    """FFA-LoRA: A stays as it is, so that the mean of the B is exact; what updates have for A does not count."""

    name = "freeze_a"

    def check_trained(self, pairs: Collection[AdapterPair], model: Manifest, tensors: TensorSelection) -> None:
        """Checks that a B is trained, and no A without its B."""
        trained = tensors.trained(model)
        if frozen := [pair.a for pair in pairs if pair.b not in trained]:
            raise FieldInvalid(
                TRAINABLE,
                f"selects {some(frozen)} and not its lora_B, and freeze_a averages nothing but lora_B: select that",
            )
        if not pairs:
            raise self._none("lora_B among the trained tensors", model)

    def adapters(self, model: Manifest, trained: Manifest) -> Adapters:
        """Returns the A that are frozen."""
        return Adapters(frozen=frozenset(pair.a for pair in find_pairs(trained)[0]))


class ProductRule(AdapterRule):
    """A rule that aggregates each adapter by the weighted mean of the products B A."""

    def check_trained(self, pairs: Collection[AdapterPair], model: Manifest, tensors: TensorSelection) -> None:
        """Checks that each adapter is trained as a whole, or not at all."""
        trained = tensors.trained(model)
        if lacking := [name for pair in pairs for name in pair.names if name not in trained]:
            raise FieldInvalid(
                TRAINABLE if tensors.trainable else "spec.tensors.private",
                f"leaves out {some(lacking)}, and the other matrix is trained: {self.name} needs both of an adapter",
            )
        if not pairs:
            raise self._none("pair of adapters among the trained tensors", model)

    def adapters(self, model: Manifest, trained: Manifest) -> Adapters:
        """Returns the adapters that are trained."""
        return Adapters(tuple(find_pairs(trained)[0]))

    @abstractmethod
    def renewed(self, a: Tensor, b: Tensor, product: Callable[[], Product]) -> tuple[Tensor, Tensor]:
        """Returns the adapter of the next version.

        Args:
            a: That of the model: shape (rank, inputs), float64.
            b: The same: shape (outputs, rank), float64.
            product: Returns the weighted mean of the products of the updates.

        Returns:
            The same shapes, in float64.

        Raises:
            NoAggregate: There is none.
        """


@dataclass(frozen=True)
class LoraSvd(ProductRule):
    """FlexLoRA: the adapter whose product is nearest to the mean, by a truncated singular value decomposition.

    Attributes:
        rank: Rank of the product, at most that of the model's adapters; 0 for that.
    """

    name = "lora_svd"
    rank: int = 0

    def check(self) -> None:
        """Checks the rank; a model says how large it may be."""
        check_range("rank", self.rank, 0)

    def check_trained(self, pairs: Collection[AdapterPair], model: Manifest, tensors: TensorSelection) -> None:
        """Checks the rank, too."""
        super().check_trained(pairs, model, tensors)
        for pair in pairs:
            if self.rank > pair.rank(model):
                raise FieldInvalid(
                    "spec.aggregation.lora_svd.rank",
                    f"is {self.rank}; tensor {pair.a!r} has the rank {pair.rank(model)}, and must have at least that",
                )

    def renewed(self, a: Tensor, b: Tensor, product: Callable[[], Product]) -> tuple[Tensor, Tensor]:
        """Returns A = V^T and B = U S for the largest singular values, of which B has those that are not 0.

        Where the mean lacks a direction, B is zero and A keeps its row: if both were zero, so would their gradients be,
        for ever. Beyond the option `rank`, both are zero.
        """
        import torch

        rank = self.rank or len(a)
        u, values, vt = decompose(product())
        limit = float(values[0]) * max(len(u), vt.shape[1]) * torch.finfo(torch.float64).eps
        used = min(rank, int((values > limit).sum()))
        new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
        new_a[:rank] = a[:rank]
        new_a[:used] = vt[:used]
        new_b[:, :used] = u[:, :used] * values[:used]
        return new_a, new_b


@dataclass(frozen=True)
class LoraStack(ProductRule):
    """FLoRA: the mean of the products is added to the weights, and the adapters begin anew.

    The paper sends the stacked matrices to all participants, which add their product to their copies of the weights.
    Here the server adds it, so that each version is complete.

    Attributes:
        scaling: What the product of an adapter is multiplied by in the network, such as lora_alpha / rank.
    """

    name = "lora_stack"
    scaling: float = 1.0

    def check(self) -> None:
        """Checks the scaling."""
        check_positive("scaling", self.scaling)

    def check_trained(self, pairs: Collection[AdapterPair], model: Manifest, tensors: TensorSelection) -> None:
        """Checks the weights that the products are added to, too."""
        super().check_trained(pairs, model, tensors)
        trained, private = tensors.trained(model), tensors.private_names(model)
        if scaled := [name for name in model if MAGNITUDE in name.split(".")]:
            raise self._incompatible(
                f"cannot merge adapters of DoRA, which the model has: {some(scaled)}: take lora_svd"
            )
        adapted: dict[str, AdapterPair] = {}
        for pair in pairs:
            weight = pair.weight(model)
            if weight is None:
                wrapped, plain = pair.possible_weights
                raise self._incompatible(
                    f"adds products to weights, and the model has neither {wrapped!r} nor {plain!r} for {pair.a!r}:"
                    " create the training from a model with all weights, without an external base, or take lora_svd"
                )
            if weight in trained:
                raise FieldInvalid(
                    TRAINABLE,
                    f"selects {weight!r}, to which lora_stack adds the product of adapters: select the adapters only,"
                    ' as "*lora_*" does',
                )
            if weight in private:
                raise FieldInvalid("spec.tensors.private", f"matches {weight!r}, to which lora_stack adds products")
            if weight in adapted:
                raise self._incompatible(
                    f"adds one product to a weight, and both {adapted[weight].a!r} and {pair.a!r} adapt {weight!r}"
                )
            adapted[weight] = pair
            self._check_weight(weight, pair, model)

    def _check_weight(self, weight: str, pair: AdapterPair, model: Manifest) -> None:
        spec, wanted = model[weight], (model[pair.b].shape[0], *model[pair.a].shape[1:])
        if not spec.dtype.is_floating or spec.dtype.is_complex:
            raise self._incompatible(
                f"adds products to real floating-point weights, and {weight!r} is {spec.dtype.name}: take lora_svd"
            )
        if spec.shape != wanted:
            transposed = spec.shape == wanted[::-1]
            raise self._incompatible(
                f"needs tensor {weight!r} of shape {list(wanted)} for {pair.a!r}, and it has {list(spec.shape)}"
                + (
                    ": the layer has its weight transposed (fan_in_fan_out of PEFT); take lora_svd"
                    if transposed
                    else ""
                )
            )

    def adapters(self, model: Manifest, trained: Manifest) -> Adapters:
        """Returns the adapters that are trained, and the weights that they adapt."""
        pairs = find_pairs(trained)[0]
        return Adapters(tuple(pairs), {weight: pair for pair in pairs if (weight := pair.weight(model)) is not None})

    def renewed(self, a: Tensor, b: Tensor, product: Callable[[], Product]) -> tuple[Tensor, Tensor]:
        """Returns the model's A, and zeros: the product is in the weights."""
        return a, b.new_zeros(b.shape)


def mean_product(updates: Iterable[tuple[Tensor, Tensor]], weights: Sequence[int], ranks: int) -> Product:
    """Returns the weighted mean of products B A.

    Args:
        updates: A and B of each update, read one by one: shapes (rank, inputs) and (outputs, rank), float64.
        weights: The weights.
        ranks: The sum of the ranks.

    Returns:
        The factors [p_1 B_1 ... p_n B_n] and [A_1; ...; A_n], as long as they are smaller than the product.
    """
    import torch

    total = sum(weights)
    lefts, rights = [], []
    product: Tensor | None = None
    for (a, b), weight in zip(updates, weights, strict=True):
        b = b * (weight / total)
        if ranks < min(a.shape[1], len(b)):
            lefts.append(b)
            rights.append(a)
        else:
            product = b @ a if product is None else product.addmm_(b, a)
    return Product(torch.cat(lefts, dim=1), torch.cat(rights)) if product is None else Product(product)


def decompose(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the thin singular value decomposition of a product of thin matrices, without computing the product.

    QR decompositions of both factors leave a square matrix with as many rows as the factors have columns.

    Returns:
        U, S and V^T in float64, the largest singular value first. In each row of V^T, the entry with the largest
        magnitude is positive, which fixes the signs.

    Raises:
        NoAggregate: Float64 does not hold the product, or the decomposition does not converge.
    """
    import torch

    left, right = product.left, product.right
    if right is not None:
        (left_basis, left), (right_basis, right) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    core = left if right is None else left @ right.T
    if not torch.isfinite(core).all():
        raise NoAggregate("the mean of the products of adapters has values that float64 cannot hold")
    try:
        u, values, vt = torch.linalg.svd(core, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not say that it exports it
        raise NoAggregate("the decomposition of the mean of the products of adapters does not converge") from None
    if right is not None:
        u, vt = left_basis @ u, vt @ right_basis.T
    signs = vt.gather(1, vt.abs().argmax(dim=1, keepdim=True)).sign()
    return u * signs.T, values, vt * signs
