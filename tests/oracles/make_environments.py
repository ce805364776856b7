"""Makes the virtual environments of old OpenVINO releases in which tests look at exported models.

    python tests/oracles/make_environments.py

One for each release of `RELEASES`, in `.oracles/VERSION` at the root of the project. A release
whose interpreter is not on this machine is left out, and so are then the tests that need it.
Nothing is done for those that are there already.
"""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path


FOLDER = Path(__file__).parents[2] / ".oracles"
# OpenVINO release: the Python that it has wheels for.
RELEASES = {
    "2022.3.2": "3.10",  # the last line with the stick's plugin (in its own builds)
    "2022.1.0": "3.9",  # nearest to the instrument's own 2022.1.1
    "2021.4.2": "3.9",  # the last wheel that carries the stick's plugin
}


def python_of(release: str) -> Path:
    """The interpreter of the environment of a release, whether it is there or not."""
    return FOLDER / release / "bin" / "python"


def is_made(release: str) -> bool:
    """True if the environment of a release is there, complete."""
    return (FOLDER / release / ".complete").exists()


def find_interpreter(version: str) -> str | None:
    """An interpreter of that version, on the path or among those of pyenv."""
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    candidates = [f"python{version}", *sorted(glob.glob(f"{root}/versions/{version}.*/bin/python"))]
    for candidate in candidates:
        found = shutil.which(candidate)
        command = [found or "", "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        if found and _output(command) == version:
            return found
    return None


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def install_libusb() -> None:
    """The stick's plugin loads libusb, which Debian has; without it the plugin cannot be asked."""
    if "libusb-1.0.so.0" in _output(["/sbin/ldconfig", "-p"]):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print("libusb-1.0 is missing: install it (Debian: libusb-1.0-0) to ask the stick's plugin")
        return
    subprocess.run(["apt-get", "install", "-y", "-qq", "libusb-1.0-0"], check=False)


def main() -> None:
    """Makes what is missing."""
    install_libusb()
    for release, version in RELEASES.items():
        if is_made(release):
            continue
        interpreter = find_interpreter(version)
        if interpreter is None:
            print(f"openvino {release}: no Python {version} here, left out")
            continue
        folder = FOLDER / release
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
        pip = [str(python_of(release)), "-m", "pip", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "install", "--quiet", f"openvino=={release}", "numpy<1.24"], check=False
        )
        if done.returncode:
            sys.exit(f"openvino {release} could not be installed, see above")
        (folder / ".complete").touch()
        print(f"openvino {release}: {folder}")


if __name__ == "__main__":
    main()
