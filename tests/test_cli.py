"""The command line: help, where values come from, and one clear line for what cannot be done."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main
from fastadam_cli.options import human_seconds
from fastadam_cli.report import BarReporter, PlainReporter, epoch_line, make_reporter
from safetensors.numpy import save_file

from fastadam import data, predict
from fastadam.config import TrainConfig, defaults, dump_toml, settings
from fastadam.run import RunFolder
from fastadam.units import human_bytes

COMMANDS = [
    "train",
    "eval",
    "predict",
    "verify",
    "bench",
    "data",
    "data fetch",
    "data import",
    "data synth",
    "data check",
    "data info",
    "doctor",
]
TRAIN_OPTIONS = """
    data model device precision epochs steps batch-size accumulate optimizer lr beta1 beta2 beta3 eps amsgrad
    weight-decay momentum nesterov adjust-lr-fn adamw-lr trust-coefficient schedule milestones gamma warmup augment
    label-smoothing dropout clip-norm ema swa lookahead sam patience target-accuracy seed threads val-size limit-train
    limit-test init out resume dry-run json quiet config
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """Nothing of the user's, and a working directory of our own."""
    for name in [name for name in os.environ if name.startswith("FASTADAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(*args, **env):
    return CliRunner().invoke(main, [str(arg) for arg in args], env=env, prog_name="fastadam")


def fails(code, *args, **env):
    """Run a command that must end with this exit code and one line on standard error; returns the line."""
    result = run(*args, **env)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def fastadam(*args, **kwargs):
    """The real command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fastadam_cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        **kwargs,
    )


def command(path):
    found = main
    for name in path.split():
        found = found.get_command(click.Context(found), name)
    return found


# ------------------------------------------------------------------------------------------------------- help


def test_without_a_command_there_is_help():
    result = run()
    assert result.exit_code == 0
    assert result.output == run("--help").output == run("-h").output
    assert "Usage: fastadam" in result.output
    listed = re.search(r"Commands:\n(.*)", result.output, re.DOTALL)[1]
    assert [line.split()[0] for line in listed.splitlines()] == [
        "train", "eval", "predict", "verify", "bench", "data", "doctor",
    ]  # fmt: skip
    assert "Usage: fastadam data" in run("data").output


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_says_what_it_does_and_what_its_default_is(path):
    text = run(*path.split(), "--help")
    assert text.exit_code == 0
    assert f"  fastadam {path}" in text.output, "no example"
    narrow = run(*path.split(), "--help", COLUMNS="80").output
    assert max(map(len, narrow.splitlines())) <= 80
    for option in command(path).params:
        if not isinstance(option, click.Option):
            continue
        assert option.help, option.name
        record = option.get_help_record(click.Context(command(path)))
        assert "[default: " in record[1] or option.required, record


def test_train_has_the_options_it_should_have():
    have = [option.opts[0].removeprefix("--") for option in command("train").params]
    assert have == TRAIN_OPTIONS.split()
    assert [option.name for option in command("train").params][: len(settings())] == list(settings())


def test_the_defaults_in_help_are_those_of_the_settings():
    for option in command("train").params:
        if option.name in defaults():
            assert option.default == defaults()[option.name], option.name


@pytest.mark.parametrize(
    ("path", "option", "want"),
    [
        ("predict", "top", predict.TOP),
        ("data import", "test_share", data.folders.TEST_SHARE),
        ("data synth", "train", inspect.signature(data.synthetic.generate).parameters["train"].default),
        ("data synth", "test", inspect.signature(data.synthetic.generate).parameters["test"].default),
    ],
    ids=str,
)
def test_other_defaults_are_those_of_the_functions(path, option, want):
    assert next(param.default for param in command(path).params if param.name == option) == want


def test_version():
    result = run("--version")
    assert (result.exit_code, result.output.split()[0]) == (0, "fastadam")
    assert re.fullmatch(r"fastadam \d+\.\d+\.\d+\n", result.output)
    assert run(FASTADAM_VERSION="0.1").exit_code == 0


def test_help_imports_nothing_heavy():
    code = textwrap.dedent("""
        import sys
        from fastadam_cli.main import main
        try:
            main(sys.argv[1:], prog_name="fastadam")
        except SystemExit as end:
            assert end.code == 0, end.code
        heavy = {"numba", "numpy", "scipy", "rich", "safetensors", "platformdirs", "llvmlite"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """)
    for args in ([], ["--help"], ["train", "--help"], ["bench", "--help"], ["--version"], ["data", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
    done = fastadam("--help")
    assert done.returncode == 0
    assert done.stdout.split() == run("--help").output.split()


def test_ctrl_c_while_modules_load_is_no_traceback(monkeypatch):
    class Loading:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fastadam_cli.main", Loading())
    from fastadam_cli.__main__ import main as start

    with pytest.raises(SystemExit) as end:
        start()
    assert end.value.code == 130


# ----------------------------------------------------------------------------------------------- usage errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "No such command 'trian'; did you mean 'train'?"),
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "more"], "unexpected extra argument"),
        (["train", "--epochs"], "requires an argument"),
        (["train", "--epochs", "0"], "'--epochs': must be at least 1, found 0"),
        (["train", "--epochs", "0"], "found 0. Try 'fastadam train --help'."),
        (["train", "--epochs", "-3"], "must be at least 1, found -3"),
        (["train", "--epochs", "2.5"], "must be a whole number, found '2.5'"),
        (["train", "--epochs", "1", "--steps", "1"], "give one of them"),
        (["train", "--lr", "nan"], "'--lr': must be a finite number, found nan"),
        (["train", "--lr", "inf"], "must be a finite number"),
        (["train", "--lr", "0"], "must be above 0"),
        (["train", "--lr", "1e39"], "must be a number that float32 can hold"),
        (["train", "--seed", str(2**63)], f"must be at most {2**63 - 1}, found {2**63}"),
        (["train", "--out", ""], "'--out': must be a path, found ''"),
        (["train", "--resume", ""], "'--resume': must be a path, found ''"),
        (["train", "--config", ""], "'--config': must be a path, found ''"),
        (["eval", "", "--data", "x"], "'CHECKPOINT': must be a path, found ''"),
        (["data", "synth", ""], "'DEST': must be a path, found ''"),
        (["train", "--lr", "fast"], "must be a number, found 'fast'"),
        (["train", "--clip-norm", "-1"], "must be above 0"),
        (["train", "--model", "vgg99"], "or a file that ends in .toml, found 'vgg99'; did you mean 'vgg'?"),
        (["train", "--optimizer", "adamx"], "did you mean 'adam"),
        (["train", "--device", "gpu"], "must be auto, cpu, cuda or cuda:N"),
        (["train", "--augment", "flip,corp"], "did you mean 'crop'"),
        (["train", "--optimizer", "sgd", "--nesterov"], "nesterov needs a momentum"),
        (["train", "--nesterov"], "nesterov has no meaning for optimizer adamw"),
        (["train", "--momentum", "0.9"], "momentum has no meaning for optimizer adamw"),
        (["train", "--resume", "x", "--out", "y"], "leave --out away"),
        (["train", "--resume", "x", "--dry-run"], "leave --resume away"),
        (["train", "--resume", "x", "--lr", "0.1"], "--lr cannot be changed"),
        (["train", "--resume", "x", "--no-nesterov"], "--nesterov cannot be changed"),
        (["eval"], "Missing argument 'CHECKPOINT'"),
        (["eval", "x"], "Missing option '--data'"),
        (["data", "fetsh"], "No such command 'fetsh'"),
        (["data", "synth", "x", "--train", "0"], "must be at least 1"),
        (["doctor", "--cure"], "No such option"),
        (["bench", "adm"], "must be one of adam, kernels, train, startup, found 'adm'; did you mean 'adam'?"),
        (["bench", "--vs", "jax"], "must be one of torch, found 'jax'"),
        (["bench", "--model", "mlp,vgg99"], "found 'vgg99'; did you mean 'vgg'?"),
        (["bench", "--model", ""], "must be one of mlp"),
        (["bench", "--batch-size", "32,0"], "'--batch-size': must be at least 1, found 0"),
        (["bench", "--batch-size", "32,,64"], "must be a whole number, found ''"),
        (["bench", "--seconds", "0"], "must be above 0"),
        (["bench", "--epochs", "3"], "need data; give --data too"),
        (["bench", "adam", "--data", "synthetic"], "data is for train, and adam was asked for"),
        (["bench", "kernels", "--model", "missing.toml"], "cannot read missing.toml"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(args, message):
    line = fails(2, *args)
    assert message in line
    assert os.listdir() == []


def test_a_usage_error_names_the_help():
    assert fails(2, "train", "--epochs", "0").endswith(" Try 'fastadam train --help'.\n")


# ------------------------------------------------------------------------------------- where values come from


@pytest.fixture
def settled(monkeypatch):
    """``settled(*args, **env)`` is what ``fastadam train`` would run with."""
    import fastadam.training

    def catch(config, *, out, resume, reporter):
        caught.append(config)
        return {
            "model": "cnn",
            "dataset": "synthetic",
            "test_accuracy": 0.5,
            "seconds": 1.0,
            "samples_per_second": 10.0,
            "checkpoint": "runs/x/best.safetensors",
        }

    caught = []
    monkeypatch.setattr(fastadam.training, "run_training", catch)

    def settle(*args, **env):
        result = run("train", *args, **env)
        assert result.exit_code == 0, result.output
        return caught[-1]

    return settle


def test_command_line_over_environment_over_file_over_default(settled, tmp_path):
    (tmp_path / "c.toml").write_text("lr = 0.3\nseed = 3\nbatch_size = 33\naugment = ['flip']\n")
    env = {"FASTADAM_TRAIN_LR": "0.2", "FASTADAM_TRAIN_SEED": "2"}
    config = settled("--config", "c.toml", "--lr", "0.1", **env)
    assert config == TrainConfig(lr=0.1, seed=2, batch_size=33, augment=("flip",))
    assert settled() == TrainConfig()


def test_the_file_itself_may_be_named_in_the_environment(settled, tmp_path):
    (tmp_path / "c.toml").write_text("seed = 3\n")
    assert settled(FASTADAM_TRAIN_CONFIG="c.toml").seed == 3


@pytest.mark.parametrize(
    ("file", "env", "args", "want"),
    [
        ("epochs = 3", {}, ["--steps", "9"], (None, 9)),
        ("steps = 9", {}, ["--epochs", "3"], (3, None)),
        ("epochs = 3", {"FASTADAM_TRAIN_STEPS": "9"}, [], (None, 9)),
        ("", {"FASTADAM_TRAIN_STEPS": "9"}, ["--epochs", "3"], (3, None)),
        ("steps = 9", {}, [], (None, 9)),
    ],
)
def test_of_epochs_and_steps_the_stronger_place_wins(file, env, args, want, settled, tmp_path):
    (tmp_path / "c.toml").write_text(file)
    config = settled("--config", "c.toml", *args, **env)
    assert (config.epochs, config.steps) == want


def test_the_settings_of_a_run_are_a_file_for_another(settled, tmp_path):
    config = TrainConfig(optimizer="sgd", momentum=0.9, nesterov=True, data="synthetic", augment=("crop", "flip"))
    config = config.resolved(train_images=1000)
    (tmp_path / "config.toml").write_text(dump_toml(config.to_dict()))
    assert settled("--config", "config.toml") == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr = 0.1\nmomentun = 0.9", "there is no setting 'momentun'; did you mean 'momentum'?"),
        ("lr = 0.1\nlr 3", "line 2"),
        ("epochs = 3.0", "epochs must be a whole number, found 3.0"),
        ("epochs = '3'", "epochs must be a whole number, found '3'"),
        ("lr = nan", "lr must be a finite number, found nan"),
        ("nesterov = 'yes'", "nesterov must be true or false"),
        ("quiet = 1", "quiet must be true or false"),
        ("out = 'runs/x'", "give --out on the command line"),
        ("resume = 'runs/x'", "give --resume on the command line"),
        ("config = 'other.toml'", "there is no setting 'config'"),
        ("[train]\nlr = 0.1", "there is no setting 'train'"),
        ("epochs = 1\nsteps = 1", "Both epochs and steps are given (file)"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(content, message, tmp_path):
    (tmp_path / "c.toml").write_text(content)
    line = fails(2, "train", "--config", "c.toml")
    assert message in line


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        (("eval", "x"), "plot = 5", "plot must be a text, found 5"),
        (("data", "fetch"), "from = 5", "from must be a text, found 5"),
        (("data", "fetch"), "mirror = ['https://a', 5]", "mirror must be a text, found 5"),
        (("data", "fetch"), "mirror = true", "mirror must be a text, found True"),
    ],
)
def test_a_text_in_a_file_is_a_text(command, content, message, tmp_path):
    (tmp_path / "c.toml").write_text(content)
    assert message in fails(2, *command, "--config", "c.toml")


def test_a_missing_file_is_named():
    assert "cannot read c.toml: No such file" in fails(2, "train", "--config", "c.toml")


def test_a_wrong_variable_is_named():
    assert "'--lr'" in fails(2, "train", FASTADAM_TRAIN_LR="fast")
    assert "FASTADAM_TRAIN_LR" in fails(2, "train", FASTADAM_TRAIN_LR="fast")


def test_a_misspelt_variable_is_told_of(settled):
    settled()
    result = run("train", "--quiet", FASTADAM_TRAIN_LRR="0.2", FASTADAM_TRAIN_SEED="1")
    assert result.stderr == "Warning: FASTADAM_TRAIN_LRR has no effect: there is no such option; did you mean 'LR'?\n"


def test_resuming_takes_epochs_and_nothing_else(settled):
    assert settled("--resume", "x", "--epochs", "7") == TrainConfig(epochs=7)
    assert settled("--resume", "x") == TrainConfig()
    result = run("train", "--resume", "x", FASTADAM_TRAIN_LR="0.2", FASTADAM_TRAIN_SEED="1")
    ignored = "FASTADAM_TRAIN_LR, FASTADAM_TRAIN_SEED ignored"
    assert result.stderr == f"Warning: {ignored}: --resume goes on with the run's own settings\n"


def test_train_prints_words_or_one_json_object(settled):
    settled()
    words = run("train").stdout
    assert "50.00 %" in words
    assert f"runs{os.sep}x" in words
    assert json.loads(run("train", "--json").stdout)["test_accuracy"] == 0.5


# --------------------------------------------------------------------------------------- the user's situation


def test_resuming_nothing_and_junk(tmp_path):
    assert "there is no run at missing" in fails(1, "train", "--resume", "missing")
    (tmp_path / "empty").mkdir()
    assert "holds no run" in fails(1, "train", "--resume", "empty")
    (tmp_path / "file").write_text("junk")
    assert "is a file" in fails(1, "train", "--resume", "file")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.toml").write_text("lr = = 1")
    assert "line 1, column 6); put it right" in fails(1, "train", "--resume", "torn")


def test_resuming_a_run_in_use(tmp_path):
    with RunFolder.create(tmp_path / "run", TrainConfig().to_dict()):
        assert f"in use by process {os.getpid()}" in fails(1, "train", "--resume", "run")


def test_evaluating_what_is_no_checkpoint(tmp_path):
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "folder").mkdir()
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    for path, message in (
        ("missing", "there is no checkpoint missing"),
        ("junk", "junk is no checkpoint"),
        ("folder", "folder holds no checkpoint"),
        ("foreign.safetensors", "not a checkpoint of fastadam"),
    ):
        assert message in fails(1, "eval", path, "--data", "synthetic")


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_a_gpu_is_never_assumed():
    line = fails(1, "train", "--data", "synthetic", "--device", "cuda")
    assert line.strip().endswith("or use --device cpu")


def test_errors_of_any_kind_are_one_line(monkeypatch):
    import fastadam.training

    for error, code, message in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "x"), 1, "x: No space left on device"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(fastadam.training, "run_training", fail)
        result = run("train")
        assert result.exit_code == code
        assert result.stderr.strip() == f"Error: {message}" or result.stderr.startswith(f"Error: {message};")


def test_a_mistake_of_the_programmer_keeps_its_traceback(monkeypatch):
    import fastadam.training

    def fail(*_, **__):
        raise ValueError("bug")

    monkeypatch.setattr(fastadam.training, "run_training", fail)
    assert isinstance(run("train").exception, ValueError)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_that_is_full_or_closed():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastadam_cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "fastadam_cli", "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_streams_closed_from_the_start():
    program = f"{sys.executable} -m fastadam_cli"
    assert subprocess.run(f"{program} --help >&- 2>&-", shell=True).returncode == 0
    assert subprocess.run(f"{program} train --epochs 0 >&- 2>&-", shell=True).returncode == 2
    made = f"{program} data synth images --train 10 --test 10"
    assert subprocess.run(f"{made} >&-", shell=True, capture_output=True).stderr == b""
    table = f"{program} train --data images --batch-size 8 --dry-run --quiet"
    assert subprocess.run(f"{table} >&-", shell=True, capture_output=True).stderr == b""
    train = f"{program} train --data images --model mlp --dry-run --resume x --json"
    assert subprocess.run(f"{train} 2>&-", shell=True, capture_output=True).stdout == b""


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 elsewhere")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_cannot_be_shown(encoding, tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    name = os.fsdecode("\xfc".encode("latin-1")) + "\xfc"
    for options in ([], ["--json"]):
        args = ["data", "synth", name + "".join(options), "--train", "10", "--test", "10", *options]
        done = fastadam(*args, env=env)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["path"] == name + "--json"
    assert len(os.listdir(tmp_path)) == 2


# ------------------------------------------------------------------------------------------------------- data


def test_data_is_made_checked_and_described():
    made = json.loads(run("data", "synth", "images", "--train", 60, "--test", 20, "--seed", 4, "--json").stdout)
    assert made["path"] == "images"
    assert sorted(made["files"]) == sorted(os.listdir("images"))
    checked = run("data", "check", "images")
    assert (checked.exit_code, checked.stdout) == (0, "images is in order\n")
    assert json.loads(run("data", "check", "images", "--json").stdout) == {"ok": True, "problems": []}
    told = json.loads(run("data", "info", "images", "--json").stdout)
    assert (told["train_records"], told["test_records"]) == (60, 20)
    words = run("data", "info", "images").stdout
    assert "training images  60" in words
    assert "checkerboard" in words
    assert "holds a data set already" in fails(1, "data", "synth", "images")


def test_damage_is_listed_and_counted(tmp_path):
    run("data", "synth", "images", "--train", 10, "--test", 10)
    path = tmp_path / "images" / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[0] = content[3073] = 11
    path.write_bytes(content)
    for args in ([], ["--json"]):
        result = run("data", "check", "images", *args)
        assert result.exit_code == 1
        assert "test_batch.bin" in result.stdout
        assert re.fullmatch(r"Error: images: \d+ problems? found, listed above\n", result.stderr)
    assert json.loads(result.stdout)["ok"] is False
    assert "test_batch.bin" in fails(1, "data", "info", "images")
    assert "there is no file or folder missing" in fails(1, "data", "info", "missing")


# ----------------------------------------------------------------------------------------------------- doctor


def test_doctor_tells_and_clears(tmp_path):
    env = {
        "NUMBA_CACHE_DIR": str(tmp_path / "kernels"),
        "XDG_CACHE_HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    done = fastadam("doctor", "--json", env=env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"].keys() >= {"python", "fastadam", "numba", "llvmlite", "numpy"}
    assert report["threading_layer"] in ("omp", "tbb", "workqueue")
    assert report["cores"] == report["threads"] >= 1
    assert report["missing"] == []
    folder = report["kernel_cache"]["folder"]
    assert folder.startswith(str(tmp_path / "kernels"))
    with open(os.path.join(folder, "kernel.nbi"), "wb") as file:
        file.write(bytes(5000))
    mine = tmp_path / "kernels" / "fastadam" / "notes"
    mine.mkdir()
    assert "5,000 B of compiled kernels" in fastadam("doctor", env=env).stdout
    done = fastadam("doctor", "--clear-cache", env=env)
    assert done.returncode == 0
    assert "5,000 B" in done.stdout
    assert not os.path.exists(folder)
    assert mine.exists()


def test_doctor_says_where_kernels_cannot_be_kept(tmp_path):
    (tmp_path / "file").touch()
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "file"), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    (tmp_path / f"fastadam-{os.getuid()}").touch()
    report = json.loads(fastadam("doctor", "--json", env=env).stdout)
    assert [item["cure"] for item in report["missing"]] == ["export NUMBA_CACHE_DIR=/a/folder/you/may/write/to"]


# --------------------------------------------------------------------------------------------------- progress

RECORD = {
    "event": "epoch",
    "epoch": 3,
    "step": 1200,
    "lr": 0.001,
    "train_loss": 1.5,
    "train_accuracy": 0.5,
    "val_loss": None,
    "val_accuracy": 0.51234,
    "samples_per_second": 3210.4,
    "seconds": 12.34,
}


def test_an_epoch_is_a_line():
    line = epoch_line(RECORD)
    for part in ("epoch   3", "step  1,200", "1.5000 50.00 %", "val - 51.23 %", "3,210 images/s", "12.3 s"):
        assert part in line
    assert "\n" not in line
    assert "- images/s" in epoch_line({**RECORD, "samples_per_second": 0.0})


def tell(reporter):
    with reporter:
        reporter.message("hello [bold]")
        reporter.warning("look")
        reporter.begin_epoch(3, 400, 100)
        for loss in (0.5, None, 0.25):
            reporter.step(loss)
        reporter.end_epoch(RECORD)


def test_off_a_terminal_there_are_plain_lines(capsys):
    tell(make_reporter(quiet=False))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == ["hello [bold]", "Warning: look", epoch_line(RECORD)]


def test_a_long_epoch_is_told_of_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    reporter = PlainReporter()
    reporter.begin_epoch(1, 10, 4)
    for _ in range(5):
        now[0] += 10
        reporter.step(0.5)
    assert capsys.readouterr().err == "epoch   1  step 7 of 10  loss 0.5000\n"


def test_quiet_leaves_warnings(capsys):
    tell(make_reporter(quiet=True))
    assert capsys.readouterr().err == "Warning: look\n"


def test_a_reader_that_goes_away_stops_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    tell(PlainReporter())


def test_on_a_terminal_there_is_a_bar():
    code = textwrap.dedent("""
        import json, sys, time
        from fastadam_cli.report import BarReporter, make_reporter
        reporter = make_reporter(False)
        assert isinstance(reporter, BarReporter)
        with reporter:
            reporter.message("hello [bold]")
            reporter.begin_epoch(3, 400, 100)
            for _ in range(300):
                reporter.step(0.5)
            time.sleep(0.3)
            reporter.end_epoch(json.loads(sys.argv[1]))
        print("done")
    """)
    master, slave = os.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(RECORD)], stdout=subprocess.PIPE, stderr=slave, env=env
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert done.stdout.read() == b"done\n"
    assert done.wait() == 0
    os.close(master)
    text = shown.decode()
    assert "hello [bold]" in text
    assert "400/400" in text
    assert epoch_line(RECORD) in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor stays hidden"


def test_numbers_for_people():
    assert [human_bytes(n) for n in (0, 9999, 12_345, 5_000_000, 999_900_000, 12_345_678_901)] == [
        "0 B", "9,999 B", "12.3 kB", "5.0 MB", "999.9 MB", "12.35 GB",
    ]  # fmt: skip
    assert [human_seconds(s) for s in (0.04, 59.94, 60, 3599, 7500)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "59 min 59 s", "2 h 5 min",
    ]  # fmt: skip


def test_the_bar_and_the_lines_tell_the_same_things():
    public = {name for name in vars(PlainReporter) if not name.startswith("_")}
    assert {name for name in vars(BarReporter) if not name.startswith("_")} <= public
