"""Ctrl-C, a reader that has gone, and errors within errors: how commands end."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest

from kills import assert_nothing_survives, readable_steps, steps_logged
from runs import ROOT, environment, run_command, train_command
from tiny_data import write_dataset
from yogo_jax.command import as_command
from yogo_jax.errors import UserError, exit_on_user_error


def start_script(text: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
    )


# Compiled code that takes very long, in which Python does not come to its handlers.
WAITS = """
import hashlib, threading
from yogo_jax.command import as_command, own_this_process

own_this_process()
with as_command():
    threading.Timer(1.0, print, ["waiting"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_a_second_ctrl_c_ends_a_command_at_once_in_compiled_code():
    process = start_script(WAITS)
    assert process.stdout.readline() == "waiting\n"
    # What comes at the same moment is the same Ctrl-C.
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == "interrupted again: ended at once\n"


IMPORTS = """
import sys
from contextlib import nullcontext
from yogo_jax.command import as_command, own_this_process

own_this_process()
sys.path.insert(0, sys.argv[1])
with as_command() if sys.argv[2] == "in it" else nullcontext():
    import slow
"""


@pytest.mark.parametrize("when", ["before the command", "in it"])
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path, when):
    # As some libraries do with whatever stops their import.
    (tmp_path / "slow.py").write_text(
        "import time\nprint('waiting', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException as e:\n    raise ImportError('x') from e\n"
    )
    process = start_script(IMPORTS, tmp_path, when)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "interrupted\n")


TURNS = """
import signal
from yogo_jax.command import as_command

handler = signal.getsignal(signal.SIGINT)
try:
    with as_command(interrupted="go on", status=75):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("made of it") from None
finally:
    print(signal.getsignal(signal.SIGINT) is handler)
"""


def test_an_interruption_stays_one_whatever_it_is_made_into():
    process = start_script(TURNS)
    out, said = process.communicate(timeout=20)
    assert (process.returncode, out, said) == (75, "True\n", "go on\n")


def test_an_interruption_that_python_drops_is_heard():
    script = WAITS.replace("threading.Timer", "Collected(); threading.Timer").replace(
        "own_this_process()\n",
        "import signal\nclass Collected:\n    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGINT)\nown_this_process()\n",
    )
    process = start_script(script)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "interrupted\n")


PRINTS = """
import sys
from yogo_jax.command import as_command, own_this_process
from yogo_jax.errors import UserError

own_this_process()
with as_command():
    try:
        for number in range(int(sys.argv[1])):
            print(number)
    except OSError as error:
        raise UserError("the disk is full") from error
"""
BEATS = """
import time
from yogo_jax.command import as_command, own_this_process
from yogo_jax.progress import Heartbeat

own_this_process()
with as_command(), Heartbeat(lambda line: print(line, flush=True), seconds=0.05) as heartbeat:
    heartbeat.doing("compiling")
    time.sleep(0.5)
    print("done")
"""
FAILS = """
from yogo_jax.command import as_command, own_this_process
from yogo_jax.errors import UserError

own_this_process()
with as_command():
    print("some output")
    raise UserError("x.yml:3: wrong")
"""
# As with `| tee`, which Ctrl-C ends, too.
INTERRUPTED = """
import signal
from yogo_jax.command import as_command, own_this_process

own_this_process()
with as_command(interrupted="go on with --resume", status=75):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        print("3 frames are done")
"""
TRAINS = """
from yogo_jax.command import own_this_process
from yogo_jax.training.stopping import exit_when_stopped

own_this_process()
with exit_when_stopped() as stop, stop.defer_stop():
    print("complete")
"""
HELP = """
import importlib, sys
from yogo_jax.command import own_this_process

command = importlib.import_module(f"yogo_jax.{sys.argv[1]}")
own_this_process()
command.main(["--help"])
"""
STOPS = """
from yogo_jax.command import own_this_process
from yogo_jax.training.stopping import exit_when_stopped

own_this_process()
with exit_when_stopped() as stop:
    with stop.defer_stop():
        while not stop.is_requested:
            print("x" * 10000)
        print("saved", flush=True)
    stop.check()
"""


SAVED = "stopped (nobody reads its output): the same command goes on (exit status 75)\n"


