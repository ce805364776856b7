import pytest

from yogo_jax.training.compilation import duration, duration_lines


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.00004, "0.04 ms"),
        (0.034, "34 ms"),
        (0.0996, "0.1 s"),
        (1.54, "1.5 s"),
        (9.96, "10 s"),
        (59, "59 s"),
        (99.4, "99 s"),
        (99.7, "2 min"),
        (600, "10 min"),
        (5969, "99 min"),
        (5975, "1.7 h"),
        (8000, "2.2 h"),
    ],
)
def test_durations_can_be_read(seconds, expected):
    assert duration(seconds) == expected


def lines_of(seconds, **others):
    given = {
        "steps_per_epoch": 10,
        "steps_left": 20,
        "image_hw": (772, 1032),
        "small_network": True,
        "on_cpu": True,
    }
    return duration_lines(seconds, **{**given, **others})


def test_a_short_run_is_one_line():
    assert lines_of(60.0, steps_left=23) == [
        "an epoch takes about 10 min here (10 steps of 60 s), the 2.3 that are left about 23 min; "
        "reading images and validation come on top"
    ]


@pytest.mark.parametrize(
    "others", [{"steps_left": 640}, {"steps_per_epoch": 100, "steps_left": 100}]
)
def test_hours_come_with_what_would_be_faster(others):
    _, advice = lines_of(60.0, **others)
    assert advice == (
        "faster: smaller images (--config.data.image_hw=386,516 takes a quarter of the time), or a "
        "GPU"
    )
