"""The README tells the truth: its commands, options and files exist, its Python runs."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from fastadam_cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    names = command.list_commands(context)
    return [c for name in names for c in commands(command.get_command(context, name), (*path, name))]


COMMANDS = commands(main)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_is_explained(path, command):
    assert f"`fastadam {' '.join(path)}" in README
    assert command.help
    assert "fastadam " + " ".join(path) in command.help, "an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help, parameter.name


def test_every_option_of_train_stands_in_the_readme():
    (train,) = (command for path, command in commands(main) if path == ("train",))
    options = [o for p in train.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")]
    assert [option for option in options if f"`{option}`" not in README] == []


def test_every_option_in_the_readme_exists():
    known = {o for _, c in commands(main) for p in c.params for o in (*p.opts, *p.secondary_opts)} | {
        "--help",
        "--version",
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) <= known


def test_files_in_the_readme_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    """The snippets, one after the other, on a few generated images."""
    from fastadam.data import synthetic

    monkeypatch.chdir(tmp_path)
    data = synthetic.generate(train=300, test=10)
    rng = np.random.default_rng(0)
    names = {key: rng.standard_normal(5).astype(np.float32) for key in ("w", "b", "dw", "db")}
    before, scope = names["w"].copy(), {**names, "images": data.train_images, "labels": data.train_labels}
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with_torch = [snippet for snippet in snippets if "import torch" in snippet]
    assert len(with_torch) == 1
    for snippet in snippets:
        if snippet not in with_torch or importlib.util.find_spec("torch"):
            exec(snippet.replace("images, labels = ...", "").replace("epochs=5", "epochs=1"), scope)
    if "module" in scope:
        probabilities = scope["module"](scope["torch"].tensor(scope["x"], dtype=scope["torch"].float32)).softmax(1)
        want = scope["model"].predict_proba(data.train_images[:10])
        np.testing.assert_allclose(probabilities.detach().numpy(), want, atol=1e-5)
    assert (tmp_path / "cnn.safetensors").exists()
    assert not np.array_equal(before, names["w"])


def test_readme_test_command_is_what_ci_runs():
    (command,) = re.findall(r"^    python -m pip install '\.\[test\]' && (.*)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_module_and_console_script_are_the_same_command():
    environment = {**os.environ, "COLUMNS": "100"}
    run = subprocess.run(
        [sys.executable, "-m", "fastadam_cli", "--help"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0
    assert "Usage: fastadam" in run.stdout
