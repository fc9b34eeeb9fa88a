from __future__ import annotations

import pytest
import torch
from torch import nn

from medmoco import config
from medmoco.training.early_stopping import Best, loop_settings


def test_best__keeps_the_weights_of_the_first_best_epoch() -> None:
    best, model = Best(), nn.Linear(1, 1, bias=False)
    for score in (0.5, 0.8, 0.7, 0.8):
        model.weight.data.fill_(score)
        best.take(score, model)
    model.weight.data.fill_(9.0)
    assert (best.epoch, best.score, best.validated) == (1, 0.8, 4)
    assert best.model["weight"].item() == pytest.approx(0.8)
    again = Best(**vars(best))
    assert (again.epoch, again.validated) == (1, 4)
    assert torch.equal(again.model["weight"], best.model["weight"])


@pytest.mark.parametrize(("patience", "ends_after"), [(0, None), (1, 2), (2, 5), (3, None)])
def test_is_final__after_so_many_epochs_without_a_better_one(patience: int, ends_after: int | None) -> None:
    best, ended = Best(), None
    assert not best.is_final(patience)
    for number, score in enumerate((0.5, 0.4, 0.6, 0.6, 0.1, 0.7, 0.2), 1):
        best.take(score, nn.Identity())
        if ended is None and best.is_final(patience):
            ended = number
    assert ended == ends_after


def test_loop_settings__leave_the_scores_of_pretraining_out_and_load_again() -> None:
    base = ["out=a", "data.manifest=m", "data.root=r", "data.labels=[A]", "train.patience=2"]
    splits = ["method.batch_norm_splits=8", "finetune.global_batch_size=4"]  # eight groups of a batch of 256
    settings = config.load(None, [*base, *splits])
    again = loop_settings(settings, settings.finetune)
    assert (again.train.knn_every, again.train.patience) == (0, None)
    assert config.load(config.as_tree(again)) == again
