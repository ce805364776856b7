"""The package's own source files."""

import hashlib
from pathlib import Path


def source_digest() -> str:
    """SHA-256 (hex) of the names and contents of all source files of the package, as they are now.

    What was imported between two calls that agree is what they saw.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(source)}\n".encode() + source)
    return digest.hexdigest()
