"""Fetching the published archives from servers that fail in every way, and from files."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main
from file_server import FileServer
from test_data import files_of, make, pack

from fastadam import data
from fastadam.data.download import Patience
from fastadam.data.fetch import ARCHIVES
from fastadam.data.formats import CIFAR10, CIFAR100, Archive
from fastadam.errors import DataError, FastAdamError

NAME = CIFAR10.archive.name
SOON = Patience(connect=5, silence=0.4, slowest=100, rounds=2, pause=0.01)

BROKEN = {
    "busy": "answered 503",
    "gone": "answered 404",
    "page": "sent a web page instead of the archive",
    "page-chunked": "sent a web page instead of the archive",
    "bigpage": "sent a web page instead of the archive",
    "wrong": "is not the published file (SHA-256)",
    "short": "has a file of",
    "short-chunked": "broke off",
    "long": "has a file of",
    "empty-chunked": "broke off",
    "circle": "leads in a circle",
    "stall": "stalled",
    "drop": "broke off",
    "drop-chunked": "broke off",
}
"""How servers fail that never give the whole file at once, and what the user is told."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bytes of a small archive of CIFAR-10 files, and the folder it was made of."""
    place = tmp_path_factory.mktemp("published")
    data.write_binary(place / "set", make(50, 10))
    return pack(place / NAME, files_of(place / "set")).read_bytes(), place / "set"


@pytest.fixture
def server(packed):
    running = FileServer(packed[0])
    yield running
    running.close()


@pytest.fixture
def archive(packed):
    """What is published, if the small archive were: the checks are those of the real one."""
    return Archive(NAME, len(packed[0]), hashlib.sha256(packed[0]).hexdigest())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of CIFAR-10."""
    monkeypatch.setattr(data.library.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("FASTADAM_")]:
        monkeypatch.delenv(name)
    return tmp_path / "cache" / "fastadam" / "cifar10"


class Notes:
    """Remembers what it is told."""

    def __init__(self):
        self.lines, self.tasks = [], []

    def message(self, text):
        self.lines.append(text)

    def begin(self, what, total, done=0, unit="bytes"):
        self.tasks.append([what, total, done])

    def advance(self, done):
        assert done > self.tasks[-1][2]
        self.tasks[-1][2] = done

    def end(self):
        pass


def get(server, archive, *manners, **extra):
    urls = tuple(map(server.address, manners))
    return data.fetch("cifar10", archive=dataclasses.replace(archive, urls=urls), patience=SOON, **extra)


def refused(server, archive, *manners, **extra):
    with pytest.raises(DataError) as caught:
        get(server, archive, *manners, **extra)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def held(cache):
    """What is in the cache folder, but for the lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


# ------------------------------------------------------------------------------------------------- success


def test_fetched_archive_is_what_data_finds(server, archive, cache, packed):
    notes = Notes()
    got = get(server, archive, "good", progress=notes)
    assert (cache / NAME).read_bytes() == packed[0]
    assert held(cache) == [NAME]
    assert got.to_dict() == {
        "name": "cifar10",
        "path": str(cache / NAME),
        "bytes": archive.bytes,
        "sha256": archive.sha256,
        "source": server.address("good"),
        "received": archive.bytes,
        "resumed_from": 0,
        "seconds": got.seconds,
    }
    assert notes.tasks == [
        [f"{NAME} from 127.0.0.1:{server.address('good').split(':')[2]}", archive.bytes, archive.bytes]
    ]
    np.testing.assert_array_equal(data.load("cifar10").test_images, data.load(packed[1]).test_images)
    assert data.find_default() is not None
    again = get(server, archive, "good")
    assert (again.source, again.received) == ("cache", 0)
    assert len(server.requests) == 1


@pytest.mark.parametrize("manner", ["norange", "chunked", "labelled", "redirect", "slow-chunked"])
def test_servers_that_are_only_odd(server, archive, cache, packed, manner):
    get(server, archive, manner)
    assert (cache / NAME).read_bytes() == packed[0]


