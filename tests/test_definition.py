import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tiny_data import write_dataset
from yogo_jax.data.definition import DatasetDefinition, PathPair, SplitFractions, load_definition
from yogo_jax.errors import UserError


SHARED = Path(__file__).parents[2] / "shared" / "data"
CLASSES = "class_names: [healthy, ring]\n"


@pytest.fixture
def data(tmp_path):
    """A folder with six empty sets: a0/images, a0/labels, … b2/labels."""
    for name in ("a0", "a1", "a2", "b0", "b1", "b2"):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "labels").mkdir()
    return tmp_path


def paths(key, *names, **nested):
    """YAML of one of the path keys: sets by folder name, definitions by file name."""
    lines = [f"{key}:"]
    for name in names:
        lines.append(f"  {name}: {{image_path: {name}/images, label_path: {name}/labels}}")
    lines += [f"  {name}: {{defn_path: {file}}}" for name, file in nested.items()]
    return "\n".join(lines) + "\n"


def write(data, text, name="top.yml"):
    path = data / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def load(data, text) -> DatasetDefinition:
    return load_definition(write(data, text))


def error_of(data, text) -> str:
    with pytest.raises(UserError) as error:
        load(data, text)
    message = str(error.value)
    assert "\n" not in message
    return message


def names(pairs):
    """The folder names of pairs, which must be sets of the `data` fixture."""
    for pair in pairs:
        assert pair.image_path == pair.label_path.parent / "images"
        assert pair.label_path.name == "labels"
        assert pair.image_path.is_absolute()
    return [pair.image_path.parent.name for pair in pairs]


def test_one_pool(data):
    definition = load(data, CLASSES + paths("dataset_paths", "b0", "a1", "a0"))
    assert definition.path == data / "top.yml"
    assert definition.class_names == ("healthy", "ring")
    assert names(definition.dataset_paths) == ["b0", "a1", "a0"]
    assert definition.val_paths == definition.test_paths == ()
    assert definition.split_fractions == SplitFractions(0.8, 0.1, 0.1)
    assert not definition.names_split
    assert definition.thumbnail_augmentation == {}


def test_three_roles_and_block_style(data):
    text = """\
# a comment
class_names:
  - healthy
  - "1"
dataset_paths:
  any name:
    image_path: a0/images/
    label_path: ./a0/labels
val_paths:
  1:
    image_path: "a1/images"
    label_path: a0/../a1/labels
test_paths:
  set:
    image_path: %s/a2/images
    label_path: a2/labels
"""
    definition = load(data, text % data)
    assert definition.class_names == ("healthy", "1")
    assert names(definition.dataset_paths) == ["a0"]
    assert names(definition.val_paths) == ["a1"]
    assert names(definition.test_paths) == ["a2"]


def test_single_set(data):
    text = CLASSES + "image_path: a0/images\nlabel_path: a0/labels\n" + paths("test_paths", "a1")
    definition = load(data, text)
    assert names(definition.dataset_paths) == ["a0"]
    assert names(definition.test_paths) == ["a1"]


def test_test_data_alone(data):
    definition = load(data, CLASSES + paths("test_paths", "a1"))
    assert definition.dataset_paths == ()
    assert names(definition.test_paths) == ["a1"]


def test_paths_are_relative_to_their_own_file(data, monkeypatch):
    write(data / "a0", CLASSES + "image_path: images\nlabel_path: labels\n", "inner.yml")
    write(data, CLASSES + paths("dataset_paths", inner="a0/inner.yml"))
    monkeypatch.chdir(data / "b0")
    assert names(load_definition("../top.yml").dataset_paths) == ["a0"]


def test_home_folder(data, monkeypatch):
    monkeypatch.setenv("HOME", str(data))
    text = CLASSES + "image_path: ~/a0/images\nlabel_path: ~/a0/labels\n"
    write(data / "b0", text)
    assert names(load_definition("~/b0/top.yml").dataset_paths) == ["a0"]
    message = error_of(data, text.replace("~/a0/i", "~no_such_user_/a0/i"))
    assert ":2: image_path: '~no_such_user_/a0/images' names no user" in message


