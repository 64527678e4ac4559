"""The uncertainty of the model on rotated digits, which it was not trained on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import fedround_client as fr
from fedround_client.demo.data import Digits

METHOD = fr.McDropout(samples=30, softmax=True)
DEGREES = tuple(range(0, 181, 15))
NUM_IMAGES = 100


@dataclass(frozen=True)
class RotationResult:
    """Means over the same images for each angle; entropies in nats.

    Attributes:
        degrees: The angles, from 0.
        examples: The images at each angle.
        accuracy: Fraction of images that are classified correctly.
        predictive_entropy: The total uncertainty of the predictions.
        expected_entropy: The uncertainty of the data.
        mutual_information: The uncertainty of the model: how much its passes differ.
    """

    degrees: tuple[int, ...]
    examples: list[npt.NDArray[np.float32]]
    accuracy: list[float]
    predictive_entropy: list[float]
    expected_entropy: list[float]
    mutual_information: list[float]


def predict_rotated(actor: fr.Client, model_id: str, digits: Digits, seed: int) -> RotationResult:
    """Predicts rotated digits on the server.

    Args:
        actor: The client of the model's owner.
        model_id: UUID of the model; its best version is used.
        digits: Images to choose from.
        seed: Seed of the choice and of the predictions.
    """
    sample = digits.select(np.random.default_rng(seed).permutation(len(digits))[:NUM_IMAGES])
    rotated = RotationResult(DEGREES, [], [], [], [], [])
    for degrees in DEGREES:
        images = rotate(sample.images, degrees)
        prediction = actor.predict(model_id, images, tag="best", seed=seed)
        rotated.examples.append(images)
        rotated.accuracy.append(float((prediction.mean.argmax(axis=1) == sample.labels).mean()))
        rotated.predictive_entropy.append(_mean(prediction.predictive_entropy))
        rotated.expected_entropy.append(_mean(prediction.expected_entropy))
        rotated.mutual_information.append(_mean(prediction.mutual_information))
    return rotated


def rotate(images: npt.NDArray[np.float32], degrees: int) -> npt.NDArray[np.float32]:
    """Returns images of shape (n, 1, 8, 8) rotated around their centre; corners are filled with white."""
    # scipy takes time to import, and participants do not need it.
    from scipy import ndimage

    rotated: npt.NDArray[np.float32] = ndimage.rotate(images, degrees, axes=(2, 3), reshape=False, order=1)
    return rotated


def _mean(entropies: npt.NDArray[np.float32] | None) -> float:
    # With softmax, predictions have entropies.
    return 0.0 if entropies is None else float(entropies.mean())
