"""Beginning with the weights of a checkpoint."""

import numpy as np
import pytest
from small import norm_model

from fastadam import checkpoint, models
from fastadam.errors import CheckpointError
from fastadam.transfer import load_weights


def test_weights_of_a_checkpoint(tmp_path):
    first, second = norm_model(), norm_model()
    first.parameters.flat[:] *= 2
    first.state.flat[:] += 3
    first.save(tmp_path / "first.safetensors")
    assert load_weights(second, tmp_path / "first.safetensors") == []
    assert all(np.array_equal(second.state_dict()[name], value) for name, value in first.state_dict().items())


def test_a_last_layer_for_other_classes_is_drawn_anew(tmp_path):
    models.build("cnn", classes=7, seed=1).save(tmp_path / "seven.safetensors")
    model, fresh = models.build("cnn", seed=2), models.build("cnn", seed=2)
    (note,) = load_weights(model, tmp_path / "seven.safetensors")
    assert "for 7 classes, this training for 10: fc is drawn anew" in note
    old, now = models.build("cnn", classes=7, seed=1).state_dict(), model.state_dict()
    for name, value in now.items():
        source = fresh.state_dict() if name in ("fc.weight", "fc.bias") else old
        assert np.array_equal(value, source[name]), name


def test_as_many_classes_with_other_names_are_told(tmp_path):
    other = norm_model()
    other.classes = ("a", "b", "c", "d")
    other.save(tmp_path / "other.safetensors")
    (note,) = load_weights(norm_model(), tmp_path / "other.safetensors")
    assert "have other names than those of this training; its last layer is kept" in note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("conv3.bias"), "no tensor conv3.bias"),
        (lambda state: state.update({"conv3.bias": np.zeros(3, np.float32)}), r"conv3.bias has the shape \(3,\)"),
        (lambda state: state.update({"bn9.weight": np.zeros(3, np.float32)}), "a tensor bn9.weight, which the model"),
        (lambda state: state.update({"fc.weight": np.zeros((9, 5), np.float32)}), r"fc.weight has the shape \(9, 5\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, words, tmp_path):
    model = models.build("cnn")
    state = model.state_dict()
    change(state)
    checkpoint.save(tmp_path / "odd.safetensors", state, model.metadata())
    before = model.parameters.flat.copy()
    with pytest.raises(CheckpointError, match=words) as caught:
        load_weights(model, tmp_path / "odd.safetensors")
    assert "\n" not in str(caught.value)
    assert np.array_equal(before, model.parameters.flat)