def test_links(data):
    """Images are resolved; a linked label folder keeps its place, where its notes.json is."""
    for kind in ("images", "labels"):
        (data / f"link_{kind}").symlink_to(data / "a0" / kind)
    definition = load(data, CLASSES + "image_path: link_images\nlabel_path: link_labels\n")
    assert definition.dataset_paths == (PathPair(data / "a0" / "images", data / "link_labels"),)


# What a nested definition contributes -----------------------------------------------------------


def test_nested_under_each_key(data):
    inner = paths("dataset_paths", "a0") + paths("val_paths", "a1") + paths("test_paths", "a2")
    write(data, CLASSES + inner, "inner.yml")
    keys = ("dataset_paths", "val_paths", "test_paths")
    definition = load(data, CLASSES + "".join(paths(key, inner="inner.yml") for key in keys))
    assert names(definition.dataset_paths) == ["a0"]
    assert names(definition.val_paths) == ["a1"]
    assert names(definition.test_paths) == ["a2"]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], ["b0", "a0", "a1", "a2"]),
        (["test_paths"], ["b0", "a0", "a1"]),
        (["val_paths"], ["b0", "a0"]),
        (["val_paths", "test_paths"], ["b0", "a0"]),
    ],
    ids=["neither", "test", "val", "both"],
)
def test_pool_takes_what_has_no_role_of_its_own(data, others, expected):
    inner = paths("dataset_paths", "a0") + paths("val_paths", "a1") + paths("test_paths", "a2")
    write(data, CLASSES + inner, "inner.yml")
    write(data, CLASSES + paths("dataset_paths", middle="inner.yml"), "middle.yml")
    text = CLASSES + paths("dataset_paths", "b0", middle="middle.yml")
    text += "".join(paths(key, name) for key, name in zip(others, ("b1", "b2"), strict=False))
    assert names(load(data, text).dataset_paths) == expected


def test_all_of_a_definition_that_names_another_under_two_keys(data):
    """Its whole pool comes once, though the inner test data is reached by two ways."""
    write(data, CLASSES + paths("dataset_paths", "a0") + paths("test_paths", "a1"), "inner.yml")
    middle = paths("dataset_paths", i="inner.yml") + paths("test_paths", "a2", i="inner.yml")
    write(data, CLASSES + middle, "middle.yml")
    definition = load(data, CLASSES + paths("dataset_paths", middle="middle.yml"))
    assert sorted(names(definition.dataset_paths)) == ["a0", "a1", "a2"]


def test_a_definition_named_for_its_test_data_gives_only_that(data):
    write(data, CLASSES + paths("dataset_paths", "a1") + paths("test_paths", "a2"), "inner.yml")
    write(
        data, CLASSES + paths("dataset_paths", "a0") + paths("test_paths", i="inner.yml"), "m.yml"
    )
    definition = load(data, CLASSES + paths("dataset_paths", middle="m.yml"))
    assert names(definition.dataset_paths) == ["a0", "a2"]


def test_nested_fractions_and_thumbnails_do_not_act(data):
    inner = paths("dataset_paths", "a0") + "dataset_split_fractions: {train: 0.5, val: 0.5}\n"
    write(data, CLASSES + inner + "thumbnail_augmentation: {ring: none}\n", "inner.yml")
    definition = load(data, CLASSES + paths("dataset_paths", inner="inner.yml"))
    assert definition.split_fractions == SplitFractions(0.8, 0.1, 0.1)
    assert definition.thumbnail_augmentation == {}


