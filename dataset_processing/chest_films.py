"""Rebuild the films in manifests/chest_films from the published archive of Kermany et al. 2018.

The tables there name the film in the archive from which each small film is made. Films are squeezed to a square,
because in this data set the shape of the film alone predicts the label.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import pandas as pd

FOLDER = Path(__file__).parents[1] / "manifests" / "chest_films"
SIZE = 96
QUALITY = 85


def shrink(file: Path) -> bytes:
    """Return a film as a grayscale JPEG of SIZE x SIZE pixels.

    Raises:
        SystemExit: the file is not an image.
    """
    film = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    if film is None:
        sys.exit(f"{file.name} cannot be read as an image; download the archive again")
    small = cv2.resize(film, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return content.tobytes()


def rebuild(source: Path, out: Path) -> int:
    """Write the films of all splits and return their number.

    Args:
        source: Folder of the archive with train/NORMAL, train/PNEUMONIA and so on.
        out: Folder to which the Paths of the tables are relative.

    Raises:
        SystemExit: a film is missing from the archive, or damaged.
    """
    table = pd.concat([pd.read_csv(FOLDER / f"{split}.csv", dtype=str) for split in ("train", "val", "test")])
    missing = [name for name in table["Source"] if not (source / name).is_file()]
    if missing:
        sys.exit(
            f"{len(missing):,} of {len(table):,} films are not in {source}, the first being {missing[0]}; give the"
            " folder that contains train/ and test/ of the archive"
        )
    for name, path in zip(table["Source"], table["Path"], strict=True):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(shrink(source / name))
    return len(table)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Rebuild the films in manifests/chest_films.")
    parser.add_argument("--source", type=Path, required=True, help="folder of the archive with train/ and test/")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write the films to")
    arguments = parser.parse_args()
    number = rebuild(arguments.source, arguments.out)
    print(f"wrote {number:,} films to {arguments.out}")


if __name__ == "__main__":
    main()
