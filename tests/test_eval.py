"""``fastadam eval``: what it counts, what it prints, what it draws, what it refuses."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main
from fastadam_cli.tables import aligned
from hypothesis import given
from hypothesis import strategies as st

from fastadam import data, models
from fastadam.config import TrainConfig
from fastadam.data.dataset import Dataset
from fastadam.errors import CheckpointError, ConfigError, MissingExtraError
from fastadam.evaluation import confusion_matrix, evaluate_checkpoint, per_class
from fastadam.plots import check_plot, plot_confusion
from fastadam.training import run_training


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Dataset]:
    """A checkpoint, a folder of data, the data."""
    folder = tmp_path_factory.mktemp("eval")
    images = data.synthetic.generate(train=20, test=45, seed=2)
    data.write_binary(folder / "data", images)
    model = models.build("mlp", seed=1)
    model.classes = images.classes
    model.save(folder / "mlp.safetensors")
    return str(folder / "mlp.safetensors"), str(folder / "data"), images


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)], prog_name="fastadam")


def test_a_limit_takes_the_images_that_a_run_tested(made, tmp_path):
    _, folder, _ = made
    config = TrainConfig(data=folder, model="mlp", steps=2, batch_size=4, val_size=4, limit_test=20, seed=7)
    summary = run_training(config, out=tmp_path / "run")
    result = evaluate_checkpoint(tmp_path / "run", folder, limit_test=20)
    assert (result["images"], result["accuracy"]) == (20, summary["test_accuracy"])


def test_numbers_are_those_of_the_models_own_predictions(made):
    path, folder, images = made
    result = evaluate_checkpoint(path, folder, batch_size=7)
    model = models.load(path)
    taken_for, labels = model.predict(images.test_images), images.test_labels
    probabilities = model.predict_proba(images.test_images).astype(np.float64)
    assert result["accuracy"] == (taken_for == labels).mean()
    assert result["loss"] == pytest.approx(-np.log(probabilities[np.arange(45), labels]).mean(), rel=1e-5)
    confusion = np.array(result["confusion"])
    for i, j in np.ndindex(10, 10):
        assert confusion[i, j] == ((labels == i) & (taken_for == j)).sum()
    assert [row["class"] for row in result["per_class"]] == result["classes"] == list(images.classes)
    assert [row["images"] for row in result["per_class"]] == confusion.sum(1).tolist()


def test_json_is_complete_and_text_has_both_tables(made):
    path, folder, _ = made
    found = json.loads(run(path, "--data", folder, "--json").stdout)
    assert list(found) == ["checkpoint", "dataset", "images", "accuracy", "loss", "classes", "per_class", "confusion"]
    assert np.sum(found["confusion"]) == found["images"] == 45
    lines = run(path, "--data", folder).stdout.splitlines()
    assert lines[0] == f"accuracy  {100 * found['accuracy']:.2f} %"
    for row, counts in zip(found["per_class"], found["confusion"], strict=True):
        first, second = (line.split() for line in lines if line.startswith(f"{row['class']} "))
        assert first[1:3] == [str(row["images"]), f"{100 * row['precision']:.1f}"]
        assert second[1:] == list(map(str, counts))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_precision_recall_and_f1_as_their_definitions_say(pairs):
    labels, taken_for = np.array(pairs).T
    confusion = confusion_matrix(labels, taken_for, 4)
    for c, row in enumerate(per_class(confusion, "abcd")):
        right = sum(a == b == c for a, b in pairs)
        present, given_ = (labels == c).sum(), (taken_for == c).sum()
        precision, recall = right / given_ if given_ else 0, right / present if present else 0
        assert (row["precision"], row["recall"], row["images"]) == (precision, recall, present)
        f1 = 2 * precision * recall / (precision + recall) if right else 0
        assert row["f1"] == pytest.approx(f1)


def test_of_many_classes_the_worst_mistakes_are_shown(made, monkeypatch):
    confusion = np.zeros((30, 30), int)
    confusion[3, 4], confusion[7, 2], confusion[5, 5] = 5, 9, 70
    names = [f"c{i}" for i in range(30)]
    result = {
        "checkpoint": "x", "dataset": "many", "images": 84, "accuracy": 70 / 84, "loss": 1.0, "classes": names,
        "per_class": per_class(confusion, names), "confusion": confusion.tolist(),
    }  # fmt: skip
    monkeypatch.setattr("fastadam.evaluation.evaluate_checkpoint", lambda *arguments, **options: result)
    shown = run("x", "--data", "y").stdout
    assert shown.endswith(
        "the most frequent mistakes, of 14 (--json has the whole matrix)\n"
        "class  taken for  images\nc7     c2              9\nc3     c4              5\n"
    )


def test_classes_of_other_names_are_told(made, tmp_path):
    _, folder, _ = made
    models.build("mlp").save(tmp_path / "other.safetensors")
    result = run(tmp_path / "other.safetensors", "--data", folder)
    assert result.exit_code == 0
    assert "Warning: the classes of" in result.stderr
    assert "not called as those" in result.stderr
    assert "not called" not in run(made[0], "--data", folder).stderr


def test_a_batch_has_images(made):
    for size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="batch_size must be a whole number of 1 or more"):
            evaluate_checkpoint(*made[:2], batch_size=size)


def test_a_diverged_checkpoint_is_refused(made, tmp_path):
    model = models.build("mlp")
    model.parameters.views["fc.bias"][3] = np.nan
    model.save(tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate_checkpoint(tmp_path / "nan.safetensors", made[1])
    assert run(tmp_path / "nan.safetensors", "--data", made[1]).stdout == ""


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_a_plot(made, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"confusion{suffix}"
    result = run(made[0], "--data", made[1], "--plot", path)
    assert result.exit_code == 0, result.output
    assert path.stat().st_size > 5000
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".PDF": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(head)


@pytest.mark.filterwarnings("error")
def test_a_plot_of_many_classes_and_odd_names(tmp_path):
    pytest.importorskip("matplotlib")
    names = ["$x^2", "犬\\", *(f"class {i}" for i in range(118))]
    plot_confusion(tmp_path / "x.png", np.eye(120, dtype=int).tolist(), names, "$ \\frac{")
    plot_confusion(tmp_path / "y.png", np.eye(2, dtype=int).tolist(), names[:2], "")


def test_plots_are_refused_before_the_work(made, tmp_path, monkeypatch):
    monkeypatch.setattr("fastadam.evaluation.evaluate_checkpoint", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ConfigError, match=r"end its name with \.png"):
        check_plot(tmp_path / "x.doc")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="extra `plot`"):
        check_plot(tmp_path / "x.png")
    result = run(made[0], "--data", made[1], "--plot", tmp_path / "x.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "python -m pip install matplotlib" in result.stderr


def test_a_plot_that_cannot_be_written(made, tmp_path):
    pytest.importorskip("matplotlib")
    result = run(tmp_path / "none", "--data", made[1], "--plot", tmp_path / "nowhere" / "x.png")  # told before all else
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


def test_tables_are_aligned():
    lines = aligned(("name", "n"), [("a", "10"), ("longer", "7")])
    assert lines == ["name     n", "a       10", "longer   7"]
    assert aligned(("only", "head"), []) == ["only  head"]