@pytest.mark.parametrize(
    ("text", "names_split", "train"),
    [
        ("image_path: a0/images\nlabel_path: a0/labels\n", False, 0.8),
        (paths("dataset_paths", "a0"), False, 0.8),
        (paths("dataset_paths", "a0") + "dataset_split_fractions: {train: 1}\n", True, 1),
        (paths("dataset_paths", "a0") + paths("test_paths", "a1"), True, 1),
        (paths("dataset_paths", "a0") + paths("val_paths", "a1"), True, 1),
        (paths("test_paths", "a1"), True, 1),
    ],
    ids=["plain", "pool", "all_of_it", "test", "val", "test_alone"],
)
def test_a_definition_that_names_no_split_gets_one(data, text, names_split, train):
    definition = load(data, CLASSES + text)
    assert definition.names_split == names_split
    assert definition.split_fractions.train == train
    assert (definition.split_fractions.val > 0) == (not names_split)


def test_names_of_classes_are_one_text_in_any_unicode_form(data):
    apart, joined = f"e{chr(0x301)}", chr(0xE9)
    cell = data / "a0" / "cell.png"
    Image.new("L", (4, 4)).save(cell)
    inner = f"class_names: [{joined}, ring]\n" + paths("dataset_paths", "a0")
    write(data, inner, "inner.yml")
    text = f"class_names: [{apart}, ring]\n" + paths("dataset_paths", inner="inner.yml")
    definition = load(data, f"{text}thumbnail_augmentation: {{{apart}: a0}}\n")
    assert definition.class_names == (joined, "ring")
    assert list(definition.thumbnail_augmentation) == [joined]
    twice = f"class_names: [{apart}, {joined}]\n" + paths("dataset_paths", "a0")
    assert "stands twice; expected unique names" in error_of(data, twice)


def test_classes_beside_a_nested_definition(data):
    write(data, CLASSES + paths("dataset_paths", "a0"), "inner.yml")
    for key in ("classes", "class_names"):
        spec = f"dataset_paths: {{i: {{defn_path: inner.yml, {key}: [healthy, ring]}}}}\n"
        assert names(load(data, CLASSES + spec).dataset_paths) == ["a0"]
        message = error_of(data, CLASSES + spec.replace("ring", "wbc"))
        assert (
            f":2: dataset_paths.i.{key}: ['healthy', 'wbc'] differs from ['healthy', 'ri" in message
        )


# Refusals ---------------------------------------------------------------------------------------

