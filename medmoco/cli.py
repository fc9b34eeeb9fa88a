"""The command line: arguments in, one function call, words out.

Torch, pandas and the rest are imported inside the commands that need them, so that `medmoco --help` answers at once.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmoco import config
from medmoco.errors import DataError, DistributedError, MedmocoError, SettingsError, Stopped

if TYPE_CHECKING:
    from medmoco.training.distributed import Group

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Pretrain image encoders on unlabelled grayscale medical images with momentum contrast, "
    "and prove what that is worth.",
    epilog="images + CSV -> pretrain -> evaluate -> report, export. Every command takes the same YAML file and "
    "key=value overrides.",
)

DATA, TRAINING, EVIDENCE, INSIGHT, USE = "Data", "Training", "Evidence", "What an encoder sees", "Use"

Config = Annotated[Path, typer.Option("--config", "-c", help="YAML settings file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=10.")
]
Devices = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine, one for each GPU (all GPUs if not given).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, if any.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
AllowChange = Annotated[
    bool, typer.Option("--allow-change", help="Resume with other settings or another manifest than before.")
]
Encoder = Annotated[str, typer.Option(help='Run folder, weights file, or the word "random".')]
ScoredSplit = Annotated[str, typer.Option(metavar="train|val|test", help="Whose images.")]


@app.command("config", rich_help_panel="Settings")
def show_config(config_file: Config, overrides: Overrides = None) -> None:
    """Print every setting with where its value comes from."""
    print(config.describe(config_file, overrides or ()), end="")


@app.command(rich_help_panel=DATA)
def phantom(
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    patients: Annotated[int, typer.Option(min=10, help="Number of synthetic patients.")] = 160,
    image_size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the images in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make synthetic chest phantoms with a manifest, to try medmoco without data."""
    from medmoco.data.phantom import make_phantoms

    make_phantoms(out, patients=patients, image_size=image_size, seed=seed)
    print(f"phantoms of {patients} synthetic patients, train.csv, val.csv and test.csv are in {out}")


@app.command(rich_help_panel=DATA)
def split(
    csv_file: Annotated[Path, typer.Option("--csv", help="Any table with a header; .csv.gz is read too.")],
    out: Annotated[Path, typer.Option(help="New or empty folder for train.csv, val.csv, test.csv and README.md.")],
    labels: Annotated[str, typer.Option(metavar="A,B", help="Columns of 1, 0, -1 and blank to balance.")] = "",
    group: Annotated[str | None, typer.Option(help="Column that names the patient; PatientID if not given.")] = None,
    keep: Annotated[str | None, typer.Option(help="Official split column: its val and test rows stay.")] = None,
    val: Annotated[float | None, typer.Option(help="Share of the patients that are split; 0.1 if not given.")] = None,
    test: Annotated[float | None, typer.Option(help="The same for test; 0.2 if not given.")] = None,
    fractions: Annotated[
        str, typer.Option(metavar="1,5,10,50", help="Percentages of the training patients for train_01.csv and so on.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Split a table by patient, balanced by label, whatever the order of its rows."""
    from medmoco.data.split_files import split_csv

    try:
        percentages = [float(text) for text in fractions.split(",") if text.strip()]
    except ValueError:
        raise SettingsError(f"--fractions: {fractions!r} is not a list of numbers such as 1,5,10,50") from None
    names = [name.strip() for name in labels.split(",") if name.strip()]
    shares = {"val": val, "test": test}
    print(split_csv(
        csv_file, out, labels=names, group=group, keep=keep, shares=shares, fractions=percentages, seed=seed
    ))  # fmt: skip


@app.command(rich_help_panel=DATA)
def preview(
    config_file: Config,
    out: Annotated[Path, typer.Option(help="PNG file to write. It shows patients' images.")],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, max=50)] = 6,
    views: Annotated[int, typer.Option(min=1, max=20)] = 6,
) -> None:
    """Write a picture of a few images and their views."""
    from medmoco.data.preview import preview as write_preview

    write_preview(config.load(config_file, overrides or ()), out, images=images, views=views)
    print(f"{images} images with {views} views each are in {out}")


@app.command(rich_help_panel=DATA)
def check(
    config_file: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and the list of bad rows [OUT-check].")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="YAML file or manifest of other pretraining data, to seek in val and test. Repeatable."),
    ] = None,
) -> None:
    """Read every row and file, and say what is wrong with them."""
    settings = config.load(config_file, overrides or ())
    from medmoco.data.audit import audit
    from medmoco.evaluation.shortcuts import find_shortcuts

    folder = out or settings.out.with_name(f"{settings.out.name}-check")
    report = audit(settings, folder, against or (), find_shortcuts)
    print(report.text, end="")
    if report.faults:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in report.faults))
        raise DataError(f"faults were found ({kinds}); the rows with their reasons are in {folder / 'rows.csv'}")
    print(f"no faults; the report and the list of rows are in {folder}")


