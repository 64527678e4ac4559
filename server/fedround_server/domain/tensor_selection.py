"""Which tensors of a model a training updates, and which each participant keeps."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from fedround_server.domain.errors import FieldInvalid
from fedround_server.domain.model import Manifest

MAX_NAMED = 5
"""How many tensors an error names."""


@dataclass(frozen=True, slots=True)
class TensorSelection:
    """Globs over the names of tensors, as `fnmatch.fnmatchcase` matches them.

    Attributes:
        trainable: What updates contain; empty for all but the private tensors.
        private: What participants keep to themselves.
        external_base_sha256: The digest of a file that the participants have and the server does not.
    """

    trainable: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    external_base_sha256: str | None = None

    @property
    def is_partial(self) -> bool:
        """Whether updates have a part of the model's tensors."""
        return bool(self.trainable or self.private)

    def trained(self, model: Manifest) -> Manifest:
        """Returns the tensors that an update has, in the order of the model."""
        if not self.is_partial:
            return model
        is_kept, is_trained = matcher(self.private), matcher(self.trainable)
        return {
            name: spec for name, spec in model.items() if (is_trained(name) if self.trainable else not is_kept(name))
        }

    def private_names(self, model: Iterable[str]) -> frozenset[str]:
        """Returns the names of the tensors that participants keep to themselves."""
        return frozenset(filter(matcher(self.private), model)) if self.private else frozenset()

    def check(self, model: Manifest) -> None:
        """Checks that the selection fits a model.

        Raises:
            FieldInvalid: A glob matches nothing, a tensor is trainable and private, or none is trained.
        """
        check_globs("spec.tensors.trainable", self.trainable, model)
        if self.external_base_sha256 is None:
            check_globs("spec.tensors.private", self.private, model)
        both = list(filter(matcher(self.trainable), self.private_names(model)))
        if both:
            raise FieldInvalid(
                "spec.tensors.private",
                f"and spec.tensors.trainable both match {some(both)}: a tensor is either private, and never sent, or"
                " trainable; change one of the globs",
            )
        if not self.trained(model):
            raise FieldInvalid(
                "spec.tensors.private", "matches every tensor of the model: leave some to be trained together"
            )


ALL_TENSORS = TensorSelection()
"""Updates have all tensors of the model."""


def matcher(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Returns the function that says whether a name matches one of some globs."""
    pattern = _pattern(globs)
    return lambda name: pattern.match(name) is not None


def unmatched(globs: Iterable[str], names: Collection[str]) -> list[str]:
    """Returns the globs that match none of some names."""
    return [glob for glob in globs if not any(map(matcher((glob,)), names))]


def some(names: Collection[str]) -> str:
    """Returns the first of some names, for an error."""
    more = len(names) - MAX_NAMED
    named = ", ".join(repr(name[:80]) for name in sorted(names)[:MAX_NAMED])
    return named + (f" and {more} more" if more > 0 else "")


def check_globs(field: str, globs: Iterable[str], model: Manifest) -> None:
    """Checks that each glob matches a tensor.

    Raises:
        FieldInvalid: One matches none.
    """
    if missing := unmatched(globs, model):
        raise FieldInvalid(
            field, f"{some(missing)}: no tensor of the model matches, which has {some(model)}: correct the glob"
        )


@lru_cache(maxsize=128)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    # One pattern for all: a model may have 20,000 tensors. Without globs it matches nothing.
    return re.compile("|".join(map(translate, globs)) if globs else r"(?!)")
