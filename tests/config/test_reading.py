from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import BaseModel

from medmoco import config
from medmoco.errors import SettingsError
from tests.helpers.written import MINIMAL, refusal, write


@pytest.mark.parametrize("condition", ['"View Position" == PA', "'A b' in (1, 2)", "A == 1", 'A == "MR"', "A == ''"])
def test_load__conditions_need_no_further_quotes(tmp_path: Path, condition: str) -> None:
    settings = config.load(write(tmp_path, MINIMAL), [f"data.where={condition}", f'evaluate.where="{"A == 1"}"'])
    assert (settings.data.where, settings.evaluate.where) == (condition, "A == 1")


def test_load__defaults_file_and_command_line_in_rising_order(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {lr: 0.5, epochs: 7}\n")
    settings = config.load(file, ["train.lr=1e-3", "seed=3"])
    assert settings.train.lr == 0.001
    assert settings.train.epochs == 7
    assert settings.train.global_batch_size == 256
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'?"),
        ("train.foo=1", "unknown key 'train.foo'; known: epochs, global_batch_size, optimizer, lr"),
        ("train.learning_rate=1", "unknown key 'train.learning_rate'; did you mean 'train.lr'?"),
        (
            "epochs=3",
            "'train.epochs', 'finetune.epochs', 'detection.epochs', 'segmentation.epochs' or 'tune.epochs'?",
        ),
        ("batch_size=8", "did you mean 'train.global_batch_size' or 'evaluate.batch_size'?"),
        ("data.queue_size=1", "unknown key 'data.queue_size'; did you mean 'method.queue_size'?"),
        ("queue_sise=1", "unknown key 'queue_sise'; did you mean 'method.queue_size'?"),
        ("model.weights=w", "unknown key 'model.weights'; known: backbone"),
        ("data.join={file: x, on: A, colums: {}}", "did you mean 'data.join.columns'?"),
        ("data.join.on=A", "'data.join.file' is required: The second table"),
        ("method.queue_sise=1", "unknown key 'method.queue_sise'; did you mean 'method.queue_size'?"),
        ("epochs", "'epochs' is not key=value"),
        ("train.lr=[1", "not valid YAML"),
        ("train=3", "'train' is a group of settings: epochs, "),
        ("=5", "'=5' is not key=value"),
        ("train..lr=5", "'train..lr=5' is not key=value"),
        ("views.crop_scale=[1]", "'views.crop_scale' has too few values"),
        ("a(b=1", "unknown key 'a(b'"),
        ("data.labels={'A (left)': {x: 1}}", "unknown key 'data.labels.A (left).x'; known: uncertain, missing, column"),
        ("data.labels=5", "labels: 5 is not the name of a column"),
        ("data.labels={A: {map: {yes: maybe}}}", "'data.labels.A.map': 'yes': 'maybe' is not 1, 0, -1"),
        ("data.labels=[[1]]", "[1] is not text; put the name"),
        ("data.channels=[rgb]", "['rgb'] is not gray, rgb or"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_load__many_mistakes_fit_in_five_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL, *(f"train.key{i}=1" for i in range(9)))
    assert "and 6 more" in message


def test_load__required_keys_are_explained(tmp_path: Path) -> None:
    message = refusal(tmp_path, "out: a\ndata: {root: r}\n")
    assert "'data.manifest' is required: Folder with train.csv" in message


def test_load__duplicate_key_names_the_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINIMAL + "train:\n  lr: 1\n  epochs: 3\n  lr: 2\n")
    assert "line 6: key 'lr' appears twice" in message


def test_load__file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml does not exist"):
        config.load(tmp_path / "nowhere.yaml")
    assert "mapping" in refusal(tmp_path, "- a\n- b\n")
    assert "line 3" in refusal(tmp_path, "a: 1\nb: [1\n")


def test_load__python_objects_in_yaml_are_refused(tmp_path: Path) -> None:
    assert "cannot be of type '!!python/object" in refusal(tmp_path, "out: !!python/object/apply:os.system ['true']\n")


def test_to_yaml__reads_back_to_the_same_settings(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL), ["train.lr=1e-5", "data.labels=[A]", "train.clip_norm=1"])
    again = config.load(write(tmp_path, config.to_yaml(config.as_tree(settings))))
    assert again == settings


@pytest.mark.parametrize(
    "words", [("train=5", "train.lr=0.1"), ("seed=5", "seed.x=1"), ("data.labels=[A]", "data.labels.A={}")]
)
def test_load__a_word_inside_what_an_earlier_one_gave_a_value(tmp_path: Path, words: tuple[str, str]) -> None:
    assert "; drop one of them" in refusal(tmp_path, MINIMAL, *words)


def test_load__words_add_to_one_another_and_the_last_one_counts(tmp_path: Path) -> None:
    words = [
        "train.lr=0.1",
        "train={epochs: 5, lr: 0.2}",
        "train.epochs=6",
        "data.labels={A: {}}",
        "data.labels={B: {}}",
    ]
    settings = config.load(write(tmp_path, MINIMAL), words)
    assert (settings.train.lr, settings.train.epochs, list(settings.data.labels)) == (0.2, 6, ["B"])


