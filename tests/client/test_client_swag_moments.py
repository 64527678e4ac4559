import numpy as np
import pytest
import torch

from fedround_client import Moments, TensorError


def snapshots(count, dtype=np.float32):
    rng = np.random.default_rng(1)
    return [
        {"w": (1e4 + rng.normal(size=(3, 2))).astype(dtype), "b": dtype(rng.normal()), "steps": np.array(number)}
        for number in range(count)
    ]


def gather(weights, rank=0):
    moments = Moments(rank)
    for snapshot in weights:
        moments.add(snapshot)
    return moments.update()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_moments_are_the_means_in_float64(dtype):
    weights = snapshots(50, dtype)
    found = gather(weights)
    assert sorted(found) == ["mean/b", "mean/w", "second/b", "second/w"]
    for name in ("w", "b"):
        stacked = np.stack([np.asarray(snapshot[name], np.longdouble) for snapshot in weights])
        for moment, exact in (("mean", stacked.mean(0)), ("second", (stacked**2).mean(0))):
            tensor = found[f"{moment}/{name}"]
            assert (tensor.dtype, tensor.shape) == (np.float64, stacked.shape[1:])
            np.testing.assert_allclose(tensor, exact.astype(np.float64), rtol=1e-15)


def test_the_variance_survives_the_difference_of_large_numbers():
    weights = snapshots(50)
    found = gather(weights)
    variance = np.stack([snapshot["w"].astype(np.float64) for snapshot in weights]).var(0)
    np.testing.assert_allclose(found["second/w"] - found["mean/w"] ** 2, variance, rtol=1e-6)


def test_deviations_are_the_last_ones_from_the_mean_of_their_moment():
    weights = snapshots(5)
    found = gather(weights, rank=2)
    for column, last in enumerate((4, 5)):
        mean = np.stack([snapshot["w"].astype(np.float64) for snapshot in weights[:last]]).mean(0)
        deviation = found[f"deviation/{column}/w"]
        assert deviation.dtype == np.float32
        np.testing.assert_allclose(deviation, weights[last - 1]["w"] - mean, rtol=1e-6)
    assert found["deviation/1/b"].shape == ()
    assert "deviation/2/w" not in found


def test_weights_may_change_after_they_were_added():
    weights = {"w": np.ones(2), "t": torch.ones(2, dtype=torch.float64)}
    moments = Moments()
    moments.add(weights)
    weights["w"] += 10
    weights["t"] += 10
    assert moments.update()["mean/w"].tolist() == [1, 1]
    assert moments.update()["mean/t"].tolist() == [1, 1]


def test_tensors_of_torch_are_added_as_they_are():
    parameter = torch.nn.Parameter(torch.full((2,), 1.5, dtype=torch.bfloat16))
    found = gather([{"w": parameter, "steps": torch.tensor(3), "b": np.float32(2)}])
    assert sorted(found) == ["mean/b", "mean/w", "second/b", "second/w"]
    assert found["second/w"].tolist() == [2.25, 2.25]


@pytest.mark.parametrize(("rank", "count"), [(0, 0), (3, 2)])
def test_too_few_weights_are_told(rank, count):
    with pytest.raises(ValueError, match=f"{max(rank, 1)} times; they came {count}"):
        gather(snapshots(count), rank)


@pytest.mark.parametrize("other", [{"w": np.ones(3)}, {"w": np.ones(2), "v": np.ones(2)}, {"v": np.ones(2)}])
def test_weights_of_another_model_are_refused(other):
    with pytest.raises(TensorError, match="other names or shapes"):
        gather([{"w": np.ones(2)}, other])


def test_what_is_no_tensor_is_named():
    with pytest.raises(TensorError, match="'w' is a list"):
        gather([{"w": [1.0]}])