@pytest.mark.parametrize("manner", BROKEN)
def test_another_mirror_helps(server, archive, cache, packed, manner):
    """Whatever the first one does: the next has it, and bytes that the first one gave are not asked for again."""
    notes = Notes()
    got = get(server, archive, manner, "good", progress=notes)
    assert got.source == server.address("good")
    assert (cache / NAME).read_bytes() == packed[0]
    assert held(cache) == [NAME]
    assert any(BROKEN[manner] in line for line in notes.lines)
    if manner in ("stall", "drop"):
        assert re.fullmatch(r"bytes=\d+-", server.requests[-1][1])
        assert server.sent["good"] < archive.bytes


@pytest.mark.parametrize("manner", [name for name in BROKEN if "drop" not in name])
def test_without_another_mirror_one_line_says_why(server, archive, cache, manner):
    message = refused(server, archive, manner)
    again = "has a shorter file" if manner in ("short-chunked", "empty-chunked") else BROKEN[manner]
    assert again in message
    assert "--mirror" in message
    assert "--from" in message
    assert NAME not in held(cache)
    assert data.find_default() is None


def test_no_server_at_all(server, archive):
    server.close()
    assert "cannot be reached" in refused(server, archive, "good")
    assert "no address is known" in refused(server, archive)
    hopeless = dataclasses.replace(archive, urls=("http://no-such-host.invalid/a",))
    with pytest.raises(DataError, match=r"no-such-host\.invalid/a cannot be reached"):
        data.fetch(archive=hopeless, patience=SOON)


def test_names_of_archives(server, archive):
    with pytest.raises(ValueError, match="known are cifar10, cifar100"):
        data.fetch("synthetic")
    assert [ARCHIVES[form.name] for form in (CIFAR10, CIFAR100)] == [CIFAR10.archive, CIFAR100.archive]
    for form in (CIFAR10, CIFAR100):
        assert form.archive.urls[0] == f"https://www.cs.toronto.edu/~kriz/{form.archive.name}"
        assert all(url.startswith("https://") and url.endswith(f"/{form.archive.name}") for url in form.archive.urls)


# ------------------------------------------------------------------------------------------------ going on


def test_download_that_breaks_off_is_gone_on_with(server, archive, cache, packed):
    """Each answer breaks off half way through the rest: two rounds leave a quarter, the next call asks for that."""
    refused(server, archive, "drop")
    kept = (cache / f"{NAME}.part").stat().st_size
    assert 0 < kept < archive.bytes
    assert [header is None for _, header in server.requests] == [True, False]
    server.requests.clear()
    notes = Notes()
    got = get(server, archive, "good", progress=notes)
    assert server.requests == [("good", f"bytes={kept}-")]
    assert server.sent["good"] == got.received == archive.bytes - kept
    assert got.resumed_from == kept
    assert notes.tasks[0][2] == archive.bytes
    assert f"going on after {kept:,} of {archive.bytes:,} bytes" in notes.lines
    assert (cache / NAME).read_bytes() == packed[0]


def part(cache, content):
    cache.mkdir(parents=True, exist_ok=True)
    (cache / f"{NAME}.part").write_bytes(content)


def test_partial_file_with_all_bytes_needs_no_server(server, archive, cache, packed):
    part(cache, packed[0])
    got = get(server, archive, "gone")
    assert (got.received, got.resumed_from) == (0, archive.bytes)
    assert server.requests == []


@pytest.mark.parametrize("manner", ["good", "norange", "slow-norange-chunked"])
@pytest.mark.parametrize("size", [1, 1000, "all", "more"])
def test_wrong_partial_file_is_found_out_and_begun_anew(server, archive, cache, packed, manner, size):
    length = {"all": archive.bytes, "more": archive.bytes + 1}.get(size, size)
    part(cache, bytes(length))
    get(server, archive, manner)
    assert (cache / NAME).read_bytes() == packed[0]


def test_server_without_ranges_costs_nothing_that_is_here(server, archive, cache, packed):
    kept = archive.bytes * 3 // 4
    part(cache, packed[0][:kept])
    refused(server, archive, "norange-drop")  # half of the file, twice
    assert (cache / f"{NAME}.part").read_bytes() == packed[0][:kept]
    get(server, archive, "norange")
    assert (cache / NAME).read_bytes() == packed[0]


