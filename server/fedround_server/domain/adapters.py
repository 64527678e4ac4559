"""Adapters (LoRA): pairs of matrices A and B whose product is added to a weight, found by their names in PEFT.

PEFT: https://github.com/huggingface/peft. loralib's names, which lack ".weight", are found too.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedround_server.domain.model import Manifest, TensorSpec

NAME = re.compile(r"((?:.*\.)?)lora_([AB])((?:\.[^.]+)?\.weight|)", re.DOTALL)
"""The module with its dot, which of the two matrices, and the name of the adapter."""


@dataclass(frozen=True, slots=True)
class AdapterPair:
    """The names of the two matrices of an adapter.

    Attributes:
        a: A, of shape (rank, inputs), or (rank, inputs, *kernel) for a convolution.
        b: B, of shape (outputs, rank), or (outputs, rank, 1, ...) for a convolution.
        module: What precedes the names of the tensors of the adapted layer.
    """

    a: str
    b: str
    module: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """The names of both."""
        return self.a, self.b

    def weight(self, model: Collection[str]) -> str | None:
        """Returns the name of the weight that the product is added to; None if the model lacks it."""
        return next((name for name in self.possible_weights if name in model), None)

    @property
    def possible_weights(self) -> tuple[str, str]:
        """The names that the weight has in PEFT: while the layer is wrapped, and otherwise."""
        return f"{self.module}base_layer.weight", f"{self.module}weight"

    def has_shapes(self, tensors: Manifest) -> bool:
        """Returns whether the shapes are those of two matrices with one rank."""
        a, b = tensors[self.a].shape, tensors[self.b].shape
        return min(len(a), len(b)) >= 2 and a[0] == b[1] and all(size == 1 for size in b[2:]) and 0 not in (*a, *b)

    def rank(self, tensors: Manifest) -> int:
        """Returns the rank."""
        return tensors[self.a].shape[0]

    def of_rank(self, tensors: Manifest, rank: int) -> dict[str, TensorSpec]:
        """Returns both tensors with another rank."""
        a, b = tensors[self.a], tensors[self.b]
        return {
            self.a: TensorSpec(a.dtype, (rank, *a.shape[1:])),
            self.b: TensorSpec(b.dtype, (b.shape[0], rank, *b.shape[2:])),
        }


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a rule does with the adapters of a model, other than aggregating each tensor by itself.

    Attributes:
        pairs: Those that are aggregated by their products. Updates may have them in a lower rank.
        merged: The weights that products are added to, by name, although updates do not have them.
        frozen: Tensors that keep the values of the model, whatever updates have.
    """

    pairs: tuple[AdapterPair, ...] = ()
    merged: Mapping[str, AdapterPair] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()


NO_ADAPTERS = Adapters()


def find_pairs(names: Collection[str]) -> tuple[list[AdapterPair], list[str]]:
    """Returns the adapters among some tensors, and the names of matrices that lack their partner."""
    pairs, alone = [], []
    for name in names:
        # Most of a model's 20,000 names need no regular expression.
        found = NAME.fullmatch(name) if "lora_" in name else None
        if found is None:
            continue
        module, kind, adapter = found.groups()
        other = f"{module}lora_{'B' if kind == 'A' else 'A'}{adapter}"
        if other not in names:
            alone.append(name)
        elif kind == "A":
            pairs.append(AdapterPair(name, other, module))
    return pairs, alone


def of_ranks_in(update: Manifest, model: Manifest, pairs: Collection[AdapterPair]) -> Manifest:
    """Returns the tensors that an update must have, with the ranks that its adapters have where these are acceptable.

    Args:
        update: The tensors of the update.
        model: The tensors that it must have, with the ranks of the model.
        pairs: The adapters that may have a lower rank.
    """
    lower: dict[str, TensorSpec] = {}
    for pair in pairs:
        if update.keys() >= set(pair.names) and pair.has_shapes(update):
            rank = pair.rank(update)
            wanted = pair.of_rank(model, rank)
            if rank < pair.rank(model) and all(update[name] == spec for name, spec in wanted.items()):
                lower |= wanted
    return {**model, **lower} if lower else model
