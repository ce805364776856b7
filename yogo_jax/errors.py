"""The exception that means a mistake of the user, and the exit statuses of commands."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager


EXIT_USER_ERROR = 2
# A run that was asked to stop and has saved what it did: the same command goes on. The number is
# EX_TEMPFAIL of sysexits.h, "try again".
EXIT_TO_BE_CONTINUED = 75

# Packages that not every user has, and the extra of pyproject.toml that brings them.
EXTRA_OF_PACKAGE = {
    "jax2onnx": "bridge",
    "onnx": "bridge",
    # Also in the extra `runtime`, but what asks for them by this way is the bridge.
    "onnxruntime": "bridge",
    "openvino": "bridge",
    "nncf": "int8",
    "optuna": "sweep",
}


class UserError(ValueError):
    """Input that cannot be used; the message names the place, what was expected, and the fix.

    Entry points print it without a traceback and exit with status 2.
    """


def check_fractions(**given: float | None) -> None:
    """Refuses numbers out of [0, 1], by the names of their flags; None is not given.

    Raises:
      UserError: naming the flag and what was given.
    """
    for name, value in given.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{flag_of(name)} must be in [0, 1], got {value}")


def check_at_least(least: float, **given: float | None) -> None:
    """Refuses numbers that are too small or not finite, by the names of their flags.

    Raises:
      UserError: naming the flag and what was given.
    """
    for name, value in given.items():
        if value is not None and not least <= value < math.inf:
            raise UserError(f"{flag_of(name)} must be {least:g} or more, got {value}")


def check_positive(**given: float | None) -> None:
    """Refuses numbers that are not above 0 or not finite, by the names of their flags.

    Raises:
      UserError: naming the flag and what was given.
    """
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag_of(name)} must be more than 0, got {value:g}")


def flag_of(name: str) -> str:
    """The flag that sets an argument, as "--batch-size" sets batch_size."""
    return f"--{name.replace('_', '-')}"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into its message on standard error and exit status 2.

    A worker process hands its exceptions on wrapped in others, so causes are looked through; not
    what was being handled when another error came. A package of an extra that is not installed is
    such an error, too, and a name of a file that the locale cannot write.
    """
    try:
        yield
    except Exception as error:
        user_error = _user_error_in(error)
        if user_error is None:
            raise
        try:
            print(f"error: {user_error}", file=sys.stderr)
        finally:
            # Also if nobody reads it.
            sys.exit(EXIT_USER_ERROR)


def _user_error_in(error: BaseException | None) -> UserError | None:
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            package = error.name.split(".")[0]
            if extra := EXTRA_OF_PACKAGE.get(package):
                return UserError(
                    f"{package} is not installed, which this needs: pip install "
                    f"-c constraints.txt -e '.[{extra}]'"
                )
        if isinstance(error, UnicodeEncodeError) and _is_of_the_locale(error):
            # Files are UTF-8 and terminals get escapes: only names of files are left.
            return UserError(
                f"{error.object!a}: a path that {sys.getfilesystemencoding()}, the encoding of "
                "this locale, cannot write: set LC_ALL=C.UTF-8"
            )
        error = error.__cause__
    return error


def _is_of_the_locale(error: UnicodeEncodeError) -> bool:
    """True if names of files, as this locale encodes them, fail in the same way."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return False
    try:
        error.object.encode(encoding, sys.getfilesystemencodeerrors())
    except UnicodeEncodeError as again:
        # Of many encodings the error says "charmap" in place of their name.
        return again.encoding == error.encoding
    return False
