"""Post-training quantization of an IR to INT8, calibrated on images of the training split."""

import importlib.util
import logging

import numpy as np
from jaxtyping import Float32

from bridge.frames import Strips
from bridge.quiet_openvino import ov
from bridge.to_ir import WITH_KERNEL
from yogo_jax.checkpoint.metadata import Metadata
from yogo_jax.checkpoint.run_data import evaluation_data
from yogo_jax.data.headers import lines_on
from yogo_jax.detector.spec import ModelSpec
from yogo_jax.errors import UserError


# Evenly spaced ones of a larger split: ranges of activations change little after some hundreds.
MAX_CALIBRATION_IMAGES = 300
# Share of an image's activations that may lie beyond the range, at either end: without these few
# the steps within it are finer. Of ten times as many the instrument's network loses cells.
OUTLIERS = 1e-4


def require_nncf() -> None:
    """Refuses to go on without the package that quantizes.

    Raises:
      UserError: it is not installed.
    """
    if importlib.util.find_spec("nncf") is None:
        raise UserError(
            "--int8 needs NNCF, which is not installed: pip install -c constraints.txt -e '.[int8]'"
        )


def quantization_strips(
    definition: str, metadata: Metadata, served: ModelSpec
) -> tuple[Strips, Strips]:
    """Images to calibrate with, and labelled ones to judge by, of a data set.

    Args:
      definition: its file.
      metadata: of the checkpoint.
      served: the model for the strips.

    Raises:
      UserError: one of the splits is empty, no strip to judge by has a box, and as
        `evaluation_data` and `Strips`.
    """
    splits = evaluation_data(metadata, definition, print)
    paths = [*splits.train.image_paths, *splits.val.image_paths]
    for line in lines_on(paths, applied=metadata.model.apply_orientation):
        print(line)
    calibration, labelled = (
        Strips(records, metadata.model, served) for records in (splits.train, splits.val)
    )
    if not len(calibration) or not len(labelled):
        raise UserError(
            f"--int8 {definition}: expected images in the training and in the validation split, "
            f"found {len(calibration)} and {len(labelled)}: give the definition both, such as "
            "by dataset_split_fractions"
        )
    if not any(len(labelled.labels_of(i)[1]) for i in range(len(labelled))):
        rows, columns = served.image_hw
        raise UserError(
            f"--int8 {definition}: expected a labelled box in the {rows}x{columns} px that are "
            f"served of the {len(labelled)} validation images, found none, so what INT8 loses of "
            "mean AP is not known: label more images, or serve more by --crop-height or --image-hw"
        )
    return calibration, labelled


def quantize(model: ov.Model, calibration: Strips) -> ov.Model:
    """The model with its convolutions in INT8, but for the first and the last.

    These two are a small part of the work and the most sensitive: pixels come in at the first, and
    sizes behind an exponential from the last. Kernels are quantized per output channel, activations
    per tensor and asymmetrically, since leaky ones reach below zero by a hundredth only; their
    range is the mean of the images' own ranges but for `OUTLIERS`. Biases are corrected for the
    shift that quantization makes on the calibration images.

    Args:
      model: with static shapes and FP32 kernels.
      calibration: images of the size that the model takes, at least one.

    References:
      Krishnamoorthi 2018, arXiv:1806.08342, section 3 (post-training quantization); Nagel et al.
      2019, arXiv:1906.04721, section 4.2 (bias correction).
    """
    # After OpenVINO, so that it does without telemetry as well.
    import nncf
    from nncf.quantization import advanced_parameters, range_estimator

    nncf.set_log_level(logging.ERROR)
    names = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in WITH_KERNEL
    ]
    batch_size = model.input(0).shape[0]
    count = min(len(calibration), MAX_CALIBRATION_IMAGES)
    chosen = np.linspace(0, len(calibration) - 1, count).round().astype(int)
    starts = range(0, count, batch_size)

    def batch_at(start: int) -> Float32[np.ndarray, "b c h w"]:
        # The last batch is filled up from the first images.
        indices = [chosen[(start + i) % count] for i in range(batch_size)]
        frames = np.stack([calibration.frame(index) for index in indices])
        return frames.transpose(0, 3, 1, 2).astype(np.float32)

    end = range_estimator.StatisticsCollectorParameters(
        statistics_type=range_estimator.StatisticsType.QUANTILE,
        aggregator_type=range_estimator.AggregatorType.MEAN,
        quantile_outlier_prob=OUTLIERS,
    )
    advanced = advanced_parameters.AdvancedQuantizationParameters(
        activations_range_estimator_params=range_estimator.RangeEstimatorParameters(
            min=end, max=end
        )
    )
    return nncf.quantize(
        model,
        nncf.Dataset(starts, batch_at),
        ignored_scope=nncf.IgnoredScope(names=[names[0], names[-1]]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(starts),
        advanced_parameters=advanced,
    )
