import json

import pytest

from runs import tiny_config
from yogo_jax.files import MAX_NAME_BYTES, whole_file, write_atomically
from yogo_jax.training.tracking import Tracker, open_metrics, read_metrics
from yogo_jax.training.wandb import scalars


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_continued_log_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in range(1, 6)) + '{"st'
    )
    with open_metrics(path, first_step=3) as log:
        log.write(json.dumps({"kind": "train", "step": 4, "again": True}) + "\n")
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]
    assert read_metrics(path)[-1]["again"]


def test_what_is_not_repeated_is_on_the_disk_at_once(tmp_path):
    config = tiny_config("d.yml", track__wandb_mode="disabled")
    with Tracker(config, tmp_path, total_steps=4, first_step=0) as tracker:
        tracker.start(0, {"host": "here"})
        assert [each["kind"] for each in read_metrics(tmp_path / "metrics.jsonl")] == ["start"]
        tracker.log("train", 1, {"loss": 2.0})
        tracker.log("validation", 1, {"loss": 3.0})
        kinds = [each["kind"] for each in read_metrics(tmp_path / "metrics.jsonl")]
        assert kinds == ["start", "train", "validation"]


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("length", [1, MAX_NAME_BYTES - 5, MAX_NAME_BYTES - 4, MAX_NAME_BYTES])
def test_names_as_long_as_they_can_be(tmp_path, length):
    path = tmp_path / ("x" * length)
    for text in ("old", "new"):
        with whole_file(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
    with pytest.raises(FileNotFoundError), whole_file(path) as temporary:
        (temporary / "below a file that is not there").write_text("part")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_scalars_of_nested_values():
    values = {"loss": 1.5, "by": {"ring": 2, "none": None}, "endless": float("inf"), "names": ["a"]}
    assert scalars(values) == [("loss", 1.5), ("by/ring", 2)]
