"""The training of one run, from its config to the metrics of its best checkpoint.

`train_and_evaluate` reads top to bottom: data, model, where to start, steps, test.
"""

from pathlib import Path
from typing import Any

from yogo_jax.checkpoint.metadata import environment
from yogo_jax.checkpoint.run_data import prepare_data, with_absolute_paths
from yogo_jax.checkpoint.store import restore_state
from yogo_jax.config.schema import Config
from yogo_jax.files import make_folder
from yogo_jax.parallel import Devices
from yogo_jax.progress import said_while
from yogo_jax.training.distributed import (
    check_batch_size,
    check_same_everywhere,
)
from yogo_jax.training.resume import adopt, find_start, lines_of_complete, record_config
from yogo_jax.training.setup import (
    initial_state,
    lines_of,
    load_teacher,
    prepare_spec,
    taught_by,
)
from yogo_jax.training.stopping import Stop
from yogo_jax.training.trainer import OnValidation, Run


def train_and_evaluate(
    config: Config,
    workdir: Path,
    *,
    stop: Stop | None = None,
    on_validation: OnValidation | None = None,
) -> dict[str, Any]:
    """Trains, or continues what the workdir holds, and tests the best checkpoint.

    A run that is complete, with its test, is left as it is, and said to be so.

    Args:
      config: the run.
      workdir: receives config.json, checkpoints/, metrics.jsonl, train.log and test/.
      stop: asks the run to stop early; what it has done is saved first.
      on_validation: called after each validation with the epochs done and its metrics; what it
        raises ends the run, after the checkpoint of that validation is written.

    Returns:
      The metrics of the test split, as in test/metrics.json; empty without a test split, and in all
      processes of a run but the first.

    Raises:
      UserError: data or config cannot be used, the workdir holds another run, or the loss is no
        longer finite.
      Stopped: it was asked to stop; the same call goes on.
    """
    stop = Stop() if stop is None else stop
    stop.limit(config.train.max_hours)
    devices = Devices()
    check_batch_size(config.train.batch_size, devices)
    config = with_absolute_paths(config)
    # ---- data ----
    with said_while("reading the data set", silent=not devices.first):
        data = prepare_data(config.data, config.augment, config.train)
    make_folder(workdir, "--workdir")
    # ---- model ----
    spec = prepare_spec(config, data.splits.train)
    teacher = load_teacher(config, spec, devices.copied)
    data = taught_by(data, teacher)
    # ---- where to start ----
    start = find_start(config, workdir, data.fingerprint, data.hint_if_changed)
    run = Run(config, workdir, spec, data, stop, devices, on_validation, teacher)
    complete = run.test_of_complete(start)
    # All processes have looked before the first one changes anything.
    seen = {"config": config, "data": data.fingerprint, "checkpoint": start and start.folder}
    check_same_everywhere(devices, {**seen, "workdir": workdir, "test": complete})
    if devices.any(stop.noted):
        stop.leave()
    if start is not None and complete is not None:
        if devices.first:
            epochs = start.metadata.epoch
            lines = lines_of_complete(config, workdir, epochs, tested=bool(complete))
            print(*lines, sep="\n", flush=True)
        return complete if devices.first else {}
    if start is not None and not start.own and devices.first:
        adopt(start, workdir)
    with run.tracker(start) as tracker:
        tracker.start(0 if start is None else start.metadata.step, environment(devices))
        for line in lines_of(data, spec):
            tracker.say(line)
        tracker.say(
            f"device: {devices}; {run.total_steps} steps of {config.train.batch_size} images; "
            f"workdir {workdir}"
        )
        # ---- steps ----
        tracker.doing("preparing the weights")
        if start is None:
            state = initial_state(config, spec, run.tx, tracker.say)
        else:
            step = start.metadata.step
            tracker.say(f"continuing {start.folder} at step {step} of {run.total_steps}")
            state = restore_state(
                start.folder, spec, run.tx, devices.copied, averages=config.optim.ema_decay > 0
            )
        if devices.first:
            record_config(config, workdir)
        run.train(devices.copy(state), start, tracker)
        # ---- test ----
        return run.test(tracker)
