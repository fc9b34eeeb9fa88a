"""From files of several channels to a verified export: what no test of one stage sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from medmoco import config
from medmoco.data.audit import check
from medmoco.data.pack_writing import make_pack
from medmoco.evaluation.evaluate import evaluate
from medmoco.exporting import prepare
from medmoco.exporting.export import export
from medmoco.exporting.sources import from_classifier, from_run
from medmoco.exporting.verify import verify
from medmoco.training.pretrain import pretrain
