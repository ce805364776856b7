"""The package's own source files."""

import hashlib
from pathlib import Path


def source_digest() -> str | None:
    """SHA-256 (hex) of the names and contents of all source files of the package, as they are now.

    None where there are none, as in a package of compiled files, or one cannot be read.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    # Hidden are locks and copies that editors make.
    paths = [path for path in sorted(package.rglob("*.py")) if not path.name.startswith(".")]
    try:
        for path in paths:
            source = path.read_bytes()
            digest.update(f"{path.relative_to(package)} {len(source)}\n".encode() + source)
    except OSError:
        return None
    return digest.hexdigest() if paths else None


# Of a command that imports this before other parts of the package, and finds the same after all of
# them, it is what they were imported from.
AT_START = source_digest()