def test_answers_that_do_not_fit_the_partial_file(server, archive, cache, packed):
    part(cache, packed[0][:-500])
    assert "another part of the file" in refused(server, archive, "shifted")
    assert "shorter file" in refused(server, archive, "short")
    assert "has a file of" in refused(server, archive, "long")
    assert (cache / f"{NAME}.part").read_bytes() == packed[0][:-500]


def test_wrong_bytes_never_stay(server, archive, cache):
    refused(server, archive, "wrong")
    assert held(cache) == []


def test_slow_is_not_stalled_and_a_trickle_is(server, archive, cache):
    impatient = dataclasses.replace(SOON, silence=0.2, slowest=10**9, rounds=1)
    slow = dataclasses.replace(archive, urls=(server.address("slow"),))
    with pytest.raises(DataError, match=r"stalled: [\d,]+ bytes in 0 s"):
        data.fetch(archive=slow, patience=impatient)
    kept = (cache / f"{NAME}.part").stat().st_size
    assert kept > 0
    data.fetch(archive=slow, patience=dataclasses.replace(impatient, slowest=1000))
    assert server.requests[1] == ("slow", f"bytes={kept}-")


# ------------------------------------------------------------------------------------ mirrors of the user's


def test_own_mirrors_come_first(server, archive, cache):
    got = get(server, archive, "busy", mirrors=[server.address("gone"), server.address("slow", "")])
    assert got.source == server.address("slow")
    assert [manner for manner, _ in server.requests] == ["gone", "slow"]


@pytest.mark.parametrize(
    "mirror", ["ftp://host/a", "host/a", "http://", "https://a b/", "http://[/", "file:///etc/passwd"]
)
def test_mirrors_that_are_no_address(server, archive, mirror):
    assert "is no address to download from" in refused(server, archive, "good", mirrors=[mirror])
    assert server.requests == []


def test_passwords_in_addresses_are_not_shown(server, archive):
    secret = server.address("gone").replace("http://", "http://me:secret@") + "?key=secret"
    message = refused(server, archive, mirrors=[secret])
    assert "127.0.0.1" in message
    assert "secret" not in message


# ------------------------------------------------------------------------------------------- what is there


def test_damaged_archive_is_replaced_when_the_right_one_is_here(server, archive, cache, packed):
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(packed[0][:-100])
    assert any("fastadam data fetch cifar10" in str(problem) for problem in data.check("cifar10"))
    refused(server, archive, "busy")
    assert (cache / NAME).read_bytes() == packed[0][:-100]
    notes = Notes()
    get(server, archive, "good", progress=notes)
    assert any("is not the published file; it is replaced" in line for line in notes.lines)
    assert (cache / NAME).read_bytes() == packed[0]
    assert data.check("cifar10") == []


def test_files_put_there_by_hand(server, archive, cache, packed):
    data.write_binary(cache / "cifar-10-batches-bin", make())
    got = get(server, archive, "good")
    assert (got.path, got.sha256, got.source) == (str(cache / "cifar-10-batches-bin"), None, "cache")
    (cache / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"x")
    message = refused(server, archive, "good")
    assert f"rm -r {cache / 'cifar-10-batches-bin'}" in message
    assert "test_batch.bin" in message
    assert server.requests == []


