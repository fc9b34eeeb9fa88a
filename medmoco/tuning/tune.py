"""Hyperparameter search: proposals -> pretraining runs -> validation kNN AUROC -> the winner."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medmoco import config
from medmoco.config import RunSettings, Tree
from medmoco.config.paths import as_written
from medmoco.data.loading.loading import check_images
from medmoco.data.loading.quarantine import Quarantine
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import overlap_notices
from medmoco.errors import CheckpointError, DivergedError, MedmocoError, SettingsError, Stopped, first_line
from medmoco.evaluation.features.monitor import knn_monitor, validation_scores
from medmoco.evaluation.metrics.auroc import Floats, auroc, bootstrap_auroc, or_none, share_interval, undefined
from medmoco.models.backbones import Backbone
from medmoco.training.agreement import any_of, from_first, on_first
from medmoco.training.checkpoint import keep_newest, portable_settings
from medmoco.training.context import prepare_context
from medmoco.training.distributed import ALONE, Group
from medmoco.training.pretrain import pretrain
from medmoco.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    HARMLESS,
    NEW,
    StartMode,
    claim,
    describe_run,
    facts_of,
    holding,
    portable_defaults,
    shown,
)
from medmoco.training.runlog import explaining_disk_errors, write_json
from medmoco.tuning.proposals import Trial, ends_of, propose, require_optuna
from medmoco.tuning.selection_bias import best_of, compare, line_of, table, words_of
from medmoco.utils.files import replacing
from medmoco.utils.stopping import stop_requests

RECORD = "tune.json"
BEST = "best.yaml"
DRAWS = "draws.npy"

_GROUPS = ("views.", "model.", "method.", "positives.", "decoder.", "train.")
# May differ on --resume: these affect neither a trial nor its score.
_HARMLESS = (*(key for key in HARMLESS if key not in ("evaluate.", "tune.")), "tune.trials")


def tune(
    settings: RunSettings,
    out: Path,
    *,
    start: StartMode = NEW,
    log: Callable[[str], None] = lambda _: None,
    group: Group = ALONE,
) -> str:
    """Search `tune.space` for the settings with the best score on validation.

    Each trial is a run of `medmoco pretrain` in OUT/trial-000 and so on; the first has the settings as given. After
    each, tune.json and best.yaml are written.

    Args:
        settings: Settings of the first trial, and the space.
        out: Folder of the search.
        start: What happens to a search that is in the folder already; `allow_change` is ignored, since trials with
            other settings cannot be compared.
        log: Receives a line for each trial.
        group: The processes that train each trial together.

    Returns:
        The table of all trials with a verdict; empty on all processes except the first.

    Raises:
        SettingsError: the space is empty or contains invalid values, a label cannot be scored, the settings as given
            are refused, or the settings of a resumed search have changed.
        CheckpointError, DataError, DistributedError: see `pretrain`; these end the search.
        Stopped: a signal requested it; everything is saved.
    """
    search = _Search(settings, out, group)
    with ExitStack() as stack:
        stop_asked = stack.enter_context(stop_requests())
        on_first(group, lambda: search.prepare(stack, log, start), patiently=True)
        search.trials = [Trial(**t) for t in from_first(group, lambda: [asdict(t) for t in search.trials])]
        while len(search.trials) < search.settings.tune.trials:
            if any_of(group, stop_asked())[0]:
                done, planned = len(search.trials), search.settings.tune.trials
                raise Stopped(f"stopped after {done} of {planned} trials; everything is saved")
            values = from_first(group, search.next_values)
            if values is None:
                if group.is_first:
                    log(f"every combination in the space has been tried, after {len(search.trials)} trials")
                break
            search.add(search.run(values, log, stop_asked), log)
        return search.table() if group.is_first else ""


def check_space(settings: RunSettings) -> None:
    """Raise SettingsError, with the key, if a value is invalid with the other settings or does not affect training."""
    if not settings.tune.space:
        raise SettingsError(
            "tune.space names no setting to search; such as\n"
            "  tune: {space: {train.lr: {low: 0.003, high: 0.3, log: true}, method.temperature: [0.1, 0.2]}}"
        )
    for key, possible in settings.tune.space.items():
        for value in ends_of(key, possible):
            try:
                config.load(settings, [f"{key}={json.dumps(value)}"])
            except SettingsError as error:
                raise SettingsError(f"tune.space: {error}") from None
        if not key.startswith(_GROUPS) or key.startswith(HARMLESS):
            raise SettingsError(f"tune.space: {key} does not change the training; see docs/tune.md for what does")
    if settings.tune.epochs and "train.epochs" in settings.tune.space:
        raise SettingsError("tune.space has train.epochs, which tune.epochs would replace; leave one of them out")


@dataclass
class _Search:
    """The state of a search: the files on the first process, the trials on all."""

    settings: RunSettings
    out: Path
    group: Group
    trials: list[Trial] = field(default_factory=list)
    splits: dict[str, Split] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    draws: list[Floats] = field(default_factory=list)
    described: Tree = field(default_factory=dict)

    def prepare(self, stack: ExitStack, log: Callable[[str], None], start: StartMode) -> None:
        """Check the settings, lock the folder, and read the trials in it."""
        require_optuna()
        check_space(self.settings)
        loaded = load_manifest(self.settings.data, ("train", "val"))
        self.splits = {name: check_images(split, self.settings.data) for name, split in loaded.items()}
        self.labels = self._scored_labels()
        self.described = {
            "score": self._score_name(),
            "space": config.as_tree(self.settings.tune)["space"],
            "settings": portable_settings(self.settings),
            "manifests": {name: split.sha256 for name, split in self.splits.items()},
        }
        stack.enter_context(holding(self.out, log))
        claim(self.out, start)
        notices = [notice for split in self.splits.values() for notice in split.notices]
        for notice in [*notices, *overlap_notices(self.splits)]:
            log(notice)
        if start.resume:
            self._read()
        facts = {**facts_of(self.settings, self.splits["train"]), "processes": self.group.size}
        describe_run(self.out, prepare_context(self.settings), facts)
        self._write()

    def _scored_labels(self) -> list[int]:
        """Return the positions of the labels whose mean is the score."""
        names, chosen = self.splits["train"].label_names, self.settings.tune.label
        if chosen is not None and chosen not in names:
            raise SettingsError(f"tune.label {chosen} is not among data.labels: {', '.join(names) or 'there are none'}")
        reasons = {
            name: why
            for place, name in enumerate(names)
            for split in self.splits.values()
            if (why := undefined(split.labels[:, place]))
        }
        judged = [place for place, name in enumerate(names) if name not in reasons and chosen in (None, name)]
        if not judged:
            why = f"{chosen} is {reasons[chosen]}" if chosen else "none has positives and negatives in train and val"
            raise SettingsError(f"a search needs a label in data.labels to score by: {why}")
        return judged

    def _score_name(self) -> str:
        names = [self.splits["val"].label_names[place] for place in self.labels]
        shown = names[0] if len(names) == 1 else f"mean of {', '.join(names)}"
        return f"validation kNN AUROC ({shown}) after {self.trial_settings({}).train.epochs} epochs"

    def _read(self) -> None:
        try:
            saved = json.loads((self.out / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if (self.out / CHECKPOINTS).exists():
                raise SettingsError(f"{self.out} holds a run that is not a search; choose another --out") from None
            return
        except (OSError, ValueError) as error:
            raise _damaged(RECORD, error) from None
        _refuse_changes(saved, self.described)
        self.trials = [Trial(**trial) for trial in saved["trials"]]
        if not self.trials:
            return
        try:
            self.draws = list(np.load(self.out / DRAWS)[: len(self.trials)])
        except (OSError, ValueError) as error:
            raise _damaged(DRAWS, error) from None

    def _write(self) -> None:
        """Write tune.json and best.yaml; the draws first, as tune.json determines how many of them are valid."""
        winner = compare(self.trials, np.array(self.draws)) if self.trials else None
        with explaining_disk_errors():
            if self.draws:
                with replacing(self.out / DRAWS) as temporary, temporary.open("wb") as file:
                    np.save(file, np.array(self.draws))
            trials = [asdict(trial) for trial in self.trials]
            if winner:
                best = config.as_tree(self._with(winner["values"]))
                text = config.to_yaml({k: v for k, v in best.items() if k != "tune"})
                with replacing(self.out / BEST) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            write_json(self.out / RECORD, {**self.described, "trials": trials, "winner": winner})

    def _with(self, values: Tree) -> RunSettings:
        return config.load(self.settings, [f"{key}={json.dumps(value)}" for key, value in values.items()])

    def trial_settings(self, values: Tree) -> RunSettings:
        """Return the settings of a trial, which is scored once, at its end."""
        epochs = {"train.epochs": self.settings.tune.epochs} if self.settings.tune.epochs else {}
        folder = self.out / f"trial-{len(self.trials):03d}"
        return self._with({"out": as_written(folder), "train.knn_every": 0, "train.patience": None, **epochs, **values})

    def next_values(self) -> Tree | None:
        """Return the values of the next trial: of the first as given, of others as proposed."""
        space = self.settings.tune.space
        if self.trials:
            return propose(space, self.trials, self.settings.seed)
        given = dict(config.flatten(config.as_tree(self.settings)))
        return {key: given[key] for key in space}

    def run(self, values: Tree, log: Callable[[str], None], stop_asked: Callable[[], bool]) -> Trial:
        """Pretrain with the values and score the encoder; a trial that is refused or diverges counts as failed.

        Raises:
            SettingsError: the settings as given are refused.
        """
        number, start = len(self.trials), time.monotonic()
        if self.group.is_first:
            log(f"trial {number} of {self.settings.tune.trials}: {words_of(values)}")
        try:
            settings = self.trial_settings(values)
            resume = from_first(self.group, (settings.out / CONFIG).is_file)
            backbone = pretrain(
                settings, monitor=knn_monitor, start=StartMode(resume=resume), group=self.group, estimate=False
            )
        except (DivergedError, SettingsError) as error:
            if number == 0 and isinstance(error, SettingsError):
                raise
            self.draws.append(np.full(self.settings.evaluate.bootstrap, np.nan))
            return Trial(number, values, seconds=round(time.monotonic() - start, 1), failed=_reason(error))

        def scored() -> dict[str, Any]:
            return self._score(backbone, settings, stop_asked)

        found = from_first(self.group, scored, patiently=True)
        return Trial(number, values, **found, seconds=round(time.monotonic() - start, 1))

    def _score(self, backbone: Backbone, settings: RunSettings, stop_asked: Callable[[], bool]) -> dict[str, Any]:
        train, val = self.splits["train"], self.splits["val"]
        unusable = Quarantine(settings.out, settings.data.bad_images_budget).rows()
        splits = {"train": train.select(~np.isin(train.rows, unusable)), "val": val}
        scores = validation_scores(backbone, splits, settings, stop_asked)[:, self.labels]
        targets, chosen = val.labels[:, self.labels].astype(np.float64), self.settings.evaluate
        pairs = list(zip(targets.T, scores.T, strict=True))
        value = float(np.mean([auroc(*pair) for pair in pairs]))
        draws: Floats = np.mean(
            [bootstrap_auroc(*pair, val.patients, draws=chosen.bootstrap, seed=settings.seed) for pair in pairs], axis=0
        )
        self.draws.append(draws)
        limits = share_interval(value, draws)
        return {"score": value, "low": or_none(limits.low), "high": or_none(limits.high)}

    def add(self, trial: Trial, log: Callable[[str], None]) -> None:
        """Add a trial and its result, write the files, and delete checkpoints that are no longer needed."""
        self.trials.append(trial)
        if not self.group.is_first:
            return
        best = best_of(self.trials)
        assert best is None or best.score is not None
        log(f"{line_of(trial)}; best so far {'none' if best is None else f'{best.score:.3f} (trial {best.number})'}")
        self._write()
        self._tidy({0} if best is None else {0, best.number})

    def _tidy(self, kept: set[int]) -> None:
        """Delete all checkpoints except the last ones of the settings as given and of the best trial."""
        for trial in self.trials:
            folder = self.out / f"trial-{trial.number:03d}" / CHECKPOINTS
            if trial.number in kept:
                keep_newest(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def table(self) -> str:
        """Return the table of all trials and the verdict."""
        return table(self.trials, compare(self.trials, np.array(self.draws)), self.described["score"])


def _refuse_changes(saved: Tree, now: Tree) -> None:
    """Raise SettingsError if new trials of a resumed search could not be compared with its previous ones."""
    # A search from before a setting existed, or after it was retired, used its default.
    before, after = (portable_defaults() | described["settings"] | described["manifests"] for described in (saved, now))
    changed = [
        f"{key}: was {shown(key, before)}, now {shown(key, after)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_HARMLESS)
    ]
    if changed:
        raise SettingsError("\n".join([
            "--resume: the search was started with other settings or data, so trials could not be compared:",
            *changed[:3], "Undo the change, or start a new search in another folder.",
        ]))  # fmt: skip


def _damaged(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} of the search cannot be read: {first_line(error)}\nRestore it, or start a new search with --overwrite."
    )


def _reason(error: MedmocoError) -> str:
    """Return an error in one line, without the line that names the settings file."""
    lines = str(error).splitlines()
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