A0 = paths("dataset_paths", "a0")
REFUSED = {
    "empty": ("", "is empty; expected a mapping"),
    "list": ("- a\n", "is a list; expected a mapping"),
    "syntax": (CLASSES + "dataset_paths: [\n", ":3: not valid YAML: "),
    "tab": (CLASSES + "dataset_paths:\n\tset: 1\n", ":3: not valid YAML: "),
    "duplicate_key": (CLASSES + A0 + A0, ':4: not valid YAML: found duplicate key "dataset_paths"'),
    "duplicate_set": (
        CLASSES + A0 + A0.split("\n")[1],
        ':4: not valid YAML: found duplicate key "a0"',
    ),
    "two_documents": (CLASSES + A0 + "---\na: 1\n", "not valid YAML: but found another document"),
    "no_data": (CLASSES, "names no data; expected dataset_paths, val_paths or test_paths"),
    "no_classes": (A0, "has no class_names; add"),
    "classes_mapping": ("class_names: {0: a}\n" + A0, ":1: class_names: is a mapping; expected a"),
    "classes_empty": ("class_names: []\n" + A0, ":1: class_names: is a list; expected a list of"),
    "classes_null": ("class_names:\n" + A0, ":1: class_names: is empty; expected a list of names"),
    "classes_text": ("class_names: ring\n" + A0, ":1: class_names: is 'ring'; expected a list"),
    "class_number": ("class_names: [a, 3]\n" + A0, 'entry 1 is 3; expected text; quote it, "3"'),
    "class_bool": ("class_names: [true]\n" + A0, "entry 0 is True; expected text; quote it"),
    "class_null": ("class_names: [a, ]\n- \n" + A0, "not valid YAML"),
    "class_blank": ("class_names: [a, ' ']\n" + A0, "entry 1 is ' '; expected text; write a name"),
    "class_twice": ("class_names: [a, b, a]\n" + A0, ":1: class_names: 'a' stands twice"),
    "unknown_key": (
        CLASSES + A0 + "val_path: 1\n",
        ":4: val_path: unknown key; did you mean val_p",
    ),
    "upstream_key": (CLASSES + A0 + "test_dataset_paths: 1\n", "did you mean test_paths?"),
    "ultralytics_key": ("names: [a]\n" + A0, ":1: names: unknown key; did you mean class_names?"),
    "far_key": (
        CLASSES + A0 + "zzz: 1\n",
        ":4: zzz: unknown key; known keys: class_names, dataset_p",
    ),
    "number_key": (CLASSES + A0 + "7: 1\n", ":4: 7: unknown key; known keys"),
    "unknown_set_key": (
        CLASSES + A0.replace("label_path", "labels_path"),
        ":3: dataset_paths.a0.labels_path: unknown key; did you mean label_path?",
    ),
    "paths_list": (
        CLASSES + "dataset_paths:\n- image_path: a0/images\n",
        ":2: dataset_paths: is a list; expected a mapping; indent",
    ),
    "paths_null": (CLASSES + "dataset_paths:\n", ":2: dataset_paths: is empty; expected a mapping"),
    "paths_empty": (CLASSES + A0 + "test_paths: {}\n", ":4: test_paths: is an empty mapping; fill"),
    "set_text": (
        CLASSES + "dataset_paths: {a: a0}\n",
        ":2: dataset_paths.a: is 'a0'; expected a map",
    ),
    "no_label_path": (
        CLASSES + "dataset_paths:\n  a:\n    image_path: a0/images\n",
        ":4: dataset_paths.a: has no label_path; expected image_path and label_path",
    ),
    "no_image_path": (
        CLASSES + "dataset_paths: {a: {label_path: a0/labels}}\n",
        ":2: dataset_paths.a: has no image_path",
    ),
    "single_without_labels": (CLASSES + "image_path: a0/images\n", "top.yml: has no label_path"),
    "single_beside_paths": (
        CLASSES + "image_path: a1/images\n" + A0,
        ":2: image_path: stands beside dataset_paths; move the set in there",
    ),
    "definition_and_folder": (
        CLASSES + "dataset_paths: {a: {defn_path: x.yml, image_path: a0/images}}\n",
        ":2: dataset_paths.a.image_path: stands beside defn_path",
    ),
    "path_number": (
        CLASSES + A0.replace("a0/images", "3"),
        ":3: dataset_paths.a0.image_path: is 3; expected a path as text",
    ),
    "path_null": (
        CLASSES + A0.replace("a0/labels", "~"),
        "a0.label_path: is empty; expected a path",
    ),
    "missing_folder": (
        CLASSES + A0.replace("a0/labels", "nowhere"),
        "nowhere does not exist; expected an existing folder; relative paths start at ",
    ),
    "file_as_folder": (
        CLASSES + A0.replace("a0/labels", "top.yml"),
        "/top.yml is not a folder; expected an existing folder",
    ),
    "absurd_folder": (CLASSES + A0.replace("a0/labels", "x" * 5000), "does not exist"),
    "nul_in_path": (CLASSES + A0.replace("a0/labels", r'"a\0b"'), "does not exist"),
    "missing_definition": (
        CLASSES + paths("dataset_paths", i="no.yml"),
        "/no.yml is no file; expected a definition; relative paths start at ",
    ),
    "folder_as_definition": (
        CLASSES + paths("dataset_paths", i="a0"),
        "/a0 is no file; expected a",
    ),
    "same_set_twice": (
        CLASSES + A0 + A0.split("\n")[1].replace("a0:", "again:"),
        ":4: dataset_paths.again: its two folders are those of ",
    ),
    "same_images_in_test": (
        CLASSES + A0 + paths("test_paths", "a1").replace("a1/images", "a0/images"),
        ":5: test_paths.a1: its image_path ",
    ),
    "same_labels_in_val": (
        CLASSES + A0 + paths("val_paths", "a1").replace("a1/labels", "a1/../a0/labels"),
        "dataset_paths and val_paths must not share data; remove it from one",
    ),
    "same_in_val_and_test": (
        CLASSES + A0 + paths("val_paths", "a1") + paths("test_paths", "a1"),
        "val_paths and test_paths must not share data",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(data, text, message):
    found = error_of(data, text)
    assert found.startswith(str(data / "top.yml"))
    assert message in found


def test_same_image_folder_with_other_labels_is_fine_in_one_role(data):
    text = CLASSES + A0 + "  more: {image_path: a0/images, label_path: a1/labels}\n"
    assert len(load(data, text).dataset_paths) == 2


def test_overlap_by_a_link(data):
    (data / "link").symlink_to(data / "a0")
    message = error_of(data, CLASSES + A0 + paths("test_paths", "link"))
    assert f"test_paths.link: its image_path {data}/a0/images is also that of " in message
    assert "top.yml:3: dataset_paths.a0; " in message


def test_overlap_with_a_nested_definition(data):
    write(data, CLASSES + paths("test_paths", "a0"), "inner.yml")
    message = error_of(data, CLASSES + A0 + paths("test_paths", inner="inner.yml"))
    assert message.startswith(f"{data}/inner.yml:3: test_paths.a0: its image_path")


def test_cycles_name_the_chain(data):
    files = {"top.yml": "b.yml", "b.yml": "a0/c.yml", "a0/c.yml": "../b.yml"}
    for name, target in files.items():
        write(data, CLASSES + paths("dataset_paths", to=target), name)
    with pytest.raises(UserError) as error:
        load_definition(data / "top.yml")
    chain = f"{data}/b.yml -> {data}/a0/c.yml -> {data}/b.yml"
    assert (
        f"{data}/a0/c.yml:3: dataset_paths.to.defn_path: the definitions form a cycle: {chain};"
        in (str(error.value))
    )


@pytest.mark.parametrize("key", ["dataset_paths", "val_paths", "test_paths"])
def test_cycle_of_one(data, key):
    message = error_of(data, CLASSES + paths(key, me="top.yml"))
    assert f"form a cycle: {data}/top.yml -> {data}/top.yml;" in message


def test_cycle_through_a_link(data):
    (data / "link.yml").symlink_to(data / "top.yml")
    assert "form a cycle" in error_of(data, CLASSES + paths("dataset_paths", "a0", me="link.yml"))


def test_definition_reached_twice(data):
    write(data, CLASSES + A0, "inner.yml")
    write(data, CLASSES + paths("dataset_paths", i="inner.yml"), "middle.yml")
    message = error_of(data, CLASSES + paths("dataset_paths", m="middle.yml", i="inner.yml"))
    assert f"top.yml:4: dataset_paths.i.defn_path: {data}/inner.yml is named at" in message
    assert f"{data}/middle.yml:3: dataset_paths.i.defn_path already" in message


def test_set_of_a_nested_definition_twice(data):
    write(data, CLASSES + A0, "inner.yml")
    message = error_of(data, CLASSES + A0 + "  i: {defn_path: inner.yml}\n")
    assert f"{data}/inner.yml:3: dataset_paths.a0: its two folders are those of" in message


@pytest.mark.parametrize(
    "classes",
    ["[ring, healthy]", "[healthy]", "[healthy, ring, wbc]"],
    ids=["order", "less", "more"],
)
def test_nested_classes_differ(data, classes):
    write(data, f"class_names: {classes}\n" + A0, "inner.yml")
    message = error_of(data, CLASSES + paths("dataset_paths", i="inner.yml"))
    assert message.startswith(f"{data}/inner.yml:1: class_names: ")
    assert f"(named at {data}/top.yml:3: dataset_paths.i.defn_path) differs from" in message


def test_nested_file_is_checked_like_the_outermost(data):
    write(data, CLASSES + A0 + "image_path: a1/images\n", "inner.yml")
    message = error_of(data, CLASSES + paths("dataset_paths", i="inner.yml"))
    assert message.startswith(f"{data}/inner.yml:4: image_path: stands beside dataset_paths")


def test_nested_without_the_key_asked_for(data):
    write(data, CLASSES + A0, "inner.yml")
    message = error_of(
        data, CLASSES + paths("dataset_paths", "a1") + paths("test_paths", i="inner.yml")
    )
    assert ":4: test_paths: leads to no data; expected definitions that have test_paths" in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file or directory; expected a data set definition"),
        (lambda path: path.mkdir(), "Is a directory; expected a data set definition"),
        (
            lambda path: path.write_bytes(b"class_names: [\xe9]"),
            ":1: byte 14, 0xe9, is not UTF-8",
        ),
        (lambda path: path.write_bytes(b"a: \x00"), "not valid YAML"),
        (lambda path: path.write_text("a: 2020-13-45"), "not readable as YAML: month must be"),
        (lambda path: path.symlink_to(path), "Symlink loop|symbolic links"),
    ],
    ids=["missing", "folder", "latin1", "nul", "impossible_date", "link_to_itself"],
)
def test_unreadable_file(tmp_path, make, message):
    path = tmp_path / "top.yml"
    make(path)
    with pytest.raises(UserError) as error:
        load_definition(path)
    assert str(error.value).startswith(str(path))
    # Versions of Python have words of their own.
    assert any(each in str(error.value) for each in message.split("|"))


