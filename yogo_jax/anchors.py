"""Best anchor of a data set: `python -m yogo_jax.anchors FILE.yml`, for `--config.model.anchor`."""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

import argparse

import numpy as np

from yogo_jax.command import Parser, as_command
from yogo_jax.data.records import MIN_BOX_AREA
from yogo_jax.errors import UserError


def describe(definition: str, *, min_box_area: float, on_bad_label: str) -> str:
    """The mean size of the training boxes, how they scatter, and the flag that uses it.

    Raises:
      UserError: the data set cannot be read, or has no training box.
    """
    if not 0 <= min_box_area < 1:
        raise UserError(f"--min-box-area must be in [0, 1), got {min_box_area}")
    from yogo_jax.checkpoint.run_data import definition_path
    from yogo_jax.data.definition import load_definition
    from yogo_jax.data.records import mean_anchor
    from yogo_jax.data.splits import load_splits

    path = definition_path(definition)
    splits = load_splits(
        load_definition(path), min_box_area=min_box_area, on_bad_label=on_bad_label
    )
    train = splits.train
    width, height = mean_anchor(train)
    lines = [
        *splits.lines(),
        f"{'training boxes':<24}{'boxes':>8}{'width':>10}{'height':>10}   (mean +- deviation)",
    ]
    sizes = train.boxes_cxcywh[:, 2:].astype(np.float64)
    groups = [("all", np.ones(len(sizes), bool))]
    groups += [(name, train.class_ids == index) for index, name in enumerate(train.class_names)]
    for name, chosen in groups:
        if not chosen.any():
            lines.append(f"{name:<24}{0:>8}")
            continue
        mean, deviation = sizes[chosen].mean(0), sizes[chosen].std(0)
        lines.append(
            f"{name:<24}{chosen.sum():>8}{mean[0]:>10.4f}{mean[1]:>10.4f}"
            f"   +- {deviation[0]:.4f} {deviation[1]:.4f}"
        )
    lines.append(f"--config.model.anchor={width:.6f},{height:.6f}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = Parser(
        prog="python -m yogo_jax.anchors",
        description="Mean size of the training boxes: what model.anchor=auto would take.",
    )
    parser.add_argument("definition", help="data set definition (.yml), or synthetic[:OPTIONS]")
    parser.add_argument("--min-box-area", type=float, default=MIN_BOX_AREA)
    parser.add_argument("--on-bad-label", choices=("error", "skip"), default="error")
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command."""
    with as_command():
        args = make_parser().parse_args(argv)
        print(
            describe(
                args.definition,
                min_box_area=args.min_box_area,
                on_bad_label=args.on_bad_label,
            )
        )


if __name__ == "__main__":
    main()
