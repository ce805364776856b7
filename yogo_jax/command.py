"""One command from its start to its end: its flags, its output, interrupts, its exit status.

Every entry point runs inside `as_command`. A mistake of the user, Ctrl-C and a reader of its output
that has gone (`infer … | head -1`) end it without a traceback.
"""

import argparse
import difflib
import errno
import functools
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from yogo_jax.errors import EXIT_USER_ERROR, exit_on_user_error
from yogo_jax.files import path_flag
from yogo_jax.progress import without_progress
from yogo_jax.startup import spare_libraries_the_home


EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_OUTPUT_CLOSED = 128 + signal.SIGPIPE
# A second SIGINT within this time comes from the same Ctrl-C: `timeout` and others send it to the
# process and to its group.
_ONE_CTRL_C_S = 0.5


# The name of the running command, and the other name that the user called it by.
_called: tuple[str, str] | None = None


@contextmanager
def called_as(name: str, by: str) -> Iterator[None]:
    """Within the block, help and errors of the command `name` call it as the user did.

    Args:
      name: as "python -m yogo_jax.train".
      by: as "yogo-jax train".
    """
    global _called
    before, _called = _called, (name, by)
    try:
        yield
    finally:
        _called = before


class Parser(argparse.ArgumentParser):
    """Flags of a command. A mistake in them is one line, which names the flag that may be meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        for part in ("prog", "epilog"):
            if _called is not None and options.get(part):
                options[part] = options[part].replace(*_called)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the command with the message in one line and exit status 2."""
        self.exit(EXIT_USER_ERROR, f"error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse; but unknown flags are refused, and that before missing ones."""
        arguments = sys.argv[1:] if args is None else list(args)
        known = list(self._option_string_actions)
        ahead = arguments[: arguments.index("--")] if "--" in arguments else arguments
        for flag in (each.partition("=")[0] for each in ahead if each.startswith("--")):
            is_short = self.allow_abbrev and any(each.startswith(flag) for each in known)
            if self._subparsers is None and flag not in known and not is_short:
                nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
                hint = f"did you mean {nearest[0]}?" if nearest else "unknown flag"
                self.error(f"{flag}: {hint}")
        return super().parse_known_args(arguments, namespace)


# Flags that several commands have, in the same words.
SHARED_FLAGS: dict[str, dict[str, Any]] = {
    "checkpoint": {
        "type": path_flag,
        "help": "a run's workdir (its best checkpoint), a checkpoint folder, or the name of a "
        "network of the package",
    },
    "--definition": {
        "metavar": "FILE.yml",
        "help": "labelled frames, or synthetic[:OPTIONS]; default: those of the run",
    },
    "--image-hw": {"type": int, "nargs": 2, "metavar": ("H", "W")},
    "--apply-orientation": {
        "action": argparse.BooleanOptionalAction,
        "help": "turn images as their EXIF or TIFF tag says, as viewers do; default: as those that "
        "the model was trained on, else yes",
    },
    "--batch-size": {
        "type": int,
        "default": 8,
        "help": "images a device takes at a time; default: %(default)s",
    },
    "--workers": {
        "type": int,
        "default": 0,
        "help": "processes that read images; default: threads",
    },
}


def add_shared(group: argparse._ActionsContainer, *flags: str, **changes: Any) -> None:
    """Adds flags of `SHARED_FLAGS`, of whose options the command may change some."""
    for flag in flags:
        group.add_argument(flag, **(SHARED_FLAGS[flag] | changes))


def add_thresholds(group: argparse._ActionsContainer) -> None:
    """Adds the thresholds that a box must pass; those of the model hold where no flag is given."""
    for name, usual, text in (
        ("obj-thresh", 0.5, "objectness above which a box counts"),
        ("iou-thresh", 0.5, "IoU above which a worse box is suppressed"),
        (
            "min-class-confidence-threshold",
            0.0,
            "probability that the class of a box must exceed, if above 0",
        ),
    ):
        group.add_argument(
            f"--{name}",
            type=float,
            help=f"{text}; default: what the model says, mostly {usual:g}",
        )
    group.add_argument(
        "--decision",
        choices=("stored", "most_probable"),
        default="stored",
        help='how the class of a box is decided: as the model says ("stored"), or the most '
        "probable class of each box above --obj-thresh; default: %(default)s",
    )
    group.add_argument(
        "--score-thresholds",
        type=path_flag,
        metavar="FILE.json",
        help="decide by these scores of classes, as `yogo-jax calibrate --output` writes them",
    )


def add_quiet(parser: argparse._ActionsContainer) -> None:
    """Adds `-q`, for commands that print their progress."""
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print results and errors, no progress"
    )


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Drops what the block prints on standard output, and its progress, if `quiet`."""
    if not quiet:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        without_progress(),
    ):
        yield


class OutputClosed(BaseException):
    """Nobody reads any more what the command prints."""


# Whether this process is a command and nothing else.
_owned = False


def own_this_process() -> None:
    """Says that this process is a command and nothing else, so that it may end at once.

    Call it at the top of a command. The imports below it take a while, and from here on Ctrl-C ends
    the command with one line.
    """
    global _owned
    _owned = True
    signal.signal(signal.SIGINT, lambda *_: _leave("interrupted", EXIT_INTERRUPTED))


def is_owned() -> bool:
    """Says whether this process is a command and nothing else."""
    return _owned


def end(status: int) -> NoReturn:
    """Ends the command, when everything is in order.

    A process that is a command and nothing else ends here. Python would first wait for threads that
    nobody needs any more, and would crash if one of them compiles.

    Raises:
      SystemExit: the command runs in a process of others.
    """
    if not _owned:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def as_command(
    request: Callable[[str], None] | None = None,
    *,
    interrupted: str = "interrupted",
    status: int = EXIT_INTERRUPTED,
) -> Iterator[None]:
    """The block is a command: it prints safely, and ends with a status and at most one line.

    A `UserError` ends it with status 2, Ctrl-C with `status`, a second Ctrl-C at once with 130. If
    nobody reads its output, it ends with 141 and says nothing. Once it has ended in one of these
    ways, a reader that goes away does not change the status.

    Args:
      request: for commands that save before they stop. If nobody reads the output, it is called
        with the reason, and the command goes on until it stops by itself. Such commands handle
        SIGINT themselves.
      interrupted: the line that is printed after Ctrl-C.
      status: the exit status after Ctrl-C.
    """

    is_over = False

    def on_closed() -> None:
        nonlocal is_over
        if is_over:
            # How it ends is settled. What it still says must not change that.
            return
        is_over = True
        if request is None:
            raise OutputClosed
        request("nobody reads its output")

    signals = _Interrupts(interrupted, status)
    with _safe_output(on_closed):
        try:
            with signals, exit_on_user_error():
                spare_libraries_the_home()
                # What was saved is what counts of a command that saves; of others, their output.
                with _flushed_at_end() if request is None else nullcontext():
                    yield
        except BaseException as error:
            is_over = True
            # What is interrupted may turn that into an error of its own, as imports do.
            if signals.came or isinstance(error, KeyboardInterrupt):
                print(interrupted, file=sys.stderr)
                end(status)
            if isinstance(error, OutputClosed):
                end(EXIT_OUTPUT_CLOSED)
            raise
        finally:
            is_over = True
            logging.disable(logging.NOTSET)


@contextmanager
def _flushed_at_end() -> Iterator[None]:
    """Flushes the output of a command that ends well; a reader that has gone is noticed here."""
    try:
        yield
    except SystemExit as ended:
        # As --help ends.
        if not ended.code:
            sys.stdout.flush()
        raise
    sys.stdout.flush()


class _Output:
    """A stream for text. Once its reader has gone, it drops what is written."""

    def __init__(self, stream: Any, on_closed: Callable[[], None]) -> None:
        self._stream = stream
        self._on_closed = on_closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text; `print` and Rich call nothing else."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._close(error)
            return len(text)

    def flush(self) -> None:
        """Hands everything written to the operating system."""
        try:
            self._stream.flush()
        except OSError as error:
            self._close(error)

    def _close(self, error: OSError) -> None:
        if not self._has_no_reader(error):
            raise error
        if threading.current_thread() is not threading.main_thread():
            # An exception would end this thread alone. The main thread writes soon, and ends.
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._on_closed()

    def _has_no_reader(self, error: OSError) -> bool:
        if error.errno == errno.EIO:
            # A terminal that was closed, as that of a lost connection; of a file it is the disk.
            return stat.S_ISCHR(os.fstat(self._stream.fileno()).st_mode)
        return error.errno == errno.EPIPE


@contextmanager
def _safe_output(on_closed: Callable[[], None]) -> Iterator[None]:
    """Text that the terminal cannot show is escaped; a reader that has gone is noticed."""
    before = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in before]
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # None is what Python has for a stream that was closed before it started.
        safe = [cast(TextIO, _Output(stream or nowhere, on_closed)) for stream in before]
        sys.stdout, sys.stderr = safe
        try:
            yield
        finally:
            try:
                # Python would do it at its end, and complain there.
                for output in safe:
                    output.flush()
            finally:
                sys.stdout, sys.stderr = before
                for stream, old in zip(before, errors, strict=True):
                    if old is not None and hasattr(stream, "reconfigure"):
                        stream.reconfigure(errors=old)


class _Interrupts:
    """The first Ctrl-C raises `KeyboardInterrupt`, the second ends the process at once.

    Python calls a handler only when compiled code returns. But it writes the number of the signal
    into a pipe at once, and a thread reads it there.

    Attributes:
      came: whether there was a Ctrl-C.
    """

    def __init__(self, line: str, status: int) -> None:
        self.came = False
        self._line, self._status = line, status
        self._stack = ExitStack()

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is not threading.main_thread():
            return self
        ours, pythons = os.pipe()
        os.set_blocking(pythons, False)
        watcher = threading.Thread(target=self._watch, args=(ours,), daemon=True)
        watcher.start()
        put_back = self._stack.callback
        for descriptor in (ours, pythons):
            put_back(os.close, descriptor)
        put_back(watcher.join)
        put_back(os.write, pythons, b"\0")
        put_back(signal.set_wakeup_fd, signal.set_wakeup_fd(pythons, warn_on_full_buffer=False))
        put_back(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = functools.partial(self._on_unraisable, sys.unraisablehook)
        put_back(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            return
        if _owned and _imports(frame):
            # Compiled modules abort where their first lines are interrupted.
            _leave(self._line, self._status)
        self.came = True
        hush()
        raise KeyboardInterrupt

    def _on_unraisable(self, hook: Callable[[Any], object], unraisable: Any) -> None:
        # Python drops what is raised while it collects garbage, and prints a traceback of it.
        if _owned and issubclass(unraisable.exc_type, KeyboardInterrupt):
            _leave(self._line, self._status)
        elif issubclass(unraisable.exc_type, Exception):
            hook(unraisable)

    def _watch(self, descriptor: int) -> None:
        first: float | None = None
        while number := os.read(descriptor, 1)[0]:
            if number != signal.SIGINT:
                continue
            now = time.monotonic()
            if first is None:
                first = now
            elif now - first > _ONE_CTRL_C_S:
                _leave("interrupted again: ended at once", EXIT_INTERRUPTED)


def hush() -> None:
    """No more logs of libraries, which complain at length when they are interrupted."""
    logging.disable(logging.CRITICAL)


def _imports(frame: FrameType | None) -> bool:
    """Says whether a module is just being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(line: str, status: int) -> NoReturn:
    """Ends the process without putting anything in order."""
    # Not by Python's streams, which the main thread may be in the middle of.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
    os._exit(status)