# Fractions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ("{train: 0.5, val: 0.25, test: 0.25}", (0.5, 0.25, 0.25)),
        ("{test: 0.25, train: 0.75}", (0.75, 0, 0.25)),
        ("{train: 1}", (1, 0, 0)),
        ("{test: 1.0}", (0, 0, 1)),
        ("{train: 0.7000004, val: 0.2999999}", (0.7000004, 0.2999999, 0)),
    ],
    ids=["three", "two", "integer", "test_only", "nearly"],
)
def test_fractions(data, fractions, expected):
    definition = load(data, CLASSES + A0 + f"dataset_split_fractions: {fractions}\n")
    assert definition.split_fractions == SplitFractions(*expected)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        (
            "{train: 0.5, val: 0.4}",
            ":4: dataset_split_fractions: train + val + test = 0.5 + 0.4 + 0 = 0.9",
        ),
        ("{train: 0.9, val: 0.2}", "= 1.1; expected a sum of 1"),
        ("{train: 0.70001, val: 0.3}", "expected a sum of 1"),
        ("{train: 1.5, val: -0.5}", "train: is 1.5; expected a number in [0, 1]"),
        ("{train: .nan, val: 1}", "train: is nan; expected a number in [0, 1]"),
        ("{train: true}", "train: is True; expected a number in [0, 1]"),
        ("{train: &a true}", "expected a number in [0, 1]"),
        ("{train: '1'}", "train: is '1'; expected a number in [0, 1], not quoted"),
        ("{train: 80%, val: 20%}", "train: is '80%'; expected a number"),
        ("{train: }", "train: is empty; expected a number"),
        ("{}", "is an empty mapping"),
        ("[0.8, 0.2]", "is a list; expected a mapping"),
        (
            "{train: 0.8, valid: 0.2}",
            "dataset_split_fractions.valid: unknown key; did you mean val?",
        ),
    ],
    ids=[
        "too_little",
        "too_much",
        "just_too_much",
        "range",
        "nan",
        "bool",
        "anchored_bool",
        "text",
        "percent",
        "null",
        "empty",
        "list",
        "unknown",
    ],
)
def test_fractions_refused(data, fractions, message):
    assert message in error_of(data, CLASSES + A0 + f"dataset_split_fractions: {fractions}\n")


