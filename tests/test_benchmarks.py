"""Every benchmark runs and prints its lines, at sizes that take no time; what it measures is not asserted."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch

from benchmarks import (
    files,
    forecast,
    growth,
    intervals,
    jpeg,
    loading,
    probes,
    startup,
    step,
    views,
    volume_costs,
    volume_packs,
    volumes,
    workers,
)
from benchmarks.__main__ import ALL
from medmoco.config import as_tree, load, to_yaml
from tests.helpers.squares import SMALL, write_images


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore the numbers of threads, which benchmarks of one core set for their process."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def shrink(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **constants: object) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(module, name, value)


def rates(text: str) -> list[str]:
    """Return the names in the tables of `turns.report`, in order."""
    return [
        name.strip() for name in re.findall(r"^(.+?) +\d+   \d+\.\d\dx \[\d+\.\d\d-\d+\.\d\d\]$", text, re.MULTILINE)
    ]


def test_all__are_run_here() -> None:
    source = inspect.getsource(sys.modules[__name__])
    assert not [name for name in ALL if f"{name}.run()" not in source]


def test_views__every_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(monkeypatch, views, IMAGES=2, ROUNDS=1)
    views.run()
    assert rates(capsys.readouterr().out) == [
        "published recipe (PIL, RGB)", "torchvision v2, grayscale", "medmoco, moco_v2", "medmoco, xray",
        "copies of pixels",
    ]  # fmt: skip


def test_files__every_kind_of_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(monkeypatch, files, IMAGES=2, ROUNDS=1, SIDE=256)
    files.run()
    text = capsys.readouterr().out
    assert [f"{title}, one core" in text for title in files.KINDS.values()] == [True] * 4
    ours = [
        f"medmoco {source}, {recipe}" for recipe in ("moco_v2", "xray") for source in ("on the files", "from a pack")
    ]
    found = [name for name in rates(text) if name != files.ALBUMENTATIONS]  # where it is installed
    assert found == [files.PUBLISHED, *ours] * 4


def test_jpeg__every_size_and_quality(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(monkeypatch, jpeg, IMAGES=1, ROUNDS=1, SIDES=(300, 600))
    jpeg.run()
    assert rates(capsys.readouterr().out) == ["decoded whole", "at reduced size"] * 6


@pytest.mark.slow
def test_step__every_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(monkeypatch, step, SIZES=((32, 16, 64), (48, 16, 128)), ROUNDS=1, STEPS=1)
    step.run()
    text = capsys.readouterr().out
    assert "ResNet-18, 48 px, batch 16, queue 128" in text
    assert rates(text) == ["floor: bare encoders", "medmoco", "medmoco, 8 batch-norm groups"] * 2


@pytest.mark.slow
def test_loading__every_number_of_workers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = (
        "model.backbone=test_resnet", "views.size=32", "data.canvas_size=32", "train.global_batch_size=8",
        "method.queue_size=32",
    )  # fmt: skip
    shrink(monkeypatch, loading, SMALL={"tiny": tiny}, ROUNDS=1, SECONDS=0.05, SIDE=64)
    loading.run()
    lines = re.findall(r"^(.+\(s\)): +\d+   \d+\.\d\d \[", capsys.readouterr().out, re.MULTILINE)
    assert lines == ["tiny, 1 worker(s)", "tiny, 2 worker(s)"]


def test_workers__with_and_without_python_strings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink(monkeypatch, workers, ROWS=40, FILES=10, SEEN=32, BATCH=4)
    workers.run()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [re.sub(r"\d+", "N", line).split("  ")[0] for line in lines] == [
        "as they are",
        "file names as Python strings",
    ]


def test_intervals__every_size_and_metric(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(monkeypatch, intervals, SIZES={60: (2, 1), 90: (2, 1)}, DRAWS=4, ROUNDS=1)
    intervals.run()
    text = capsys.readouterr().out
    assert rates(text) == ["loop over scikit-learn, weighted", "medmoco"] * 4
    last = [line.split(" of 90 rows")[0] for line in text.splitlines()[-3:]]
    assert last == ["AUROC: 4 draws", "average precision: 4 draws", "DeLong: two scores"]


@pytest.mark.slow
def test_startup__every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for statement in startup.STATEMENTS.values():
        exec(statement, {})
    shrink(monkeypatch, startup, ROUNDS=1, STATEMENTS=dict.fromkeys(startup.STATEMENTS, "import sys"))
    startup.run()
    printed = capsys.readouterr().out
    lines = printed[printed.index("starting a command") :].splitlines()[2:]
    assert [line[:24].strip() for line in lines] == [*startup.STATEMENTS, startup.FIRST_STEP]


def test_startup__says_why_there_was_no_first_step(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="missing"):
        startup.to_first_step(tmp_path / "missing.yaml")


@pytest.mark.parametrize("name", growth.WORK)
def test_growth__every_operation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    growth.measure(name, 300)
    seconds, megabytes = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert seconds > 0
    assert megabytes >= 0


def test_growth__extrapolates_and_leaves_out_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(name: str, size: int) -> tuple[float, float]:
        return size / 1000 if name == "linear" else size**2 / 10**6, size / 100

    work = {
        "linear": growth.Measured(growth._order, (100, 1000, 10_000), 2**20),
        "square": growth.Measured(growth._order, (100, 1000)),
        "measured": growth.Measured(growth._order, (1000, growth.TEN_MILLION)),
    }
    shrink(monkeypatch, growth, WORK=work, _in_process=measured, available_memory=lambda: 2**30)
    growth.run()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert " ".join(lines[0]) == "linear 100: 0.10 s, 1 MB, 1,000: 1.00 s, 10 MB"
    assert " ".join(lines[1]) == "slopes 1.00 and 1.00; 10,000,000: 10,000 s, 97.7 GB"
    assert " ".join(lines[3]) == "slopes 2.00 and 1.00; 10,000,000: 100,000,000 s, 97.7 GB"
    assert " ".join(lines[5]) == "slopes 2.00 and 1.00"


def test_growth__each_is_measured_in_a_process_of_its_own() -> None:
    seconds, megabytes = growth._in_process("order an epoch", 300)
    assert 0 < seconds < 60
    assert 0 <= megabytes < 1000


# ---- with settings and encoders of one's own ----


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    write_images(folder, {"train": 400, "val": 150, "test": 150})
    for table in folder.glob("*.csv"):  # a tenth of the labels is wrong, so that scores rise with the number of labels
        lines = table.read_text().splitlines()
        lines[5::10] = [line[:-1] + {"0": "1", "1": "0"}.get(line[-1], "") for line in lines[5::10]]
        table.write_text("\n".join(lines) + "\n")
    paths = [f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder / 'images'}"]
    settings = load(None, [*paths, *SMALL, "model.backbone=test_resnet", "evaluate.bootstrap=100"])
    (folder / "config.yaml").write_text(to_yaml(as_tree(settings)))
    return folder / "config.yaml"


@pytest.mark.parametrize("split", ["val", "test"])
def test_forecast__every_form_and_observed_score(
    split: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(config), "--encoder", "run=random", "--draws", "2", "--cuts", "0.5", "--"]
    words += ["evaluate.fractions=[0.05,0.1,0.2,0.5,1.0]"]
    monkeypatch.setattr(sys, "argv", ["forecast", *(["--test"] if split == "test" else []), *words])
    forecast.main()
    text = capsys.readouterr().out
    for form in forecast.FORMS if split == "val" else ("both",):
        assert re.search(rf"^\| {re.escape(form)} \| \d+ \|", text, re.MULTILINE)
    assert re.search(r"^\| Bright, .+, 50% \| 100% \|", text, re.MULTILINE)


@pytest.mark.slow
def test_probes__both_are_scored(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(config), "--encoder", "random", "--fraction", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["probes", *words, "finetune.warmup_epochs=0"])
    probes.main()
    text = capsys.readouterr().out
    assert "published SGD,   1 epochs:" in text
    for name in ("default  ", "published", "difference"):
        assert f"Bright, {name}:" in text


def test_volumes__every_library_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink(monkeypatch, volumes, ROUNDS=1, VOLUMES=1, SIZE=16, SHAPE=(24, 24, 20))
    volumes.run()
    names = rates(capsys.readouterr().out)
    assert {name for name in names if name.startswith("medmoco")}
    assert {name for name in names if name.startswith("MONAI")}


def test_volume_packs__every_storage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ((40, 40, 10), (0.8, 0.8, 3.0), (1.5, 1.5, 1.5))
    shrink(
        monkeypatch, volume_packs, SHAPE=(48, 40, 36), VOLUMES=2, CROP=16, CROPS=2, ROUNDS=1, RESAMPLED=small,
        CT=Path("absent"),
    )  # fmt: skip
    volume_packs.run()
    assert volume_packs.OURS in capsys.readouterr().out


@pytest.mark.slow
def test_volume_costs__every_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shrink(
        monkeypatch, volume_costs, SIZES=(32,), PATIENTS=(3, 5), IMAGE_SIZE=64, BACKBONE="monai/resnet10_quarter",
        ROUNDS=1, SECONDS=0.05, _in_process=volume_costs.costs,
    )  # fmt: skip
    volume_costs.run()
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"32 voxels of 8\.00 mm: \d\.\d+ MB a volume, .* h to pack 10,000; \d+ \[.*\] views/s from the pack; "
        r"step [\d.]+ volumes/s \(cpu \w+\), .* of the bare encoders, .* h an epoch of 10,000; [\d.]+ GB of memory",
        line,
    )
