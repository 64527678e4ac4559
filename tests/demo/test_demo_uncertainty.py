import numpy as np

from fedround_client.demo import data, uncertainty


def test_turning_keeps_what_is_in_the_middle() -> None:
    images = data.load().take(np.arange(5)).images
    assert np.array_equal(uncertainty.turn(images, 0), images)
    assert np.allclose(uncertainty.turn(images, 90), np.rot90(images, axes=(2, 3)), atol=1e-5)
    assert np.allclose(uncertainty.turn(images, 180), images[:, :, ::-1, ::-1], atol=1e-5)
    turned = uncertainty.turn(images, 45)
    assert turned.shape == images.shape
    assert turned.dtype == np.float32