def end_without_reader(
    script: str, argument: object, buffered: bool, *, streams: tuple[str, ...] = ("stdout",)
) -> tuple[int, str | None]:
    """The exit status of a command whose reader has gone, and what it said on standard error."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-c", script, str(argument)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
        **{"stderr": subprocess.PIPE, **dict.fromkeys(streams, theirs)},
        text=True,
        check=False,
        timeout=60,
    )
    os.close(theirs)
    return done.returncode, done.stderr


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("script", "argument", "status", "said"),
    [
        pytest.param(PRINTS, 100_000, 141, "", id="while it prints"),
        pytest.param(PRINTS, 100, 141, "", id="at its end"),
        pytest.param(BEATS, 0, 141, "", id="while another thread prints"),
        pytest.param(INTERRUPTED, 0, 75, "go on with --resume\n", id="while it is interrupted"),
        pytest.param(HELP, "counts", 141, "", id="of a help"),
        pytest.param(HELP, "train", 141, "", id="of the help of a training"),
        pytest.param(HELP, "sweep", 141, "", id="of the help of a sweep"),
        pytest.param(STOPS, 0, 75, SAVED, id="a training saves first"),
        pytest.param(TRAINS, 0, 0, "", id="a training that is complete"),
    ],
)
def test_a_reader_that_has_gone(script, argument, status, said, buffered):
    assert end_without_reader(script, argument, buffered) == (status, said)


@pytest.mark.parametrize(
    ("script", "status", "said"), [(PRINTS, 141, ""), (BEATS, 141, ""), (STOPS, 75, SAVED)]
)
def test_a_terminal_that_was_closed(script, status, said):
    ours, theirs = os.openpty()
    process = start_script(script, 100_000, stdout=theirs)
    os.close(theirs)
    # It is a terminal while Python starts.
    os.read(ours, 1)
    os.close(ours)
    _, found = process.communicate(timeout=60)
    assert (process.returncode, found) == (status, said)


def test_a_fault_of_the_disk_is_no_reader_that_has_gone(tmp_path, monkeypatch):
    class Disk(io.TextIOWrapper):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    with (tmp_path / "log").open("wb") as file, Disk(file) as disk:
        monkeypatch.setattr(sys, "stdout", disk)
        with pytest.raises(OSError, match="Input/output error"), as_command():
            print("x")
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("buffered", "expected"), [(True, (2, "error: x.yml:3: wrong\n")), (False, (141, ""))]
)
def test_a_mistake_and_a_reader_that_has_gone(buffered, expected):
    # What comes first counts: without a buffer it is the reader.
    assert end_without_reader(FAILS, 0, buffered) == expected


@pytest.mark.parametrize(
    ("script", "status"),
    [(FAILS.replace("print", "str"), 2), (INTERRUPTED, 75), (STOPS, 75), (PRINTS, 141)],
    ids=["a mistake", "an interruption", "a training", "a command"],
)
def test_nobody_reads_what_a_command_complains_of(script, status):
    found = end_without_reader(script, 100_000, buffered=True, streams=("stdout", "stderr"))
    assert found == (status, None)


def test_a_command_without_any_output_runs():
    closed = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-']
    command = [*closed, sys.executable, "-m", "yogo_jax", "--help"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def raise_cause():
    try:
        raise UserError("the user's")
    except UserError as error:
        raise RuntimeError("wrapped") from error


def raise_context():
    try:
        raise UserError("handled")
    except UserError:
        raise RuntimeError("a bug while handling it")  # noqa: B904


def raise_user_error_while_handling():
    try:
        raise KeyError("x")
    except KeyError:
        raise UserError("the user's")  # noqa: B904


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raise_cause, "error: the user's\n"),
        (raise_user_error_while_handling, "error: the user's\n"),
        (raise_context, None),
    ],
)
def test_only_what_is_the_users_fault_is_told_as_such(function, said, capsys):
    with pytest.raises((SystemExit, RuntimeError)) as caught, exit_on_user_error():
        function()
    if said is None:
        assert str(caught.value) == "a bug while handling it"
        assert capsys.readouterr().err == ""
    else:
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("locale", "encoding", "text", "is_told"),
    [
        ("iso8859-1", "latin-1", "\u0436", True),
        ("ascii", "us-ascii", "\u0436", True),
        ("koi8-r", "koi8-r", "\u4e00", True),
        ("utf-8", "latin-1", "\u0436", False),
        ("utf-8", "ascii", "\u0436", False),
        ("utf-8", "utf-8", "\ud800", False),
        ("ascii", "latin-1", "\u0436", False),
        ("koi8-r", "ascii", "\u0436", False),
    ],
)
def test_only_a_name_that_the_locale_cannot_write_is_told_as_such(
    locale, encoding, text, is_told, monkeypatch, capsys
):
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: locale)
    expected = SystemExit if is_told else UnicodeEncodeError
    with pytest.raises(expected), exit_on_user_error():
        text.encode(encoding)
    said = capsys.readouterr().err
    assert said == (
        f"error: {text!a}: a path that {locale}, the encoding of this locale, cannot write: "
        "set LC_ALL=C.UTF-8\n"
        if is_told
        else ""
    )


@pytest.mark.slow
def test_ctrl_c_saves_a_training_and_its_workers_stay_silent(tmp_path):
    definition = write_dataset(tmp_path / "data", images=16, published=True)
    fields = {"train__epochs": 2000, "train__eval_every_epochs": 1000, "data__workers": 1}
    workdir = tmp_path / "run"
    command = train_command(definition, workdir, **fields)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment(optimized=False), "YOGO_TEST_MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (workdir / "train.log").exists():
        time.sleep(0.05)
    second = run_command(command)
    assert second.returncode == 2
    assert f"--workdir {workdir} is in use by process {process.pid} on" in second.stderr
    while process.poll() is None and steps_logged(workdir) < 2:
        time.sleep(0.05)
    # As a terminal does, to the worker processes, too.
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        75,
        "stopped (SIGINT): the same command goes on (exit status 75)\n",
    )
    assert_nothing_survives(str(tmp_path))
    saved = int(out.split("step ")[-1].split()[0])
    assert readable_steps(workdir)[-1] == saved
    assert not (workdir / ".owner").exists()
