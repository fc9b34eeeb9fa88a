from __future__ import annotations

from pathlib import Path

import numpy as np

from medmoco.data.pack.pack import ROW, VOLUME_ROW
from medmoco.data.pack.pack_records import fill, read_list, result_of, write_list
from medmoco.data.pack.pack_shards import ImageResult, VolumeResult

VOLUMES = [
    ImageResult(0, 0, 9, "a" * 64, ("dark", "small"), "", VolumeResult(100, (3, 4, 5), (0.1, 0.2, 0.3), 1)),
    ImageResult(failure="damaged"),
    ImageResult(0, 0, 8, "b" * 64, (), "", VolumeResult(50, (6, 4, 5), (1.0, 1.0, 2.0), 2)),
]
IMAGES = [ImageResult(5, 7, 9, "a" * 64, ("dark", "small")), ImageResult(failure="damaged")]


def test_fill__results_can_be_read_back(tmp_path: Path) -> None:
    for kind, images in ((ROW, IMAGES), (VOLUME_ROW, VOLUMES)):
        rows = np.zeros(len(images), kind)
        rows["split"], rows["row"] = b"val", np.arange(len(images)) + 2
        fill(rows, images)
        write_list(tmp_path / "n", "notice", [("val", at + 2, n) for at, i in enumerate(images) for n in i.notices])
        write_list(tmp_path / "f", "reason", [("val", at + 2, i.failure) for at, i in enumerate(images) if i.failure])
        lists = read_list(tmp_path / "n"), read_list(tmp_path / "f")
        assert [result_of(row, *lists) for row in rows] == images
    assert rows["start"].tolist() == [0, 100, 100]
