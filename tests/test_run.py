"""Run folders: who may use them, and that no kill and no full disk costs more than what was being written."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fastadam import files
from fastadam.errors import RunError
from fastadam.files import write_atomically
from fastadam.run import RunFolder, default_folder, json_text

SETTINGS = {"model": "cnn", "lr": 0.001, "augment": ["flip"]}


def names(folder):
    return sorted(os.listdir(folder))


def python(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# ---------------------------------------------------------------------------------------- making and opening


def test_a_run_is_made_closed_and_taken_up_again(tmp_path):
    path = tmp_path / "deep" / "run"
    with RunFolder.create(path, SETTINGS) as run:
        assert run.settings == SETTINGS
        assert run.last == path / "last.safetensors"
        assert run.best == path / "best.safetensors"
        assert run.read_summary() is None
    with RunFolder.open(path) as run:
        assert run.settings == SETTINGS
        run.write_settings({**SETTINGS, "epochs": 3})
        assert run.settings["epochs"] == 3
        run.write_summary({"test_accuracy": 0.5, "train_loss": float("nan")})
        assert run.read_summary() == {"test_accuracy": 0.5, "train_loss": None}
        run.remove_summary()
        assert run.read_summary() is None
        run.remove_summary()
    with RunFolder.open(path) as run:
        assert run.settings == {**SETTINGS, "epochs": 3}


@pytest.mark.parametrize("held", ["config.toml", "last.safetensors"])
def test_a_folder_with_a_run_is_refused(held, tmp_path):
    (tmp_path / held).write_text("x")
    with pytest.raises(RunError, match=f"already holds a run; go on with it by --resume {tmp_path}"):
        RunFolder.create(tmp_path, SETTINGS)
    assert names(tmp_path) == [held]
    assert (tmp_path / held).read_text() == "x"


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not empty \(it holds 'thesis\.tex'\)"):
        RunFolder.create(tmp_path, SETTINGS)
    assert names(tmp_path) == ["thesis.tex"]


def test_what_a_start_that_was_killed_left_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".fastadam-123-abc.tmp").write_text("torn")
    (tmp_path / "model.toml").write_text("name = 'old'")  # written before config.toml
    with RunFolder.create(tmp_path, SETTINGS, "name = 'new'"):
        assert names(tmp_path) == [".lock", "config.toml", "model.toml"]
        assert (tmp_path / "model.toml").read_text() == "name = 'new'"


def test_a_net_in_a_folder_that_was_no_runs_is_not_overwritten(tmp_path):
    (tmp_path / "model.toml").write_text("mine")
    for _ in range(2):
        with pytest.raises(RunError, match="is not empty"):
            RunFolder.create(tmp_path, SETTINGS, "name = 'new'")
    assert (tmp_path / "model.toml").read_text() == "mine"


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run"), tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match=str(path)) as caught:
            RunFolder.create(path, SETTINGS)
        assert "\n" not in str(caught.value)


def test_resuming_what_is_no_run_says_what_it_is(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for path, message in (("file", "is a file"), ("empty", "holds no run"), ("missing", "there is no run")):
        with pytest.raises(RunError, match=message):
            RunFolder.open(tmp_path / path)
    assert names(tmp_path) == ["empty", "file"]
    assert names(tmp_path / "empty") == []


def test_resuming_what_cannot_be_read_says_so(tmp_path, monkeypatch):
    RunFolder.create(tmp_path, SETTINGS).close()
    (tmp_path / "config.toml").write_bytes(b"lr = = 1")
    with pytest.raises(RunError, match=r"line 1, column 6\); put it right, or start a new run"):
        RunFolder.open(tmp_path)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(RunError, match=r"cannot look into .*: Permission denied; give the folder of a run of yours"):
        RunFolder.open(tmp_path)


def test_a_folder_whose_name_is_not_text(tmp_path):
    summary = {"checkpoint": os.fsdecode(b"\xff/best"), "model": "\xfc"}
    with RunFolder.create(tmp_path / "run", SETTINGS) as run:
        run.write_summary(summary)
        assert run.read_summary() == summary
    assert json_text(summary) == '{"checkpoint": "\\udcff/best", "model": "\xfc"}'
    assert json_text("\xfc", ascii_only=True) == '"\\u00fc"'


def test_a_full_disk_is_named_when_the_lock_is_taken(tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(RunError, match=r"cannot write .*\.lock: No space left on device; free some space there"):
        RunFolder.create(tmp_path / "run", SETTINGS)


def test_a_finished_run_in_a_folder_that_is_read_only(tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with RunFolder.create(tmp_path, SETTINGS) as run:
        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(RunError, match=r"cannot write .*summary\.json: Permission denied; choose a folder"):
            run.remove_summary()


def test_opening_removes_what_a_killed_write_left(tmp_path):
    RunFolder.create(tmp_path, SETTINGS).close()
    (tmp_path / ".fastadam-1-00.tmp").write_text("torn")
    (tmp_path / "notes.tmp").write_text("mine")
    with RunFolder.open(tmp_path):
        assert names(tmp_path) == [".lock", "config.toml", "notes.tmp"]


def test_the_default_folder_is_always_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20250131-120000")
    assert [default_folder("cnn") for _ in range(3)] == [
        Path(f"runs/20250131-120000-cnn{suffix}") for suffix in ("", "-2", "-3")
    ]
    with RunFolder.create(default_folder("mlp"), SETTINGS) as run:
        assert run.path == Path("runs/20250131-120000-mlp")


def test_the_default_folder_needs_room_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match="cannot write runs"):
        default_folder("cnn")


# --------------------------------------------------------------------------------------------------- the lock


def test_a_run_in_use_is_refused_and_names_the_process(tmp_path):
    with RunFolder.create(tmp_path / "run", SETTINGS):
        for use in (RunFolder.open, lambda path: RunFolder.create(path, SETTINGS)):
            with pytest.raises(RunError, match=rf"in use by process {os.getpid()}|already holds a run"):
                use(tmp_path / "run")
    RunFolder.open(tmp_path / "run").close()


def test_a_killed_process_frees_its_run(tmp_path):
    owner = python(
        """
        import sys, time
        from fastadam.run import RunFolder
        run = RunFolder.create(sys.argv[1], {"model": "cnn"})
        print("locked", flush=True)
        time.sleep(60)
        """,
        tmp_path / "run",
    )
    assert owner.stdout.readline() == b"locked\n"
    with pytest.raises(RunError, match=f"in use by process {owner.pid}; "):
        RunFolder.open(tmp_path / "run")
    owner.kill()
    owner.communicate()
    with RunFolder.open(tmp_path / "run") as run:
        assert run.settings == {"model": "cnn"}


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    run = RunFolder.create(tmp_path / "run", SETTINGS)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        run.close()
        RunFolder.open(tmp_path / "run").close()
    finally:
        child.kill()
        child.wait()


def test_of_many_starts_in_one_folder_one_wins(tmp_path):
    code = """
        import sys, time
        from fastadam.errors import RunError
        from fastadam.run import RunFolder
        sys.stdin.read()
        try:
            run = RunFolder.create(sys.argv[1], {})
        except RunError:
            print("refused")
        else:
            print("won")
            time.sleep(1)
        """
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for each in starters:
        each.stdin.close()
    said = [each.stdout.read() for each in starters]
    for each in starters:
        each.wait()
    assert sorted(said) == [b"refused\n"] * 3 + [b"won\n"]


# ------------------------------------------------------------------------------------------------ the metrics


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_cut_back_to_a_step(tmp_path):
    with RunFolder.create(tmp_path, SETTINGS) as run:
        run.cut_metrics(5)
        for step in (10, 20, 30):
            run.append_metrics({"event": "epoch", "step": step, "val_loss": float("inf")})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"event": "epoch", "step": 4')
        run.cut_metrics(30)
        assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
        assert lines(tmp_path)[0]["val_loss"] is None
        run.cut_metrics(20)
        run.append_metrics({"event": "note"})
        run.append_metrics({"event": "epoch", "step": 21})
        run.cut_metrics(20)
        assert [line.get("step") for line in lines(tmp_path)] == [10, 20, None]
        run.cut_metrics(0)
        assert [line["event"] for line in lines(tmp_path)] == ["note"]


def test_a_line_that_does_not_fit_leaves_no_part_of_it(tmp_path, monkeypatch):
    with RunFolder.create(tmp_path, SETTINGS) as run:
        run.append_metrics({"step": 1})
        with monkeypatch.context() as patch:
            fill_disk(patch, after=4)
            with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: No space left on device; free some"):
                run.append_metrics({"step": 2})
        run.append_metrics({"step": 3})
        assert lines(tmp_path) == [{"step": 1}, {"step": 3}]


def test_json_has_no_nan():
    value = {"a": float("nan"), "b": [1.5, -float("inf")], "c": (2,), "ü": {"d": float("inf")}}
    assert json_text(value) == '{"a": null, "b": [1.5, null], "c": [2], "ü": {"d": null}}'


def test_a_damaged_summary_is_named(tmp_path):
    with RunFolder.create(tmp_path, SETTINGS) as run:
        (tmp_path / "summary.json").write_text("[1]")
        with pytest.raises(RunError, match=r"summary\.json is damaged"):
            run.read_summary()


def test_empty_settings_are_named(tmp_path):
    RunFolder.create(tmp_path, SETTINGS).close()
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(RunError, match=r"config\.toml is empty; put it back"):
        RunFolder.open(tmp_path)


# ---------------------------------------------------------------------------------------------- atomic writes


def fill_disk(patch, after):
    """From now on the disk has room for ``after`` bytes more."""
    write, room = os.write, after

    def limited(file, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(file, data[:room])
        room -= taken
        return taken

    patch.setattr(files.os, "write", limited)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x"
    for data in (b"", b"one", bytes(3_000_000)):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert names(tmp_path) == ["x"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"data"


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whatever_fails_the_old_file_stays_and_nothing_else(step, error, tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def fail(*_, **__):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, fail)
        with pytest.raises(RunError) as caught:
            write_atomically(path, b"new")
    assert str(caught.value).startswith(f"cannot write {path}: {os.strerror(error)}")
    assert ("free some space" in str(caught.value)) == (error != errno.EIO)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_write_taken_in_parts_is_finished_or_undone(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        fill_disk(patch, after=2)
        with pytest.raises(RunError, match="No space left"):
            write_atomically(path, b"new file")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda file, data: write(file, data[:3]))
    write_atomically(path, b"new file")
    assert path.read_bytes() == b"new file"


def test_an_interrupt_leaves_no_litter(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", b"new")
    assert names(tmp_path) == []


def test_a_file_system_that_is_really_full(tmp_path):
    """On a small file system of its own, where the machine lets us make one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with RunFolder.create(small / "run", SETTINGS) as run:
            write_atomically(run.last, bytes(100_000))
            with pytest.raises(RunError, match=r"last\.safetensors: No space left on device; free some space"):
                write_atomically(run.last, bytes(200_000))
            assert run.last.read_bytes() == bytes(100_000)
            assert names(run.path) == [".lock", "config.toml", "last.safetensors"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*missing"):
        write_atomically(tmp_path / "missing" / "x", b"")


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    RunFolder.create(tmp_path / "run", SETTINGS).close()
    code = """
        import sys
        from fastadam.run import RunFolder
        run = RunFolder.open(sys.argv[1])
        print("ready", flush=True)
        number = 0
        from fastadam.files import write_atomically
        while True:
            number += 1
            write_atomically(run.last, (b"%08d" % number) * 100_000)
            run.append_metrics({"step": number})
        """
    for wait in (0.0, 0.011, 0.023, 0.037):
        writer = python(code, tmp_path / "run")
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.05 + wait)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        with RunFolder.open(tmp_path / "run") as run:
            assert set(names(run.path)) <= {".lock", "config.toml", "last.safetensors", "metrics.jsonl"}
            with contextlib.suppress(FileNotFoundError):
                data = run.last.read_bytes()
                assert len(data) == 800_000
                assert data == data[:8] * 100_000
                run.cut_metrics(int(data[:8]))
                assert all(record["step"] <= int(data[:8]) for record in lines(run.path))