@app.command(rich_help_panel=DATA)
def pack(
    config_file: Config,
    out: Annotated[str | None, typer.Option(help="Folder of the pack; without it, data.pack.")] = None,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler whose workers do it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Decode every image once, for training to read; go on with a pack that is there, or check it."""
    settings = config.load(config_file, overrides or ())
    from medmoco.data.pack_cache import is_url

    folder = out or settings.data.pack
    if folder is None or is_url(folder):
        raise SettingsError("give --out, or set data.pack to the folder that the pack shall be in")
    failed = _make_pack(settings, Path(folder), dask)
    if failed:
        raise DataError(
            f"{failed} images could not be packed; failed.csv in the pack lists their rows and why.\n"
            "The pack is complete without them. Mend the files and run the command again, take the rows out of the\n"
            "manifest, or train with data.pack_failures=leave_out."
        )
    print(f"use it with data.pack={folder}")


def _make_pack(settings: config.RunSettings, folder: Path, dask: str | None = None) -> int:
    from medmoco.data.pack_writing import make_pack

    if dask is None:
        return make_pack(settings.data, folder, _say)
    from medmoco.data.pack_dask import on_cluster

    with on_cluster(dask) as write:
        return make_pack(settings.data, folder, _say, write)


@app.command(rich_help_panel=TRAINING)
def bench(
    config_file: Config,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each of four measurements.")] = 20.0,
) -> None:
    """Measure on this machine what holds pretraining up, and say what would help."""
    settings = config.load(config_file, overrides or ())
    from medmoco.training.bench import bench as measure

    print(measure(settings, seconds, _say))


@app.command(rich_help_panel=TRAINING)
def pretrain(
    config_file: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Pretrain an encoder on the training split."""
    settings = config.load(config_file, overrides or ())
    from medmoco.evaluation.monitor import knn_monitor
    from medmoco.training.pretrain import pretrain as run

    changes = {"resume": resume, "overwrite": overwrite, "allow_change": allow_change}
    with _in_processes(settings, devices) as group:
        group.first(lambda: _make_missing_pack(settings), patiently=True)
        run(settings, monitor=knn_monitor, **changes, group=group)
        if group.is_first:
            print(f"run folder: {settings.out}")


@contextmanager
def _in_processes(settings: config.RunSettings, devices: int | None) -> Iterator[Group]:
    """Start as many processes as are wanted, unless a launcher has; one of them says what goes wrong, and how to go on.

    The process that starts others waits for them and ends with their exit code.
    """
    from medmoco.training.distributed import joined
    from medmoco.training.launch import find_placement, launch, wanted_processes

    placement = find_placement(os.environ)
    processes = 1 if placement else wanted_processes(settings.train, devices)
    if processes > 1:
        raise typer.Exit(launch(sys.argv[1:], processes))
    with joined(settings.train, placement) as group:
        try:
            yield group
        except DistributedError as error:
            raise DistributedError(f"process {group.rank}: {error}") from None
        except MedmocoError as error:
            if not group.is_first:
                raise typer.Exit(error.exit_code) from None  # all have met it, the first says it
            raise _with_way_on(error) from None


def _with_way_on(error: MedmocoError) -> MedmocoError:
    """Return the error, that of a stop with the command that resumes."""
    if not isinstance(error, Stopped):
        return error
    arguments = [text for text in sys.argv[1:] if text not in ("--resume", "--overwrite", "--allow-change")]
    return Stopped(f"{error}\nGo on with: medmoco {shlex.join(arguments)} --resume")


def _make_missing_pack(settings: config.RunSettings) -> None:
    from medmoco.data.pack import INFO
    from medmoco.data.pack_cache import is_url

    place = settings.data.pack
    if place and not is_url(place) and not Path(place, INFO).is_file():
        _say(f"data.pack: {place} is not there yet or unfinished; making it first")
        _make_pack(settings, Path(place))


@app.command(rich_help_panel=TRAINING)
def slurm(
    config_file: Config,
    out: Annotated[Path, typer.Option(help="Batch file to write, such as job.sbatch.")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="On each node; one process for each.")] = 1,
    hours: Annotated[float, typer.Option(min=0.25, help="At a time; then the job queues again and goes on.")] = 24.0,
    cpus: Annotated[int | None, typer.Option(min=1, help="For each GPU; data.workers + 1 if not given.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Of each node, such as 128G.")] = None,
    partition: Annotated[str | None, typer.Option(help="Queue to submit to.")] = None,
    account: Annotated[str | None, typer.Option(help="Project to charge.")] = None,
) -> None:
    """Write a SLURM batch file that pretrains on one or several nodes and queues itself again until it is done."""
    settings = config.load(config_file, overrides or ())
    from medmoco.training.slurm import Resources, write_job

    resources = Resources(nodes, gpus, hours, cpus, memory, partition, account)
    print(write_job(out, config_file, overrides or (), settings, resources))


