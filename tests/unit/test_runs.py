"""Tensors that are worked on as one: what is put together, and that the bits are those of each alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from aggregations import FED_AVG
from fedround_server.domain.model import Dtype, TensorSpec
from fedround_server.engine.aggregation import aggregate
from fedround_server.engine.format.manifest import PREFIX, Layout, make_header, parse_header
from fedround_server.engine.format.runs import runs, singly
from fedround_server.engine.jobs import AggregationFailed, AggregationJob
from unit.checks import check_numbers
from unit.paths import Paths, at
from unit.safetensors_files import NUMPY_DTYPES, write

specs = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.builds(
        TensorSpec, st.sampled_from(sorted(Dtype, key=lambda dtype: dtype.name)), st.sampled_from([(), (1,), (2, 3)])
    ),
    min_size=1,
    max_size=12,
)


def layout_of(manifest: dict[str, TensorSpec]) -> Layout:
    return parse_header(make_header(manifest)[PREFIX:])


@given(specs, st.data())
def test_runs_are_all_that_lies_side_by_side_everywhere(manifest: dict[str, TensorSpec], data: st.DataObject) -> None:
    orders = [list(manifest), *data.draw(st.lists(st.permutations(list(manifest)), max_size=2))]
    layouts = [layout_of({name: manifest[name] for name in order}) for order in orders]
    found = list(runs(layouts[0], layouts[1:]))
    assert [name for run in found for name in run.names] == orders[0]
    for run in found:
        assert run.num_numbers == sum(manifest[name].num_numbers for name in run.names)
        assert [run.owner(end - 1) for end in run.ends] == list(run.names)
        assert run.owner(0) == run.first
        assert {manifest[name].dtype for name in run.names} == {run.dtype}
        for layout in layouts:
            at = layout.offsets[run.first]
            for name in run.names:
                assert layout.offsets[name] == at
                at += manifest[name].num_bytes
    for before, after in pairwise(found):
        apart = [order[order.index(before.names[-1]) + 1 :][:1] != [after.first] for order in orders]
        assert any(apart) or before.dtype is not after.dtype or not before.dtype.is_floating
    assert sorted(run.first for run in singly(layouts[0])) == sorted(manifest)


SIZES = {"a": ("F32", 3), "b": ("F32", 5), "c": ("F16", 2), "d": ("F32", 1), "e": ("I64", 2), "f": ("F32", 4)}


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(size) * 9).astype(NUMPY_DTYPES[dtype]) for name, (dtype, size) in SIZES.items()}


def aggregated(folder: Path, files: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    paths = [folder / str(number) for number in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(write(file))
    (folder / "new").unlink(missing_ok=True)
    model, *updates = map(at, paths)
    job = AggregationJob(model, tuple(updates), tuple(range(3, 2 + len(files))), FED_AVG)
    aggregate(Paths(folder), job, folder / "new")
    return safetensors.numpy.load_file(folder / "new")


@given(st.lists(st.permutations(list(SIZES)), min_size=2, max_size=4))
def test_the_order_of_tensors_changes_no_bit(tmp_path_factory: pytest.TempPathFactory, orders: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("round")
    files = [tensors(number) for number in range(len(orders))]
    shuffled = [{name: file[name] for name in order} for file, order in zip(files, orders, strict=True)]
    found, expected = aggregated(folder, shuffled), aggregated(folder, files)
    assert {name: tensor.tobytes() for name, tensor in found.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }


@pytest.mark.parametrize("name", ["a", "b", "d", "f"])
def test_it_reports_in_which_of_them_a_number_is_none(tmp_path: Path, name: str) -> None:
    model, update = tensors(0), tensors(1)
    update[name][-1] = np.nan
    with pytest.raises(AggregationFailed, match=f"tensor {name!r} has"):
        aggregated(tmp_path, [model, update])
    for origin in (None, tmp_path / "0"):
        assert check_numbers(tmp_path / "1", origin).not_finite == name
