import numpy as np

from fedround_client.demo import data, uncertainty


def test_turning_keeps_what_is_in_the_middle() -> None:
    images = data.load().select(np.arange(5)).images
    assert np.array_equal(uncertainty.rotate(images, 0), images)
    assert np.allclose(uncertainty.rotate(images, 90), np.rot90(images, axes=(2, 3)), atol=1e-5)
    assert np.allclose(uncertainty.rotate(images, 180), images[:, :, ::-1, ::-1], atol=1e-5)
    rotated = uncertainty.rotate(images, 45)
    assert rotated.shape == images.shape
    assert rotated.dtype == np.float32
