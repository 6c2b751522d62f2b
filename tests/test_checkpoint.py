"""Checkpoints: equal bytes for equal content, all of it comes back, one line for what is no checkpoint."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from fastadam import checkpoint
from fastadam.errors import CheckpointError

TENSORS = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "optimizer/m/conv1.weight": np.full((2, 3, 2, 2), np.nan, np.float32),
    "step": np.array(7, np.int64),
    "none": np.empty((0, 3), np.float32),
}
METADATA = {"step": 7, "classes": ["a", "ü"], "mean": [0.1, 1e-30], "best": {"epoch": 1}}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_everything_comes_back(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, TENSORS, METADATA)
    found = checkpoint.load(path)
    assert found.metadata == METADATA
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in found.tensors.items():
        assert same(tensor, TENSORS[name]), name
        assert tensor.flags.c_contiguous
        assert tensor.flags.writeable
        tensor[...] = 0
    assert list(tmp_path.iterdir()) == [path]


def test_strided_arrays_are_stored_as_what_they_show(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    checkpoint.save(tmp_path / "x", {"t": base.T, "s": base[:, ::2]}, {})
    found = checkpoint.load(tmp_path / "x").tensors
    np.testing.assert_array_equal(found["t"], base.T)
    np.testing.assert_array_equal(found["s"], base[:, ::2])


@hypothesis.settings(deadline=None)  # files take as long as the disk is busy
@given(
    arrays=st.dictionaries(
        st.text("abc/.", min_size=1, max_size=6),
        hnp.arrays(
            st.sampled_from([np.float32, np.int64, np.uint8]),
            hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        ),
        max_size=5,
    ),
    note=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.floats(-1e9, 1e9), max_size=5),
)
def test_equal_content_gives_equal_bytes(arrays, note, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    checkpoint.save(folder / "a", arrays, note)
    checkpoint.save(folder / "b", dict(reversed(arrays.items())), dict(reversed(note.items())))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    found = checkpoint.load(folder / "a")
    assert found.metadata == note
    assert all(same(found.tensors[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_metadata_that_is_no_json_is_the_programmers_mistake(value, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        checkpoint.save(tmp_path / "x", {}, {"loss": value})
    assert not list(tmp_path.iterdir())


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_what_is_no_file_is_refused(tmp_path):
    refused(tmp_path / "missing", "there is no checkpoint")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "missing" / "deeper", "there is no checkpoint")
    (tmp_path / "empty").touch()
    refused(tmp_path / "empty", "is empty")


@pytest.mark.parametrize(
    "junk", [b"x", b"<html>" + b"junk " * 100, bytes(1000), b"\xff" * 1000, b"\x02\0\0\0\0\0\0\0{}junk"]
)
def test_junk_is_refused(junk, tmp_path):
    (tmp_path / "junk").write_bytes(junk)
    refused(tmp_path / "junk", "give another one")


def test_foreign_safetensors_are_refused(tmp_path):
    for number, metadata in enumerate((None, {"format": "pt"})):
        path = tmp_path / str(number)
        save_file({"w": np.zeros(3, np.float32)}, path, metadata=metadata)
        refused(path, "not a checkpoint of fastadam")


@pytest.mark.parametrize("note", ["", "{", "[1]", "7", '{"a":' * 2000])
def test_broken_metadata_are_refused(note, tmp_path):
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "x", metadata={"fastadam": note})
    refused(tmp_path / "x", "metadata", "damaged")


def test_every_truncation_is_refused(tmp_path):
    checkpoint.save(tmp_path / "whole", TENSORS, METADATA)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_a_run_folder_means_its_best_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.locate(tmp_path)
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no best\.safetensors yet; give .*last\.safetensors"):
        checkpoint.locate(tmp_path)
    best = tmp_path / "best.safetensors"
    best.touch()
    assert checkpoint.locate(tmp_path) == best
    assert checkpoint.locate(str(best)) == best


def test_a_run_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(CheckpointError, match=r"cannot look for a checkpoint in .*: Permission denied"):
        checkpoint.locate(tmp_path)