Encoders = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        metavar="[NAME=]SOURCE",
        help='Run folder, weights file, or the word "random". Repeatable: others to compare with need names, '
        "such as imagenet=FILE.",
    ),
]
Test = Annotated[bool, typer.Option("--test", help="Look at the test split; each look is noted in the run's ledger.")]


@app.command(rich_help_panel=EVIDENCE)
def evaluate(
    config_file: Config,
    encoder: Encoders,
    out: Annotated[Path, typer.Option(help="Folder for scores, predictions, the probe and the table.")],
    test: Test = False,
    overrides: Overrides = None,
) -> None:
    """Score the frozen encoder on the labels, next to its controls."""
    settings = config.load(config_file, overrides or ())
    encoders = _named(encoder)
    from medmoco.evaluation.evaluate import evaluate as score

    print(score(settings, encoders, out, test=test, say=_say).table)


@app.command(rich_help_panel=EVIDENCE)
def curve(
    config_file: Config,
    encoder: Encoders,
    out: Annotated[Path, typer.Option(help="Folder for curve.csv, curve.json and the figures.")],
    draws: Annotated[int, typer.Option(min=1, help="Draws of patients for each share of labels below 100 %.")] = 5,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Also train end to end, from the encoder and from nothing. Takes long.")
    ] = False,
    test: Test = False,
    overrides: Overrides = None,
) -> None:
    """Score with labels of 1 to 100 % of the patients, on the same draws for every encoder."""
    settings = config.load(config_file, overrides or ())
    encoders = _named(encoder)
    from medmoco.evaluation.curve import curve as score

    print(score(settings, encoders, out, draws=draws, finetuned=finetune, test=test, say=_say).table)


