"""Folders that one command at a time writes to, and new folders that nobody else has.

A claim is the file FOLDER/NAME/NUMBER.json. The process that creates it owns the folder: only one
can create the next number. The owner renews the time of the file, and gives the folder back by
setting that time to 0. Another process may create the next number when the claim is stale: given
back, that of a process known to be dead, or not renewed for long. An owner that finds the next
number stops at once. All times are by the clock of the file system, because clocks of machines
differ.

`own_folder` is for a command and its output; the tasks of a sweep claim its trials one by one.
"""

import functools
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from yogo_jax.errors import UserError
from yogo_jax.files import make_folder


# A claim is renewed so many times in the time after which it counts as stale: a few may be late.
RENEWALS = 8
STALE_AFTER_S = 120.0
# Status of a task that has lost its folder to another one, because it gave no sign of life.
EXIT_LOST = 3
# The folder of the claims of `own_folder`; it is deleted when nobody owns the folder.
OWNER = ".owner"
_LOOK_EVERY_S = 1.0


class Claimed(NamedTuple):
    """The content of a claim's file.

    Attributes:
      number: of the claim, counted from 0 within its trial.
      path: of its file.
      renewed_at: seconds in the clock of the file system; 0 when it was given back.
      values: host, process, SLURM job, time, steps of the trial's newest checkpoint at its start,
        and the error it ended with; empty while the file is being written.
    """

    number: int
    path: Path
    renewed_at: float
    values: dict[str, Any]

    def is_stale(self, now: float, stale_after: float) -> bool:
        """True if its owner gave it back, is known to be dead, or did not renew it."""
        return now - self.renewed_at > stale_after or self.owner_lives is False

    @property
    def owner_lives(self) -> bool | None:
        """True if its process is there, False if not; None if that cannot be told from here."""
        machine, job = _machine(), _slurm_job()
        if machine is not None and self.values.get("machine") == machine:
            return _lives(self.values["process"], self.values["started"])
        if job is not None and self.values.get("job") == job:
            # SLURM starts a job again only when its first processes are gone. Earlier versions
            # noted no number, and not every process of a job is told its own.
            before = self.values.get("restart")
            return False if before is not None and int(before) < _restart() else None
        return None

    def describe(self) -> str:
        """Names the owner, for messages."""
        if not self.values:
            return "another process"
        job = f", job {self.values['job']}" if self.values["job"] else ""
        return (
            f"process {self.values['process']} on {self.values['host']}{job}, since "
            f"{self.values['time']} ({self.values.get('command', '')})"
        )

    @property
    def ended_orderly(self) -> bool:
        """True if its owner gave it back without an error, as on preemption."""
        return self.renewed_at == 0 and "error" not in self.values


def read_claims(folder: Path, name: str = "claims") -> list[Claimed]:
    """All claims of a folder by their number; they lie in `folder / name`."""
    claims = []
    for path in (folder / name).glob("*.json"):
        try:
            # To open a file is what makes NFS ask its server for the times.
            with path.open(encoding="utf-8") as file:
                text, renewed_at = file.read(), os.fstat(file.fileno()).st_mtime
            values = json.loads(text)
        except FileNotFoundError:
            # Given back in this moment.
            continue
        except ValueError:
            values = {}
        claims.append(Claimed(int(path.stem), path, renewed_at, values))
    return sorted(claims)


def deaths_without_progress(claims: list[Claimed], step: int) -> list[Claimed]:
    """The latest claims in a row that died with the trial's newest checkpoint where it is now.

    Those given back in order, as on preemption, are passed over.
    """
    deaths = []
    for claim in reversed(claims):
        if claim.ended_orderly:
            continue
        if claim.values.get("step", step) != step:
            break
        deaths.append(claim)
    return deaths[::-1]


def file_system_now(folder: Path) -> float:
    """The time in seconds, by the clock that stamps files in a folder: on a share, the server's."""
    path = folder / f".clock.{socket.gethostname()}.{os.getpid()}"
    with path.open("w", encoding="utf-8") as file:
        file.write(".")
        file.flush()
        os.fsync(file.fileno())
        now = os.fstat(file.fileno()).st_mtime
    path.unlink(missing_ok=True)
    return now


def stop_this_task(message: str) -> None:
    """Ends the process at once: whatever it wrote now would mix with the new owner's files."""
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)
    finally:
        os._exit(EXIT_LOST)


