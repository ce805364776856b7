# ruff: noqa: RUF001 - names in Cyrillic
"""Things that users name: paths with `~`, configs by name, and text files in any encoding."""

import json
import os
import pwd
from pathlib import Path

import pytest

from runs import ROOT, tiny_config
from tiny_data import write_dataset
from yogo_jax import calibrate, report, sweep
from yogo_jax import inspect_data as inspect
from yogo_jax.checkpoint.run_data import same_path, with_absolute_paths
from yogo_jax.config.overrides import find_config, known_configs
from yogo_jax.config.schema import Config
from yogo_jax.errors import UserError
from yogo_jax.evaluate import main as evaluate_command
from yogo_jax.evaluate import make_parser as evaluate_parser
from yogo_jax.files import given_path, path_text_flag, read_given_text
from yogo_jax.infer import make_parser as infer_parser
from yogo_jax.training.start import find_start, record_config


NOBODY = "~nobody-of-this-name"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_paths_are_those_of_a_shell(home):
    assert given_path("~/runs") == home / "runs"
    assert given_path("~") == home
    assert given_path(f"~{pwd.getpwuid(os.getuid()).pw_name}/x").is_absolute()
    assert given_path("runs/~x") == Path("runs/~x")
    assert given_path("./~x") == Path("~x")
    with pytest.raises(UserError, match=f"no home folder of {NOBODY} is known"):
        given_path(f"{NOBODY}/runs")
    assert path_text_flag("-") == "-"
    assert path_text_flag("a/**/*.png") == "a/**/*.png"
    assert path_text_flag("~/a/*.png") == str(home / "a/*.png")


def flags_with_paths(home):
    """Of each command the arguments, and where the path is found in what is parsed."""
    infer = ["~/m.xml", "--output", "~/o", "--images", "~/f"]
    return [
        (evaluate_parser(), ["~/run", "--output", "~/o"], ("checkpoint", "output")),
        (calibrate.make_parser(), ["~/run", "--output", "~/o"], ("checkpoint", "output")),
        (inspect.make_parser(), ["x.yml", "--output", "~/o"], ("output",)),
        (report.make_parser(), ["~/run", "--output", "~/o.html"], ("runs", "output")),
        (sweep.make_parser(), ["--study", "~/s"], ("study",)),
        (infer_parser(), infer, ("model", "output", "images")),
    ]


def test_flags_of_all_commands_know_the_home_folder(home):
    for parser, arguments, names in flags_with_paths(home):
        args = parser.parse_args(arguments)
        for name in names:
            value = getattr(args, name)
            for path in value if isinstance(value, list) else [value]:
                assert str(path).startswith(f"{home}/")


def test_an_unknown_user_is_refused(home, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate_command(["run", "--output", f"{NOBODY}/out"])
    assert stopped.value.code == 2
    assert f"no home folder of {NOBODY} is known" in capsys.readouterr().err
    assert not list(Path().iterdir()) or not Path(NOBODY).exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("base", ROOT / "configs/base.py"),
        ("strong", ROOT / "configs/strong.py"),
        ("demo.py", ROOT / "configs/demo.py"),
        ("configs/sweep.py", ROOT / "configs/sweep.py"),
        ("base:argument", f"{ROOT}/configs/base.py:argument"),
        ("own.py", "own.py"),
        ("~/mine.py", "HOME/mine.py"),
    ],
)
def test_configs_are_found_by_name(home, given, expected):
    for path in (home / "mine.py", Path("own.py")):
        path.write_text("")
    assert find_config(given) == str(expected).replace("HOME", str(home))


def test_a_file_of_the_user_goes_first(home):
    Path("configs").mkdir()
    Path("configs/base.py").write_text("")
    assert find_config("configs/base.py") == "configs/base.py"
    assert find_config("./configs/base.py") == "configs/base.py"
    # A name is never a file.
    assert find_config("base") == str(ROOT / "configs/base.py")


