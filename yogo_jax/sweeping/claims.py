"""Who works on a trial: claims that one process can win and that a dead one loses.

A trial's folder holds `claims/0.json`, `claims/1.json`, …: one file for each task that worked on
it, made with O_EXCL, which of several processes on a shared file system lets exactly one succeed
(NFS since version 3, Lustre, GPFS, BeeGFS). The owner of the highest number owns the trial. A
thread renews the file's time of modification; a claim that was not renewed for a while is stale,
and whoever makes the next number goes on in its place. Nothing is ever deleted, so there is no
moment in which two see the place as free.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


# A claim is renewed so many times in the time after which it counts as stale: a few may be late.
RENEWALS = 8
STALE_AFTER_S = 120.0
# Status of a task that stops because another has taken its trial over: it worked too slowly.
EXIT_LOST = 3


class Claimed(NamedTuple):
    """What a claim's file says.

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
        """Whether its owner gave it back or is dead, by the clock of the file system."""
        return now - self.renewed_at > stale_after

    @property
    def ended_orderly(self) -> bool:
        """Whether its owner gave it back without an error, as on preemption."""
        return self.renewed_at == 0 and "error" not in self.values


def read_claims(folder: Path) -> list[Claimed]:
    """All claims of a trial's folder in their order."""
    claims = []
    for path in (folder / "claims").glob("*.json"):
        try:
            # To open a file is what makes NFS ask its server for the times.
            with path.open(encoding="utf-8") as file:
                text, renewed_at = file.read(), os.fstat(file.fileno()).st_mtime
            values = json.loads(text)
        except ValueError:
            values = {}
        claims.append(Claimed(int(path.stem), path, renewed_at, values))
    return sorted(claims)


def file_system_now(folder: Path) -> float:
    """The time by the clock that stamps files in a folder: that of a server, if it is shared."""
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
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_LOST)


class Claim:
    """A trial that this process owns, renewed by a thread until it is given back.

    Use as a context manager. An exception that passes through is noted in the claim, but for those
    that end a process in order (`SystemExit`, `KeyboardInterrupt`).
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        *,
        stale_after: float,
        on_lost: Callable[[str], None] = stop_this_task,
    ) -> None:
        self.folder = folder
        self.number = number
        self._path = _path(folder, number)
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
            self.note(error=f"{type(error).__name__}: {error}")
        os.utime(self._path, (0, 0))

    def note(self, **values: Any) -> None:
        """Adds to what the claim's file says."""
        before = json.loads(self._path.read_text(encoding="utf-8"))
        self._path.write_text(json.dumps(before | values), encoding="utf-8")

    @property
    def is_mine(self) -> bool:
        """False once another has taken the trial over."""
        return not _path(self.folder, self.number + 1).exists()

    def _renew(self) -> None:
        while not self._stop.wait(self._interval):
            if not self.is_mine:
                self._on_lost(
                    f"{self.folder} was taken over by another task, because this one had not "
                    f"renewed {self._path.name} in time; it stops"
                )
                return
            try:
                os.utime(self._path)
            except OSError as error:
                # A server that stumbles may be back for the next time.
                print(f"{self._path} cannot be renewed now ({error.strerror})", file=sys.stderr)


def try_to_claim(
    folder: Path,
    *,
    step: int,
    now: float,
    stale_after: float = STALE_AFTER_S,
    on_lost: Callable[[str], None] = stop_this_task,
) -> Claim | None:
    """Takes a trial that nobody works on; None if somebody does, or was faster.

    Args:
      folder: of the trial.
      step: of its newest checkpoint, noted in the claim.
      now: from `file_system_now`, read before.
      stale_after: seconds without renewal after which a claim counts as that of a dead process.
      on_lost: called in a thread, with a message, should another take the trial over.
    """
    claims = read_claims(folder)
    if claims and not claims[-1].is_stale(now, stale_after):
        return None
    number = claims[-1].number + 1 if claims else 0
    path = _path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    values = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "job": _slurm_job(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "stale_after": stale_after,
        "step": step,
    }
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)
    return Claim(folder, number, stale_after=stale_after, on_lost=on_lost)


def _slurm_job() -> str | None:
    """The job as `squeue` names it and `scancel` takes it: of an array, JOB_INDEX."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def _path(folder: Path, number: int) -> Path:
    return folder / "claims" / f"{number}.json"


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