class Claim:
    """A folder that this process owns, renewed by a thread until it is given back.

    Use as a context manager. It notes an exception that passes through it in the claim, but not one
    that ends a process in order (`SystemExit`, `KeyboardInterrupt`).
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        *,
        stale_after: float,
        on_lost: Callable[[str], None] = stop_this_task,
        name: str = "claims",
    ) -> None:
        self.folder = folder
        self.number = number
        self.path = folder / name / f"{number}.json"
        self._interval = stale_after / RENEWALS
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        self._stop.set()
        self._thread.join()
        if isinstance(error, Exception):
            # On a full disk the error that says so must get through.
            with suppress(OSError):
                self.note(error=f"{type(error).__name__}: {error}")
        # Others then wait until it is stale.
        with suppress(OSError):
            os.utime(self.path, (0, 0))

    def note(self, **values: Any) -> None:
        """Adds to what the claim's file says."""
        before = json.loads(self.path.read_text(encoding="utf-8"))
        self.path.write_text(json.dumps(before | values), encoding="utf-8")

    def _why_lost(self) -> str | None:
        if self.path.with_name(f"{self.number + 1}.json").exists():
            return (
                f"{self.folder} was taken over by another task, because this one had not renewed "
                f"{self.path.name} in time; it stops"
            )
        if not self.path.exists():
            return (
                f"{self.path} is gone, so this task cannot tell whether it still owns "
                f"{self.folder}; it stops. Somebody has moved or deleted the folder, or another "
                "task has taken it over and has ended"
            )
        return None

    def _renew(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                lost = self._why_lost()
                if lost is None:
                    os.utime(self.path)
            except OSError as error:
                # A server that stumbles may be back for the next time.
                print(f"{self.path} cannot be renewed now ({error.strerror})", file=sys.stderr)
                continue
            if lost is not None:
                self._on_lost(lost)
                return


def try_to_claim(
    folder: Path,
    *,
    step: int,
    now: float,
    stale_after: float = STALE_AFTER_S,
    on_lost: Callable[[str], None] = stop_this_task,
    name: str = "claims",
) -> Claim | None:
    """Takes a folder that nobody works in; None if somebody does, or was faster.

    The claim notes `step`, that of the trial's newest checkpoint; `now`, from `file_system_now`,
    must be read before. `on_lost` is called in a thread should another take the folder over.
    """
    claims = read_claims(folder, name)
    if claims and not claims[-1].is_stale(now, stale_after):
        return None
    number = claims[-1].number + 1 if claims else 0
    claim = Claim(folder, number, stale_after=stale_after, on_lost=on_lost, name=name)
    path = claim.path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    values = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "command": shlex.join(sys.argv),
        "job": _slurm_job(),
        "restart": _restart(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "stale_after": stale_after,
        "step": step,
    }
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)
    return claim


@contextmanager
def own_folder(
    folder: Path, flag: str, *, is_new: bool = False, stale_after: float = STALE_AFTER_S
) -> Iterator[None]:
    """Makes a folder, if need be, and owns it: no other command writes to it in the meantime.

    The folder of a dead process is taken over. This happens at once if that process ran on this
    machine or in an earlier start of this SLURM job. Else this waits until it has given no sign of
    life for `stale_after`. A folder that was made here and is still empty at the end is removed.

    Args:
      folder: where the command writes.
      flag: what the user set it by, for messages.
      is_new: the folder was made for this command.
      stale_after: seconds without a sign of life after which an owner counts as dead.

    Raises:
      UserError: another command owns it, or it cannot be written.
    """
    is_new = is_new or not folder.exists()
    make_folder(folder, flag)
    try:
        claim = _take(folder, flag, stale_after)
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written ({error.strerror})") from error
    try:
        with claim:
            yield
    finally:
        _remove(claim)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def make_new_folder(path: Path) -> Path:
    """Makes a folder of this name, or, where there is one, the first of NAME-2, NAME-3, ….

    Raises:
      UserError: it cannot be made.
    """
    folder, number = path, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")
        except OSError as error:
            raise UserError(f"{folder}: cannot be made a folder ({error.strerror})") from error


def _take(folder: Path, flag: str, stale_after: float) -> Claim:
    """The claim of a folder, perhaps after waiting for an owner that may be dead."""
    seen: Claimed | None = None
    is_told = False
    while True:
        owner = next(reversed(read_claims(folder, OWNER)), None)
        now = file_system_now(folder)
        if owner is not None and owner.owner_lives:
            raise _in_use(owner, folder, flag)
        if owner is None or owner.is_stale(now, stale_after):
            claim = try_to_claim(folder, step=0, now=now, stale_after=stale_after, name=OWNER)
            if claim is not None:
                _refuse_others(claim, flag, now, stale_after)
                return claim
        else:
            is_known = seen is not None and seen.number == owner.number
            if seen is not None and is_known and seen.renewed_at != owner.renewed_at:
                raise _in_use(owner, folder, flag)
            is_told = is_told and is_known
            # At the first look a claim may still be being written: then it names no owner.
            if not is_told and (owner.values or is_known):
                is_told = True
                print(
                    f"waiting up to {stale_after:.0f} s: {folder} is owned by {owner.describe()}, "
                    "which may be dead",
                    file=sys.stderr,
                    flush=True,
                )
            seen = owner
        time.sleep(_LOOK_EVERY_S)


def _refuse_others(claim: Claim, flag: str, now: float, stale_after: float) -> None:
    """Looks once more: a claim may have come and gone between the look and the claim."""
    for other in read_claims(claim.folder, OWNER):
        if other.path == claim.path:
            continue
        if other.number > claim.number or not other.is_stale(now, stale_after):
            _remove(claim)
            raise _in_use(other, claim.folder, flag)
        other.path.unlink(missing_ok=True)


def _remove(claim: Claim) -> None:
    with suppress(OSError):
        claim.path.unlink(missing_ok=True)
        claim.path.parent.rmdir()


def _in_use(owner: Claimed, folder: Path, flag: str) -> UserError:
    return UserError(
        f"{flag} {folder} is in use by {owner.describe()}: choose another folder, or wait until "
        "that command has ended"
    )


def _slurm_job() -> str | None:
    """The job as `squeue` names it and `scancel` takes it: of an array, JOB_INDEX."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def _restart() -> int:
    """The count of times that SLURM has started this job again; 0 also where it does not say."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


@functools.cache
def _machine() -> str | None:
    """The name of this machine, its start, and the container: in there a number is one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _lives(process: int, started: str) -> bool | None:
    """True if the process of this machine that began then is there; None if it may be."""
    try:
        # Sends nothing.
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is there, and belongs to another user.
        pass
    now = _started(process)
    # A system may hide the processes of other users. The number may be that of another by now.
    return None if now is None else now == started


def _started(process: int) -> str | None:
    """The start of a process of this machine, in ticks of its clock.

    Empty if it has ended and only its number is left; None if it is not there or is hidden.
    """
    try:
        line = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    # Behind the name, which may hold anything: the state, …, as field 22 the start.
    fields = line.rpartition(b")")[2].split()
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
