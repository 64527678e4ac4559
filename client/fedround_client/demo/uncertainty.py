"""How sure a model is of digits that are turned, which nobody showed it: it had better not be sure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import fedround_client as fr
from fedround_client.demo.data import Digits

METHOD = fr.McDropout(samples=30, softmax=True)
DEGREES = tuple(range(0, 181, 15))
NUM_IMAGES = 100


@dataclass(frozen=True)
class Turned:
    """Means over the same images, for each angle; entropies in nats.

    Attributes:
        degrees: The angles, from 0.
        examples: The images at each angle.
        accuracy: The share that the model recognises.
        predictive_entropy: How unsure its predictions are.
        expected_entropy: The part that is in the images.
        mutual_information: The part that is in the model: on how much its passes differ.
    """

    degrees: tuple[int, ...]
    examples: list[npt.NDArray[np.float32]]
    accuracy: list[float]
    predictive_entropy: list[float]
    expected_entropy: list[float]
    mutual_information: list[float]


def look(actor: fr.Client, model_id: str, digits: Digits, seed: int) -> Turned:
    """Has the server predict turned digits.

    Args:
        actor: Owns the model.
        model_id: UUID of the model; its best version predicts.
        digits: Some of these are turned.
        seed: Makes the predictions repeatable.
    """
    chosen = digits.take(np.random.default_rng(seed).permutation(len(digits))[:NUM_IMAGES])
    turned = Turned(DEGREES, [], [], [], [], [])
    for degrees in DEGREES:
        images = turn(chosen.images, degrees)
        found = actor.predict(model_id, images, tag="best", seed=seed)
        turned.examples.append(images)
        turned.accuracy.append(float((found.mean.argmax(axis=1) == chosen.labels).mean()))
        turned.predictive_entropy.append(_mean(found.predictive_entropy))
        turned.expected_entropy.append(_mean(found.expected_entropy))
        turned.mutual_information.append(_mean(found.mutual_information))
    return turned


def turn(images: npt.NDArray[np.float32], degrees: int) -> npt.NDArray[np.float32]:
    """Turns images of shape (n, 1, 8, 8) around their middle; what comes in at the corners is white."""
    # Comes with scikit-learn, and participants can do without it.
    from scipy.ndimage import rotate

    turned: npt.NDArray[np.float32] = rotate(images, degrees, axes=(2, 3), reshape=False, order=1)
    return turned


def _mean(entropies: npt.NDArray[np.float32] | None) -> float:
    # With softmax there are entropies.
    return 0.0 if entropies is None else float(entropies.mean())