def test_cache_that_cannot_be_written(server, archive, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file")
    with pytest.raises(FastAdamError, match=r"cannot write .*fastadam"):
        get(server, archive, "good")


def test_folder_in_the_place_of_the_archive(server, archive, cache):
    (cache / NAME).mkdir(parents=True)
    assert "is a folder where the archive belongs" in refused(server, archive, "good")


def test_leftovers_of_killed_processes_go(server, archive, cache):
    cache.mkdir(parents=True)
    for name in ("tmpabcd1234", f"{NAME}.copy", "notes.txt"):
        (cache / name).touch()
    get(server, archive, "good")
    assert held(cache) == [NAME, "notes.txt"]


# ------------------------------------------------------------------------------------------------- --from


def test_file_that_the_user_has(server, archive, cache, packed, tmp_path):
    file = tmp_path / "download (1).gz"
    file.write_bytes(packed[0])
    part(cache, b"of an earlier attempt")
    got = get(server, archive, "good", file=file)
    assert (got.source, got.received) == (str(file), 0)
    assert (cache / NAME).read_bytes() == packed[0] == file.read_bytes()
    assert held(cache) == [NAME]
    assert server.requests == []


def test_files_that_are_something_else(server, archive, cache, packed, tmp_path, monkeypatch):
    python = pack(tmp_path / "p.tar.gz", {"cifar-10-batches-py/data_batch_1": b"\x80\x04."})
    other = pack(tmp_path / "o.tar.gz", {**files_of(packed[1]), "more": b"x"})
    changed = bytearray(packed[0])
    changed[len(changed) // 2] ^= 1
    monkeypatch.setitem(ARCHIVES, "cifar100", dataclasses.replace(CIFAR100.archive, bytes=77))
    for content, expected in (
        (python.read_bytes(), "python version of CIFAR-10 (pickles)"),
        (other.read_bytes(), r"is a data set, but not the published cifar-10-binary.tar.gz"),
        (b"<html>sign in first</html>", "is a web page (HTML)"),
        (packed[0][:-400], "ends early"),
        (b"", "is empty"),
        (bytes(changed), "is damaged"),
        (bytes(77), "fastadam data fetch cifar100 --from"),
    ):
        file = tmp_path / "file.tar.gz"
        file.write_bytes(content)
        message = refused(server, archive, "good", file=file)
        assert expected in message
        assert str(file) in message
        assert held(cache) == []
    assert "is a folder" in refused(server, archive, "good", file=tmp_path)
    assert refused(server, archive, "good", file=tmp_path / "none").endswith("none; check the path")
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refused(server, archive, "good", file=tmp_path / "pipe")


# ------------------------------------------------------------------------------------------ hostile archives


def hostile(tmp_path, kind):
    """An archive whose members would write outside, or are no files."""
    path = tmp_path / "hostile.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("../../../outside/test_batch.bin" if kind == "above" else "data_batch_1.bin")
        if kind == "absolute":
            member.name = str(tmp_path / "outside" / "test_batch.bin")
        if kind in ("symlink", "hardlink"):
            member.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
            member.linkname = "/etc/passwd"
        if kind == "device":
            member.type = tarfile.CHRTYPE
        tar.addfile(member)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["above", "absolute", "symlink", "hardlink", "device"])
def test_hostile_archives(server, archive, cache, packed, tmp_path, kind):
    """Served for the published one they are refused; were they the published ones, nothing would be unpacked."""
    content = hostile(tmp_path, kind)
    server.content = content
    same_size = dataclasses.replace(archive, bytes=len(content))
    assert "not the published file" in refused(server, same_size, "good")
    assert held(cache) == []
    get(server, dataclasses.replace(same_size, sha256=hashlib.sha256(content).hexdigest()), "good")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        data.load("cifar10")
    assert data.check("cifar10")
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------------------ processes

PROGRAM = """
import sys
from fastadam.data.fetch import ARCHIVES
from fastadam.data.formats import Archive
ARCHIVES["cifar10"] = Archive(sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1), (sys.argv.pop(1),))
from fastadam_cli.main import main
main()
"""


def start(server, archive, manner, *args):
    """The command in a process of its own, with another registry."""
    entry = [archive.name, str(archive.bytes), archive.sha256, server.address(manner)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *entry, "data", "fetch", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def size_of(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_download_goes_on_where_it_was(server, archive, cache, packed, number):
    process = start(server, archive, "stall")  # half way, so that it cannot end before it is stopped
    wait_for(lambda: size_of(cache / f"{NAME}.part") > archive.bytes // 3)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    kept = size_of(cache / f"{NAME}.part")
    assert archive.bytes // 3 < kept < archive.bytes
    assert not (cache / NAME).exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert told.splitlines()[-1].endswith(
            f"stopped; {kept:,} of {archive.bytes:,} bytes are here, the same command goes on from there"
        )
    server.requests.clear()
    process = start(server, archive, "good", "--json")
    out, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert server.requests == [("good", f"bytes={kept}-")]
    assert server.sent["good"] == archive.bytes - kept
    assert json.loads(out)["resumed_from"] == kept
    assert (cache / NAME).read_bytes() == packed[0]
    assert held(cache) == [NAME]


def test_two_processes_download_once(server, archive, cache, packed):
    first = start(server, archive, "slow")
    wait_for(lambda: size_of(cache / f"{NAME}.part") > 0)
    second = start(server, archive, "slow", "--json")
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "another process is fetching" in outputs[1][1]
    assert json.loads(outputs[1][0])["source"] == "cache"
    assert server.sent == {"slow": archive.bytes}
    assert (cache / NAME).read_bytes() == packed[0]


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def run(archive, server, monkeypatch):
    def command(*args, manner="good", code=0, **env):
        monkeypatch.setitem(ARCHIVES, "cifar10", dataclasses.replace(archive, urls=(server.address(manner),)))
        result = CliRunner().invoke(main, [str(arg) for arg in ("data", *args)], env=env, prog_name="fastadam")
        assert result.exit_code == code, result.output
        return result

    return command


def test_command(run, server, archive, cache, tmp_path):
    result = run("fetch")
    assert result.stdout.startswith(f"{cache / NAME}: the published file (from {server.address('good')}, ")
    assert f"{NAME} from 127.0.0.1" in result.stderr
    assert run("fetch", "cifar10", "--quiet").stderr == ""
    assert "was there already" in run("fetch").stdout
    told = json.loads(run("fetch", "--json").stdout)
    assert (told["source"], told["sha256"]) == ("cache", archive.sha256)
    info = json.loads(run("info", "cifar10", "--json").stdout)
    assert (info["train_records"], info["test_records"]) == (50, 10)
    (cache / NAME).write_bytes(b"junk")
    assert "fastadam data fetch cifar10" in run("check", "cifar10", code=1).stdout
    file = tmp_path / "a.tar.gz"
    file.write_bytes(server.content)
    assert f"from {file}" in run("fetch", "--from", file, manner="gone").stdout
    assert "cifar10 is in order" in run("check", "cifar10").stdout


def test_command_takes_mirrors_from_everywhere(run, server, cache, tmp_path):
    good, gone = server.address("good", ""), server.address("gone")
    (tmp_path / "c.toml").write_text(f'mirror = ["{gone}", "{good}"]\n')
    (tmp_path / "one.toml").write_text(f'mirror = "{good}"\n')
    run("fetch", "--config", tmp_path / "one.toml", manner="busy")
    (cache / NAME).unlink()
    for args, env in (
        (["--mirror", gone, "--mirror", good], {}),
        ([], {"FASTADAM_DATA_FETCH_MIRROR": f"{gone} {good}"}),
        (["--config", tmp_path / "c.toml"], {}),
    ):
        server.requests.clear()
        run("fetch", *args, manner="busy", **env)
        assert [manner for manner, _ in server.requests] == ["gone", "good"]
        (cache / NAME).unlink()


def test_command_refuses(run, server, tmp_path):
    assert "could not be had" in run("fetch", manner="gone", code=1).stderr
    assert "must be an address" in run("fetch", "--mirror", "ftp://x", code=2).stderr
    assert "leave --mirror away" in run("fetch", "--mirror", "http://x/", "--from", "y", code=2).stderr
    assert "'cifar11' is not one of" in run("fetch", "cifar11", code=2).stderr
    (tmp_path / "c.toml").write_text('mirror = "not an address"\n')
    assert "mirror" in run("fetch", "--config", tmp_path / "c.toml", code=2).stderr
    assert server.requests == [("gone", None)]


def test_check_and_info_read_a_config(run, packed, tmp_path):
    (tmp_path / "c.toml").write_text("json = true\n")
    assert json.loads(run("check", packed[1], "--config", tmp_path / "c.toml").stdout) == {"ok": True, "problems": []}
    assert json.loads(run("info", packed[1], "--config", tmp_path / "c.toml").stdout)["test_records"] == 10
