from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medmoco.errors import ImageError, ManifestError, SettingsError
from medmoco.evaluation.features import feature_tables
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.feature_tables import embed_split, write_features
from tests.helpers.supervised import SECRET, make_settings, write_images


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and features."""
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return arrays["row"], arrays["features"]
    table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    return table["row"].to_numpy(), table.filter(like="feature_").to_numpy(np.float32)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_embed_split__writes_rows_and_features_alone(manifest: Path, suffix: str) -> None:
    settings, out = make_settings(manifest), manifest.parent / "new" / f"f{suffix}"
    table = embed_split(settings, "random", out)
    rows, features = read(out)
    assert rows.tolist() == list(range(2, 12))
    np.testing.assert_array_equal(features, load_encoder("random", settings).embed("test"))
    assert list(table)[:2] == ["row", "feature_0"]
    assert SECRET.encode() not in out.read_bytes()
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_embed_split__copies_the_columns_named(manifest: Path, suffix: str) -> None:
    out = manifest.parent / f"f{suffix}"
    embed_split(make_settings(manifest), "random", out, split="val", columns=["Class", "PatientID"])
    if suffix == ".npz":
        with np.load(out) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        assert list(found) == ["features", "row", "Class", "PatientID"]
    else:
        found = pd.read_parquet(out) if suffix == ".parquet" else pd.read_csv(out)
        assert list(found)[:4] == ["row", "Class", "PatientID", "feature_0"]
    assert list(found["Class"])[:3] == ["well", "sick", "well"]
    with pytest.raises(ManifestError, match=r"no column Klass, which --columns names"):
        embed_split(make_settings(manifest), "random", out, columns=["Klass"])


def test_embed_split__unreadable_images_are_refused_or_put_in_quarantine(manifest: Path) -> None:
    (manifest / f"test-{SECRET}-3.png").write_bytes(b"no image")
    out = manifest.parent / "f.csv"
    with pytest.raises(ImageError, match=r"\nimage 5: "):
        embed_split(make_settings(manifest), "random", out)
    assert not out.exists()
    with pytest.warns(UserWarning, match=r"1 of 10 images .*: 5 \(of test\.csv\)"):
        embed_split(make_settings(manifest, "data.bad_images=quarantine"), "random", out)
    table = pd.read_csv(out)
    assert table.loc[table["error"].notna(), "row"].tolist() == [5]
    assert SECRET not in out.read_text()


def test_write_features__refuses_before_any_work(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_tables, "load_encoder", pytest.fail)
    settings = make_settings(manifest)
    with pytest.raises(SettingsError, match=r"has an unknown format; use one of \.parquet, \.npz, \.csv"):
        embed_split(settings, "random", manifest / "f.json")
    (manifest / "f.csv").mkdir()
    with pytest.raises(SettingsError, match="is a folder"):
        embed_split(settings, "random", manifest / "f.csv")
    monkeypatch.setattr(feature_tables, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install pyarrow"):
        embed_split(settings, "random", manifest / "f.parquet")


def test_write_features__what_the_disk_refuses(manifest: Path) -> None:
    (manifest / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"):
        write_features(pd.DataFrame({"row": [1], "feature_0": [0.5]}), manifest / "file" / "f.csv")
