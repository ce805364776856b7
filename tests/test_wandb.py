"""Weights & Biases beside a run: what it gets, and that it is never waited for."""

import http.server
import json
import socket
import threading
import time

import pytest

from runs import tiny_config
from tiny_data import write_dataset
from yogo_jax.checkpoint.metrics_file import read_metrics
from yogo_jax.errors import UserError
from yogo_jax.training import wandb as wandb_media
from yogo_jax.training.tracking import Tracker
from yogo_jax.training.trainer import train_and_evaluate
from yogo_jax.training.wandb import can_reach


KEY = "0123456789" * 4


@pytest.fixture
def without_login(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    wandb = pytest.importorskip("wandb")
    yield
    wandb.teardown()  # else the next test would have this one's settings


@pytest.fixture
def answering_server(monkeypatch):
    """A server that answers every question with 404, in the place of W&B's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    yield url
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent_server(monkeypatch):
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        yield url


def make_tracker(tmp_path, **overrides) -> Tracker:
    config = tiny_config("d.yml", **overrides)
    return Tracker(config, tmp_path / "run", total_steps=4, first_step=0)


BLOCK, RECORD_HEAD, FILE_HEAD = 2**15, 7, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records_of_log(log):
    """Records of a file in LevelDB's log format: in blocks, each record in one part or more."""
    at, record = FILE_HEAD, b""
    while at + RECORD_HEAD <= len(log):
        rest = BLOCK - at % BLOCK
        if rest < RECORD_HEAD:  # no room for another head: zeros to the end of the block
            at += rest
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        at += RECORD_HEAD
        record = (b"" if kind in (WHOLE, FIRST) else record) + log[at : at + length]
        at += length
        if kind in (WHOLE, LAST):
            yield record


def written(workdir):
    """Content of the offline folders of a run, in order: run names, config, and values logged."""
    from wandb.proto.wandb_internal_pb2 import Record

    def records_of(path):
        # W&B's own process writes on after the run: up to a record that says so.
        for _ in range(200):
            records = [Record.FromString(data) for data in records_of_log(path.read_bytes())]
            if records and records[-1].HasField("exit"):
                return records
            time.sleep(0.1)
        raise AssertionError(f"{path} has no end")

    runs, config, logged = [], {}, []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        for record in records_of(path):
            if record.HasField("run"):
                runs.append(record.run.run_id)
            for each in (record.run.config, record.config):
                config |= {item.key: json.loads(item.value_json) for item in each.update}
            if record.HasField("history"):
                values = {}
                for item in record.history.item:
                    values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
                logged.append(values)
    return runs, config, logged


@pytest.mark.slow
@pytest.mark.usefixtures("without_login")
def test_a_whole_run_is_in_the_offline_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "417")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    definition = write_dataset(tmp_path / "data")
    workdir = tmp_path / "run"
    trained = tiny_config(definition, track__wandb_mode="offline", track__name="n")
    train_and_evaluate(trained, workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    runs, config, logged = written(workdir)
    assert len(set(runs)) == 1
    assert config["optim"]["learning_rate"] == trained.optim.learning_rate
    assert config["environment"]["slurm_job_id"] == "417"
    start = records[0]
    assert start["kind"] == "start"
    assert start["slurm_array_task_id"] == "3"
    assert config["environment"] == {
        name: value for name, value in start.items() if name not in ("kind", "step")
    }
    # Every number of the file, in its order.
    for kind in ("train", "validation", "test"):
        theirs = [each for each in logged if f"{kind}/loss" in each or f"{kind}/test_loss" in each]
        ours = [each for each in records if each["kind"] == kind]
        assert [each["step"] for each in theirs] == [each["step"] for each in ours]
    of_train = [each for each in records if each["kind"] == "train"]
    theirs = [each for each in logged if "train/loss" in each]
    for name in ("loss", "objectness", "learning_rate", "grad_norm", "param_norm"):
        assert [each[f"train/{name}"] for each in theirs] == [each[name] for each in of_train]
    shown = [each for each in logged if "validation/pictures/count" in each]
    assert [each["step"] for each in shown] == [2, 4]
    assert [each["validation/pictures/count"] for each in shown] == [3, 3]
    (shown,) = [each for each in logged if "test/pictures/count" in each]
    assert shown["step"] == 4
    assert [set(each) for each in shown["test/pictures/all_boxes"]] == [{"found", "true"}] * 3
    assert shown["test/confusion_table/nrows"] == 9
    (files,) = workdir.glob("wandb/offline-run-*/files")
    assert len(list(files.rglob("*.png"))) == 3 * 2 + 3
    boxes = [json.loads(path.read_text()) for path in files.rglob("*boxes2D*.json")]
    assert max(len(each["box_data"]) for each in boxes) >= 6
    tested = records[-1]
    assert tested["kind"] == "test"
    assert set(tested["roc_by_class"]) == {"healthy", "ring"}
    tables = {path.name.split("_")[0]: path for path in files.rglob("test/*.table.json")}
    classes = json.loads(tables["classes"].read_text())
    counts = tested["counts_by_class"]
    assert [row[:3] for row in classes["data"]] == [
        [name, counts[name]["true"], counts[name]["predicted"]] for name in ("healthy", "ring")
    ]


@pytest.mark.usefixtures("without_login")
def test_a_continued_run_goes_on_in_its_own(tmp_path):
    for step in (1, 2):
        with make_tracker(tmp_path, track__wandb_mode="offline") as tracker:
            tracker.log("train", step, {"loss": 2.0})
    runs, _, logged = written(tmp_path / "run")
    assert len(runs) == 2
    assert len(set(runs)) == 1
    assert [each["step"] for each in logged] == [1, 2]


@pytest.mark.usefixtures("without_login")
def test_an_agent_names_its_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    with make_tracker(tmp_path, track__wandb_mode="offline"):
        pass
    runs, _, _ = written(tmp_path / "run")
    assert runs == ["of-the-agent"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_login")
@pytest.mark.parametrize("server", ["answering_server", "silent_server"])
@pytest.mark.parametrize("key", ["", KEY], ids=["no login", "login"])
def test_without_login_or_network_it_is_off(tmp_path, capsys, monkeypatch, request, server, key):
    url = request.getfixturevalue(server)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if server == "silent_server":
        reason = f"{url} cannot be reached"
    else:
        reason = "authenticate" if key else "not logged in, see `wandb login`"
    with make_tracker(tmp_path, track__wandb_mode="auto") as tracker:
        assert not tracker.shows_images
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Weights & Biases is off: ")
    assert reason in line
    with pytest.raises(UserError, match=r"wandb_mode=online: .*wandb_mode=offline") as error:
        make_tracker(tmp_path, track__wandb_mode="online")
    assert reason in str(error.value)


class Failing:
    """A W&B run whose service has gone."""

    def log(self, values):
        raise ConnectionResetError("connection lost")

    finish = log


@pytest.mark.parametrize("use", ["log", "finish"])
def test_a_service_that_dies_does_not_end_the_run(tmp_path, capsys, use):
    with make_tracker(tmp_path, track__wandb_mode="disabled") as tracker:
        tracker._wandb = Failing()
        if use == "log":
            for step in (1, 2):
                tracker.log("train", step, {"loss": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "Weights & Biases is off from here on" in line]) == 1
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == (2 if use == "log" else 0)
    with pytest.raises(ZeroDivisionError):
        fail_with(Failing(), tmp_path)


def fail_with(wandb_run, tmp_path):
    with make_tracker(tmp_path, track__wandb_mode="disabled") as tracker:
        tracker._wandb = wandb_run
        raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.usefixtures("without_login")
def test_an_image_that_has_gone_ends_the_pictures_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wandb_media, "read_image", _gone)
    definition = write_dataset(tmp_path / "data")
    config = tiny_config(definition, track__wandb_mode="offline", train__epochs=1)
    assert train_and_evaluate(config, tmp_path / "run")["images"] == 3
    assert "Weights & Biases is off from here on: it has gone" in capsys.readouterr().out


def _gone(*_, **__):
    raise UserError("it has gone")


def test_what_can_be_reached(answering_server):
    assert can_reach(answering_server, 5)
    assert not can_reach("http://no-such-host.invalid", 1)
    assert not can_reach("not a url", 1)


def test_wandb_that_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with make_tracker(tmp_path, track__wandb_mode="auto"):
        pass
    assert "wandb is not installed" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[wandb\]'"):
        make_tracker(tmp_path, track__wandb_mode="offline")
