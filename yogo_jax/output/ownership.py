"""A folder that one command at a time writes to, and new folders that nobody else has."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yogo_jax.errors import UserError
from yogo_jax.output.claims import (
    STALE_AFTER_S,
    Claim,
    Claimed,
    file_system_now,
    read_claims,
    try_to_claim,
)
from yogo_jax.output.files import make_folder


# The folder of claims; it is deleted when nobody owns the folder.
OWNER = ".owner"
_LOOK_EVERY_S = 1.0


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
        _give_back(claim)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _give_back(claim: Claim) -> None:
    with suppress(OSError):
        claim.path.unlink(missing_ok=True)
        claim.path.parent.rmdir()


def _take(folder: Path, flag: str, stale_after: float) -> Claim:
    seen: Claimed | None = None
    is_told = False
    while True:
        owner = next(iter(read_claims(folder, OWNER)[::-1]), None)
        now = file_system_now(folder)
        if owner is not None and owner.owner_lives:
            raise _in_use(owner, folder, flag)
        if owner is None or owner.is_stale(now, stale_after):
            claim = try_to_claim(folder, step=0, now=now, stale_after=stale_after, name=OWNER)
            if claim is not None:
                _refuse_others(claim, folder, flag, now, stale_after)
                return claim
        elif seen is None or seen.number != owner.number:
            # While a claim is being written, it does not name its owner yet.
            seen, is_told = owner, bool(owner.values)
            if is_told:
                _say_waiting(owner, folder, stale_after)
        elif owner.renewed_at != seen.renewed_at:
            raise _in_use(owner, folder, flag)
        elif not is_told:
            is_told = True
            _say_waiting(owner, folder, stale_after)
        time.sleep(_LOOK_EVERY_S)


def _say_waiting(owner: Claimed, folder: Path, stale_after: float) -> None:
    print(
        f"waiting up to {stale_after:.0f} s: {folder} is owned by {owner.describe()}, which may be "
        "dead",
        file=sys.stderr,
        flush=True,
    )


def _refuse_others(claim: Claim, folder: Path, flag: str, now: float, stale_after: float) -> None:
    """Looks once more: a claim may have come and gone between the look and the claim."""
    for other in read_claims(folder, OWNER):
        if other.path == claim.path:
            continue
        if other.number > claim.number or not other.is_stale(now, stale_after):
            _give_back(claim)
            raise _in_use(other, folder, flag)
        other.path.unlink(missing_ok=True)


def _in_use(owner: Claimed, folder: Path, flag: str) -> UserError:
    return UserError(
        f"{flag} {folder} is in use by {owner.describe()}: choose another folder, or wait until "
        "that command has ended"
    )


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
