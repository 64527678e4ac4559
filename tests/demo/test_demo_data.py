import numpy as np
import pytest

from fedround_client.demo import data


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load()


def keys(digits: data.Digits) -> list[bytes]:
    return [image.tobytes() + bytes([label]) for image, label in zip(digits.images, digits.labels, strict=True)]


def test_all_digits_are_there(digits: data.Digits) -> None:
    assert len(digits) == 1797
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert len(digits.label_counts()) == 10
    assert min(digits.label_counts()) > 170


@pytest.mark.parametrize("alpha", [0.01, 0.3, 100])
def test_every_image_goes_to_one_place(digits: data.Digits, alpha: float) -> None:
    split = data.split(digits, 5, alpha, seed=1)
    assert sorted(keys(split.held_out) + keys(data.pooled(split.clients))) == sorted(keys(digits))


@pytest.mark.parametrize("num_clients", [1, 5, 50])
def test_the_held_out_images_are_shared_by_all_clients(digits: data.Digits, num_clients: int) -> None:
    split = data.split(digits, num_clients, 0.05, seed=1)
    assert len(split.shares) == num_clients
    assert all(len(share) >= 1 for share in split.shares)
    assert keys(data.pooled(split.shares)) == keys(split.held_out)


def test_a_fifth_of_every_label_is_held_out(digits: data.Digits) -> None:
    held_out = data.split(digits, 5, 0.3, seed=1).held_out
    assert held_out.label_counts() == [round(count / 5) for count in digits.label_counts()]


def test_the_same_seed_deals_the_same_images(digits: data.Digits) -> None:
    first, second, other = (data.split(digits, 5, 0.3, seed) for seed in (1, 1, 2))
    assert [keys(client) for client in first.clients] == [keys(client) for client in second.clients]
    assert keys(first.held_out) == keys(second.held_out)
    assert keys(first.held_out) != keys(other.held_out)
    assert [len(client) for client in first.clients] != [len(client) for client in other.clients]


@pytest.mark.parametrize("num_clients", [1, 5, 50])
def test_everybody_has_enough_to_train_on(digits: data.Digits, num_clients: int) -> None:
    clients = data.split(digits, num_clients, 0.01, seed=3).clients
    assert len(clients) == num_clients
    assert min(map(len, clients)) >= data.MIN_IMAGES


def test_more_clients_than_images_are_refused(digits: data.Digits) -> None:
    with pytest.raises(ValueError, match="too few images"):
        data.split(digits, 500, 0.3, seed=1)


def test_a_small_alpha_deals_less_evenly(digits: data.Digits) -> None:
    def largest_shares(alpha: float) -> float:
        counts = np.array([client.label_counts() for client in data.split(digits, 5, alpha, seed=1).clients])
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    assert largest_shares(0.1) > largest_shares(1) > largest_shares(100)


def test_a_file_keeps_the_images(digits: data.Digits, tmp_path) -> None:
    some = digits.select(np.arange(20))
    some.save(tmp_path / "some.npz")
    assert keys(data.Digits.read(tmp_path / "some.npz")) == keys(some)