@pytest.mark.parametrize("split", ["val", "test"])
def test_fraction_beside_paths(data, split):
    text = CLASSES + A0 + paths(f"{split}_paths", "a1")
    message = error_of(data, text + f"dataset_split_fractions: {{train: 1, {split}: 0}}\n")
    assert f":6: dataset_split_fractions.{split}: stands beside {split}_paths" in message
    other = {"val": "test", "test": "val"}[split]
    load(data, text + f"dataset_split_fractions: {{train: 0.8, {other}: 0.2}}\n")


def test_fractions_of_nothing(data):
    text = CLASSES + paths("test_paths", "a0") + "dataset_split_fractions: {train: 1}\n"
    assert ":4: dataset_split_fractions: has nothing to split" in error_of(data, text)


# Thumbnails -------------------------------------------------------------------------------------


def test_thumbnails(data):
    for name in ("a0", "a1"):
        Image.new("L", (4, 4)).save(data / name / "cell.PNG", format="png")
    text = CLASSES + A0 + "thumbnail_augmentation:\n  ring: [a0, a1]\n  healthy: a1\n"
    thumbnails = load(data, text).thumbnail_augmentation
    assert thumbnails == {"ring": (data / "a0", data / "a1"), "healthy": (data / "a1",)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{rign: a0}", "thumbnail_augmentation.rign: unknown key; did you mean ring?"),
        ("{ring: nowhere}", "thumbnail_augmentation.ring: "),
        ("{ring: []}", "ring: is a list; expected a path as text"),
        ("{ring: 3}", "ring: is 3; expected a path as text"),
        ("{ring: [a0, {}]}", "ring: is a mapping; expected a path as text"),
        ("{ring: b0}", "b0 holds no image; expected .png, .jpg"),
        ("a0", "is 'a0'; expected a mapping"),
    ],
    ids=["class", "missing", "no_folder", "number", "mapping", "no_image", "no_mapping"],
)
def test_thumbnails_refused(data, value, message):
    Image.new("L", (4, 4)).save(data / "a0" / "cell.png")
    (data / "b0" / "._cell.png").touch()
    assert message in error_of(data, CLASSES + A0 + f"thumbnail_augmentation: {value}\n")