@app.command(rich_help_panel=EVIDENCE)
def external(
    config_file: Config,
    other: Annotated[Path, typer.Option(help="YAML file of the other data: its manifest, root and labels.")],
    classifier: Annotated[Path, typer.Option(help="Folder that evaluate or finetune left.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    overrides: Overrides = None,
) -> None:
    """Score a frozen classifier on the test split of other data, and show the drop; both looks are noted."""
    settings, theirs = config.load(config_file, overrides or ()), config.load(other)
    from medmoco.evaluation.external import external as score

    print(score(settings, theirs, classifier, out, say=_say))


def _named(encoders: list[str]) -> dict[str, str]:
    """Return name -> source; the first is "run" unless it is named."""
    named: dict[str, str] = {}
    for number, text in enumerate(encoders):
        match = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
        if not match and number:
            raise SettingsError(f"--encoder {text}: name it, such as --encoder other={text}")
        name, source = match.groups() if match else ("run", text)
        if name in named:
            raise SettingsError(f"--encoder: two are named '{name}'; give them different names")
        named[name] = source
    return named


@app.command(rich_help_panel=TRAINING)
def finetune(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(help="Run folder of the fine-tuning.")],
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Train the encoder and a classifier on the labels of train; the best epoch on val is kept."""
    settings = config.load(config_file, overrides or ())
    from medmoco.evaluation.finetune import finetune as run

    with _in_processes(settings, devices) as group:
        run(
            settings, encoder, out, resume=resume, overwrite=overwrite, allow_change=allow_change, say=_say,
            group=group,
        )  # fmt: skip
        if group.is_first:
            print(f"run folder: {out}")


@app.command(rich_help_panel=EVIDENCE)
def detect(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(help="Run folder of the detector.")],
    test: Test = False,
    against: Annotated[
        Path | None, typer.Option(help="Run folder of another detector, for paired differences on the same images.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="PNG file of boxes in a few images. It shows patients' images.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Train a detector on boxes with the encoder as its backbone, and score it by average precision."""
    settings = config.load(config_file, overrides or ())
    from medmoco.detection.detect import detect as run

    changes = {"resume": resume, "overwrite": overwrite, "allow_change": allow_change}
    with _in_processes(settings, devices) as group:
        found = run(
            settings, encoder, out, test=test, against=against, pictures=pictures, **changes, say=_say, group=group
        )
        if found:
            print(found.table)
            print(f"run folder: {out}")


@app.command(rich_help_panel=USE)
def predict(
    config_file: Config,
    classifier: Annotated[Path, typer.Option(help="Classifier folder, which finetune and evaluate leave.")],
    out: Annotated[Path, typer.Option(help="CSV file for row numbers and probabilities.")],
    overrides: Overrides = None,
    split: ScoredSplit = "test",
    with_path: Annotated[
        bool, typer.Option("--with-path", help="Add each row's Path, which may name patients.")
    ] = False,
) -> None:
    """Apply a classifier to the images of a manifest: a calibrated probability for each row and label."""
    settings = config.load(config_file, overrides or ())
    name = _split_name(split)
    from medmoco.evaluation.predict import predict as apply

    rows = apply(settings, classifier, out, split=name, with_path=with_path, say=_say)
    print(f"{rows} rows of {name} are in {out}")


Rows = Annotated[str, typer.Option(metavar="3,17", help="Rows of the split, as a spreadsheet counts them.")]


@app.command(rich_help_panel=INSIGHT)
def neighbours(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(help="NAME.png, which shows patients, with NAME.csv; or NAME.csv alone.")],
    rows: Rows,
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    bank: Annotated[str, typer.Option(metavar="train|val|test", help="The images to compare them with.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=50, help="Neighbours of each.")] = 6,
    same_patient: Annotated[
        bool, typer.Option("--same-patient", help="Other images of the same patient may be neighbours.")
    ] = False,
) -> None:
    """Find the images that the encoder finds most like some of yours."""
    settings = config.load(config_file, overrides or ())
    wanted, names = _row_numbers(rows), {"split": _split_name(split), "bank": _split_name(bank)}
    from medmoco.evaluation.neighbours import neighbours as find

    found = find(settings, encoder, out, wanted, **names, count=count, same_patient=same_patient, say=_say)
    print(f"{len(found)} neighbours of {len(set(wanted))} images are in {out.with_suffix('.csv')}")
    if out.suffix.lower() == ".png":
        print(f"{out} shows them: keep it where the images may be")


@app.command(rich_help_panel=INSIGHT)
def projection(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(help="Folder for the table and the figure.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    colour: Annotated[str | None, typer.Option(help="Label that colours the points; without it, the first.")] = None,
) -> None:
    """Lay the features out on a plane, coloured by a label."""
    settings = config.load(config_file, overrides or ())
    from medmoco.evaluation.projection import projection as project

    print(project(settings, encoder, out, split=_split_name(split), colour=colour, say=_say))


@app.command(rich_help_panel=INSIGHT)
def placement(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(help="Folder for placement.json, histogram.csv and the table.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    twin: Annotated[
        list[str] | None,
        typer.Option(help="flip, rotate:10, crop:0.7, intensity:0.2 or view; repeatable; all of them if not given."),
    ] = None,
) -> None:
    """Rank each image's changed twin among all images: what the features do not care about."""
    settings = config.load(config_file, overrides or ())
    from medmoco.evaluation.placement import placement as place

    print(place(settings, encoder, out, split=_split_name(split), twins=twin or (), say=_say), end="")


@app.command(rich_help_panel=INSIGHT)
def saliency(
    config_file: Config,
    classifier: Annotated[Path, typer.Option(help="Classifier folder, as evaluate and finetune leave it.")],
    out: Annotated[Path, typer.Option(help="PNG file to write. It shows patients' images.")],
    rows: Rows,
    label: Annotated[str, typer.Option(help="One of the classifier's labels.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
) -> None:
    """Draw where a classifier looks, for some images: the scores of patches, or Grad-CAM."""
    settings = config.load(config_file, overrides or ())
    from medmoco.evaluation.saliency import saliency as draw

    print(draw(settings, classifier, out, _row_numbers(rows), label, split=_split_name(split), say=_say))


def _row_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"--rows: {text!r} is not a list of row numbers such as 3,17") from None


def _split_name(name: str) -> str:
    if name not in ("train", "val", "test"):
        raise SettingsError(f"{name!r} is no split; name train, val or test")
    return name


@app.command(rich_help_panel=EVIDENCE)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, to stand side by side.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write [report.html in the first folder].")] = None,
    card: Annotated[Path | None, typer.Option(help="Model card of the first run [export/MODEL_CARD.md in it].")] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="PNG file to show too; it may show patients. Repeatable.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page [the names of the folders].")] = "",
) -> None:
    """Write one HTML file about runs: data, curves, scores, and checklists filled in; it works offline."""
    from medmoco.reporting.report import report as write

    print(write(runs, out or runs[0] / "report.html", card=card, pictures=pictures or (), title=title))


@app.command("import", rich_help_panel=USE)
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of others: .pth, .ckpt, .safetensors, .npz.")],
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    backbone: Annotated[str | None, typer.Option(help="Name of the network; without it, told by its tensors.")] = None,
    which: Annotated[str, typer.Option(metavar="query|key", help="Encoder, where the file has two.")] = "query",
    scheme: Annotated[
        str | None, typer.Option(help="Whose file it is, such as moco-cxr, where its keys do not tell.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keys not wanted, with *. Repeatable.")
    ] = None,
) -> None:
    """Bring in weights of other projects, with an account of every key."""
    if which not in ("query", "key"):
        raise SettingsError(f"--which {which!r}: name query, or key for the moving average of it")
    from medmoco.models.importing import import_weights

    print(import_weights(
        file, out, backbone=backbone, which="key" if which == "key" else "query", scheme=scheme,
        leave_out=tuple(leave_out or ()),
    ))  # fmt: skip


@app.command(rich_help_panel=USE)
def export(
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    run: Annotated[Path | None, typer.Option(help="Run folder, whose encoder is exported.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Folder that evaluate or finetune left.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="Weights file, used as --config says.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", "-c", help="YAML settings of --encoder.")] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="A,B|all",
            help="safetensors, timm, torchvision, detectron2, huggingface, monai-bundle, onnx, program.",
        ),
    ] = "safetensors,onnx",
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "not stated",
) -> None:
    """Write an encoder or a classifier with all that a stranger needs to use it; every file is read back."""
    given = [value for value in (run, classifier, encoder) if value is not None]
    if len(given) != 1 or (encoder is None) != (config_file is None):
        raise SettingsError("give one of --run, --classifier, and --encoder with --config")
    from medmoco.exporting import sources
    from medmoco.exporting.export import export as write
    from medmoco.training.runlog import print_warning

    if run is not None:
        source = sources.from_run(run, licence, print_warning)
    elif classifier is not None:
        source = sources.from_classifier(classifier, licence, print_warning)
    else:
        assert encoder is not None
        assert config_file is not None
        source = sources.from_file(encoder, config.load(config_file), licence, print_warning)
    for file in write(source, out, [name.strip() for name in formats.split(",")]):
        print(file)


@app.command(rich_help_panel=USE)
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that export wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Also load formats that can run code: program, monai-bundle.")
    ] = False,
) -> None:
    """Check an export anywhere: hashes of all files, then outputs of each format, loaded in a new process."""
    from medmoco.exporting.verify import verify as check_export

    check_export(folder, print, trust=trust)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    """Run the command line; errors a user can cause end in their message and exit code, without a traceback."""
    # Third-party deprecations are our business, not the user's; what medmoco has to say goes through the run log.
    warnings.filterwarnings("ignore")
    try:
        app()
    except MedmocoError as error:
        print(f"medmoco: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