@pytest.mark.parametrize(
    "given",
    [
        "bas",
        "none.py",
        "other/base.py",
        "configs",
        "definition.yml",
        "./base.py",
        "./configs/base.py",
        "../configs/base.py",
        "configs/../base.py",
        "/base.py",
        "~/base.py",
        "./base",
    ],
)
def test_an_unknown_config_lists_those_that_are_known(home, given):
    with pytest.raises(UserError, match=f"--config {given}: .*base, demo, strong, sweep"):
        find_config(given)
    assert known_configs() == ["base", "demo", "strong", "sweep"]


def test_a_config_by_name_is_read_from_any_folder(home):
    # One of the user's own, which ours must not take for the package's.
    Path("configs").mkdir()
    Path("configs/__init__.py").write_text("")
    config = Config.from_file("strong", **{"train.epochs": 3})
    assert (config.model.name, config.train.epochs) == ("yogo_d", 3)


def test_paths_of_a_config_are_resolved_once(home, monkeypatch):
    config = tiny_config(
        "~/data.yml",
        train__from_pretrained="runs/a",
        train__teacher="../b",
        loss__imitation=0.5,
        train__resume="~/runs/c",
    )
    absolute = with_absolute_paths(config)
    here = Path().resolve()
    assert absolute.data.definition == str(home / "data.yml")
    assert absolute.train.from_pretrained == str(here / "runs/a")
    assert absolute.train.teacher == str(here.parent / "b")
    assert absolute.train.resume == str(home / "runs/c")
    monkeypatch.chdir("/")
    assert with_absolute_paths(absolute) == absolute
    for word in ("auto", "never"):
        train = with_absolute_paths(tiny_config("x.yml", train__resume=word)).train
        assert (train.resume, train.from_pretrained, train.teacher) == (word, "", "")


@pytest.mark.parametrize(
    ("recorded", "now", "same"),
    [
        ("", "", True),
        ("", "/a", False),
        ("/a", "", False),
        ("/a/b", "/a/b", True),
        ("/a/b", "/a/c", False),
        ("b", "/a/b", True),
        ("a/b", "/x/a/b", True),
        ("a/b", "/x/c/b", False),
        ("HERE/../d", "UP/d", True),
        ("../d", "UP/d", True),
        ("~/d", "HOME/d", True),
        ("~/d", "/d", False),
    ],
)
def test_what_an_earlier_version_recorded(home, recorded, now, same):
    here = Path().resolve()
    names = {"HERE": here, "UP": here.parent, "HOME": home}
    for name, path in names.items():
        recorded, now = recorded.replace(name, str(path)), now.replace(name, str(path))
    assert same_path(recorded, now) == same


def test_a_run_with_a_relative_path_in_its_record_goes_on(home):
    definition = write_dataset(home / "data", images=4)
    config = tiny_config(definition, train__from_pretrained="runs/a")
    # As earlier versions wrote it.
    workdir = home / "run"
    record_config(config, workdir)
    (workdir / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1}) + "\n")
    assert find_start(with_absolute_paths(config), workdir, "") is None
    assert json.loads((workdir / "config.json").read_text())["train"]["from_pretrained"] == "runs/a"
    # A project that was moved no longer has the one that was recorded.
    moved = tiny_config(definition, train__from_pretrained="/elsewhere/runs/b")
    assert find_start(with_absolute_paths(moved), workdir, "") is None
    Path("runs/a").mkdir(parents=True)
    other = tiny_config(definition, train__from_pretrained="runs/b")
    with pytest.raises(UserError, match=r"config\.train\.from_pretrained: 'runs/a' != "):
        find_start(with_absolute_paths(other), workdir, "")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("кровь\n".encode(), "кровь\n"),
        ("кровь\n".encode("utf-8-sig"), "кровь\n"),
        (b"", ""),
    ],
)
def test_text_is_utf_8(tmp_path, data, expected):
    path = tmp_path / "text"
    path.write_bytes(data)
    assert read_given_text(path) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a\nкровь\n".encode("iso-8859-5"), "text:2: byte 2, 0xda, is not UTF-8"),
        (b"\xef\xbb\xbfa\n\n\xe9", "text:3: byte 6, 0xe9, is not UTF-8"),
        ("a".encode("utf-16"), "text:1: byte 0, 0xff, is not UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_the_place(tmp_path, data, said):
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_given_text(path)