def test_load__merge_keys_give_what_they_stand_for(tmp_path: Path) -> None:
    common = "train: &t {lr: 0.01, epochs: 3}\nfinetune: {<<: *t, epochs: 5}\n"
    settings = config.load(write(tmp_path, MINIMAL + common))
    assert (settings.finetune.lr, settings.finetune.epochs, settings.train.epochs) == (0.01, 5, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("out: é".encode("latin-1"), "not UTF-8"),
        ("out: a".encode("utf-16"), "not UTF-8"),
        (b"#" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_read_file__is_another_file(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        config.load(file)


def test_read_file__a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert config.load(file).out == Path("runs/a")


# ---- whatever is written: settings, or a sentence ----


def _keys(model: type[BaseModel] = config.RunSettings, parents: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((*parents, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _keys(field.annotation, (*parents, name))
    return found


_KEYS = _keys()
_WORDS = sorted({key[-1] for key in _KEYS} | {"low", "high", "log", "train.lr", "<<", "A (left)", "", "a\nb"})
_SCALARS: Any = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=3)
    | st.sampled_from(["gray", "moco_v3", "rgb", "mask", "~", "$NOWHERE", "010", "1e5", 10**400, 2**63, 5e-324, 1e300])
)  # fmt: skip
_TREES: Any = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_WORDS) | st.integers() | st.none() | st.tuples(st.integers()), inner, max_size=4
        )
    ),
    max_leaves=12,
)
_SCRAPS: Any = st.lists(
    st.sampled_from([
        MINIMAL, "&a ", "*a", "<<: ", "- ", "? ", ": ", "{", "}", "[", "]", "\t", "\n", "\n  ", "!!set ", "!foo ",
        "!!int ", "!!str ", "---\n", "%YAML 1.1\n", "'", '"', "|\n  ", "#", "train: ", "lr: ", "\ufeff", "\x00",
        "\u2028", '"\\ud800"', '"\\UFFFFFFFF"', "1e400", ".nan", "0x_", "12:30", "2001-01-01", "=", "~",
        "tune: {space: ", "labels: ",
    ]) | st.text(max_size=4),
    max_size=20,
).map("".join)  # fmt: skip
_FUZZ = effort(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _is_read_or_refused(file: Path, *words: str) -> None:
    try:
        settings = config.load(file, words)
    except SettingsError as error:
        assert len(str(error).splitlines()) <= 5  # noqa: PT017 - whether it is raised is not known
        return
    again = file.with_name("again.yaml")
    for text in (config.to_yaml(config.as_tree(settings)), config.describe(file, words)):
        again.write_text(text, encoding="utf-8")
        assert config.load(again) == settings


@_FUZZ
@given(st.lists(st.tuples(st.sampled_from(_KEYS), _TREES), max_size=3), st.booleans())
def test_load__any_tree(tmp_path: Path, changes: list[tuple[tuple[str, ...], Any]], flow: bool) -> None:
    tree: dict[str, Any] = {"out": "r", "data": {"manifest": "m", "root": "r"}}
    for (*parents, leaf), value in changes:
        node = tree
        for parent in parents:
            node = node[parent] = node[parent] if isinstance(node.get(parent), dict) else {}
        node[leaf] = value
    _is_read_or_refused(write(tmp_path, yaml.dump(tree, default_flow_style=flow)))


@_FUZZ
@given(_SCRAPS)
def test_load__any_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    _is_read_or_refused(file)


@_FUZZ
@given(
    st.lists(st.tuples(st.sampled_from([".".join(key) for key in _KEYS]) | st.text(max_size=6), _SCRAPS), max_size=3)
)
def test_load__any_words(tmp_path: Path, words: list[tuple[str, str]]) -> None:
    _is_read_or_refused(write(tmp_path, MINIMAL), *(f"{key}={value}" for key, value in words))


def test_load_run__another_preset_replaces_what_the_file_states_because_of_the_first(tmp_path: Path) -> None:
    own = config.load(write(tmp_path, MINIMAL + "views: {recipe: moco_v2, rotation: 4.0}\n"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.to_yaml(config.as_tree(own)))
    run = config.load_run(tmp_path / "run")
    assert run == own
    changed = config.load(run, ["views.recipe=moco_cxr"])
    assert (changed.views.crop_scale, changed.views.brightness) == ((1.0, 1.0), 0.0)
    assert changed.views.rotation == 4.0


def test_load__settings_objects_inside_a_mapping_count_with_what_was_given(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    changed = config.load(file, changes={"views": config.ViewSettings(size=64), "data": {"canvas_size": 64}})
    assert changed == config.load(file, ["views.size=64", "data.canvas_size=64"])


def test_describe__is_yaml_and_names_the_source_of_each_value(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "train: {epochs: 7}\nviews: {recipe: moco_v1}\n")
    text = config.describe(file, ["train.lr=0.5"])
    lines = {line.split(":")[0].strip(): line for line in reversed(text.splitlines())}  # the first of its name
    assert "# command line" in lines["lr"]
    assert "settings.yaml" in lines["epochs"]
    assert "# preset of views.recipe" in lines["jitter_probability"]
    assert "# default: He et al. 2020" in lines["global_batch_size"]
    assert config.RunSettings.model_validate(yaml.safe_load(text)) == config.load(file, ["train.lr=0.5"])


def test_describe__names_the_file_for_what_a_merge_key_gives(tmp_path: Path) -> None:
    text = config.describe(write(tmp_path, MINIMAL + "train: &t {epochs: 7}\nfinetune: {<<: *t, lr: 0.5}\n"))
    finetune = text[text.index("\nfinetune:") :]
    assert "settings.yaml" in next(line for line in finetune.splitlines() if line.startswith("  epochs: 7"))


def test_describe__odd_names_of_labels_are_quoted(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    text = config.describe(file, ["data.labels=['No', 'a: b', '# c', '1e5']"])
    assert set(yaml.safe_load(text)["data"]["labels"]) == {"No", "a: b", "# c", "1e5"}