# Whole files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True], ids=["fractions", "published"])
def test_tiny_data(tmp_path, published):
    definition = load_definition(write_dataset(tmp_path, published=published))
    assert definition.class_names == ("healthy", "ring")
    assert bool(definition.test_paths) == bool(definition.val_paths) == published
    assert definition.split_fractions.train == (1.0 if published else 0.5)


@pytest.mark.parametrize("name", ["bccd", "lfm"])
@pytest.mark.parametrize("kind", ["dataset", "dataset_published", "dataset_test"])
def test_real_definitions(name, kind):
    path = SHARED / name / f"{kind}.yml"
    if not path.exists():
        pytest.skip(f"no {path}")
    definition = load_definition(path)
    folders = {"dataset": (3, 0, 0), "dataset_published": (1, 1, 1), "dataset_test": (2, 0, 1)}[
        kind
    ]
    sets = (definition.dataset_paths, definition.val_paths, definition.test_paths)
    assert tuple(map(len, sets)) == folders
    assert bool(definition.thumbnail_augmentation) == (name == "lfm" and kind != "dataset")


WHOLE = (
    CLASSES
    + paths("dataset_paths", "a0", nested="inner.yml")
    + paths("test_paths", "a2")
    + "dataset_split_fractions: {train: 0.5, val: 0.5}\nthumbnail_augmentation: {ring: [a0]}\n"
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, len(WHOLE)),
    length=st.integers(0, 25),
    new=st.lists(
        st.sampled_from([*"a0:{}[],-\n '\"&*!|>~%@#?\0\t.\x85é1", "null", "<<", "true"])
    ).map("".join),
)
def test_damaged_text_raises_nothing_but_user_errors(data, start, length, new):
    Image.new("L", (4, 4)).save(data / "a0" / "cell.png")
    write(data, CLASSES + paths("dataset_paths", "a1"), "inner.yml")
    assert len(load(data, WHOLE).dataset_paths) == 2
    try:
        definition = load(data, WHOLE[:start] + new + WHOLE[start + length :])
        assert all(os.path.isdir(pair.image_path) for pair in definition.dataset_paths)
        message = f"{data}/top.yml: fine"
    except UserError as error:
        message = str(error)
    assert re.match(rf"{re.escape(str(data))}/[^ ]*(:\d+)?: ", message)
