"""All commands under one name: `yogo-jax train …` is `python -m yogo_jax.train …`, and so on."""

import argparse
import difflib
import importlib
import importlib.metadata
import itertools
import sys
from typing import NamedTuple

from yogo_jax.command import Parser, as_command, called_as, own_this_process
from yogo_jax.errors import UserError


class Command(NamedTuple):
    """One sub-command: a title in the help, the module whose `main` it is, and what it is for.

    Modules of `bridge` need packages that the others do without, and are imported when called.
    """

    group: str
    module: str
    summary: str


_DATA, _TRAIN, _COUNT = "Look at the data", "Train and judge", "Detect and count"
_BRIDGE = "To the instrument, and from the original"

# In the order of a project's life.
COMMANDS = {
    "inspect": Command(_DATA, "yogo_jax.inspect_data", "contents and faults of a data set"),
    "anchors": Command(_DATA, "yogo_jax.anchors", "mean size of the training boxes"),
    "train": Command(_TRAIN, "yogo_jax.train", "train a detector, or continue a run"),
    "evaluate": Command(_TRAIN, "yogo_jax.evaluate", "metrics and report of a checkpoint"),
    "calibrate": Command(_TRAIN, "yogo_jax.calibrate", "make class probabilities right on average"),
    "report": Command(_TRAIN, "yogo_jax.report", "a page on one run, or comparing several"),
    "sweep": Command(_TRAIN, "yogo_jax.sweep", "search for good settings, with many tasks at once"),
    "infer": Command(_COUNT, "yogo_jax.infer", "find cells in images, zarr stores and videos"),
    "counts": Command(_COUNT, "yogo_jax.counts", "parasitemia with intervals, from found cells"),
    "export": Command(
        _BRIDGE, "bridge.to_openvino", "a checkpoint as verified ONNX and OpenVINO IR"
    ),
    "benchmark": Command(_BRIDGE, "bridge.benchmark", "frames/s of exported models, in turn"),
    "from-torch": Command(_BRIDGE, "bridge.from_torch", "a checkpoint of the original as ours"),
    "from-onnx": Command(
        _BRIDGE, "bridge.from_onnx", "an exported network of the original as ours"
    ),
}
SHELLS = ("bash", "zsh", "tcsh")

EXAMPLES = """\
A first project:
  yogo-jax inspect FILE.yml                         is the data what you think it is?
  yogo-jax train --config strong --workdir runs/first \\
      --config.data.definition=FILE.yml --config.data.image_hw=240,320
  yogo-jax evaluate runs/first --output results     metrics.json and report.html
  yogo-jax infer runs/first --images FOLDER --output found --draw-boxes --count
  yogo-jax export runs/first --output exported      for the instrument

yogo-jax COMMAND --help says more on each. Completion in the shell:
  eval "$(yogo-jax completion bash)"                or zsh, tcsh; into ~/.bashrc to keep it
"""


def format_help() -> str:
    """The page that `yogo-jax --help` prints."""
    lines = [
        "usage: yogo-jax COMMAND [FLAGS]",
        "",
        "YOGO, the one-stage detector that counts malaria parasites in real time.",
    ]
    for title, names in itertools.groupby(COMMANDS, lambda name: COMMANDS[name].group):
        lines += ["", f"{title}:"]
        lines += [f"  {name:<15}{COMMANDS[name].summary}" for name in names]
    lines += ["", "Other:", "  completion     completion of these commands, for a shell"]
    lines += ["  --version      the version of yogo_jax", "", EXAMPLES]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """All commands with all of their flags in one parser: what completion is made from."""
    parser = Parser(prog="yogo-jax")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        flags = importlib.import_module(command.module).make_parser()
        commands.add_parser(name, parents=[flags], add_help=False, help=command.summary)
    completion = commands.add_parser("completion", help="completion for a shell")
    completion.add_argument("shell", choices=SHELLS)
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    if argv is None:
        own_this_process()
    with as_command():
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(format_help())
            return
        if arguments == ["--version"]:
            print(importlib.metadata.version("yogo_jax"))
            return
        name, *rest = arguments
        if name == "completion":
            if len(rest) != 1 or rest[0] not in SHELLS:
                raise UserError(f"completion: expected one of {', '.join(SHELLS)}, got {rest}")
            import shtab

            print(shtab.complete(make_parser(), shell=rest[0]))
            return
        if name not in COMMANDS:
            nearest = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(COMMANDS)}."
            raise UserError(f"{name!r} is not a command of yogo-jax; {hint} See yogo-jax --help")
        module = COMMANDS[name].module
        command = importlib.import_module(module).main
    with called_as(f"python -m {module}", f"yogo-jax {name}"):
        command(rest)


if __name__ == "__main__":
    main()
