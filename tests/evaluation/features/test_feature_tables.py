from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medmoco.config import RunSettings
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import CheckpointError, ImageError, ManifestError, SettingsError, Stopped
from medmoco.evaluation.features import feature_tables
from medmoco.evaluation.features.embedding import Outputs
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.feature_tables import embed, write_features
from tests.helpers.dask_cluster import on_dask, running
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
def test_embed__writes_rows_and_features_alone(manifest: Path, suffix: str) -> None:
    settings, out = make_settings(manifest), manifest.parent / "new" / f"f{suffix}"
    table = embed(settings, "random", out)
    rows, features = read(out)
    assert rows.tolist() == list(range(2, 12))
    np.testing.assert_array_equal(features, load_encoder("random", settings).embed("test"))
    assert list(table)[:2] == ["row", "feature_0"]
    assert SECRET.encode() not in out.read_bytes()
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_embed__copies_the_columns_named(manifest: Path, suffix: str) -> None:
    out = manifest.parent / f"f{suffix}"
    embed(make_settings(manifest), "random", out, split="val", columns=["Class", "PatientID"])
    if suffix == ".npz":
        with np.load(out) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        assert list(found) == ["features", "row", "Class", "PatientID"]
    else:
        found = pd.read_parquet(out) if suffix == ".parquet" else pd.read_csv(out)
        assert list(found)[:4] == ["row", "Class", "PatientID", "feature_0"]
    assert list(found["Class"])[:3] == ["well", "sick", "well"]
    with pytest.raises(ManifestError, match=r"no column Klass, which --columns names"):
        embed(make_settings(manifest), "random", out, columns=["Klass"])


def test_embed__unreadable_images_are_refused_or_put_in_quarantine(manifest: Path) -> None:
    (manifest / f"test-{SECRET}-3.png").write_bytes(b"no image")
    out = manifest.parent / "f.csv"
    with pytest.raises(ImageError, match=r"\nimage 5: "):
        embed(make_settings(manifest), "random", out)
    assert not out.exists()
    with pytest.warns(UserWarning, match=r"1 of 10 images .*: 5 \(of test\.csv\)"):
        embed(make_settings(manifest, "data.bad_images=quarantine"), "random", out)
    table = pd.read_csv(out)
    assert table.loc[table["error"].notna(), "row"].tolist() == [5]
    assert SECRET not in out.read_text()


def test_write_features__refuses_before_any_work(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_tables, "load_encoder", pytest.fail)
    settings = make_settings(manifest)
    with pytest.raises(SettingsError, match=r"has an unknown format; use one of \.parquet, \.npz, \.csv"):
        embed(settings, "random", manifest / "f.json")
    (manifest / "f.csv").mkdir()
    with pytest.raises(SettingsError, match="is a folder"):
        embed(settings, "random", manifest / "f.csv")
    monkeypatch.setattr(feature_tables, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install pyarrow"):
        embed(settings, "random", manifest / "f.parquet")


def test_write_features__what_the_disk_refuses(manifest: Path) -> None:
    (manifest / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"):
        write_features(pd.DataFrame({"row": [1], "feature_0": [0.5]}), manifest / "file" / "f.csv")


# ---- blocks of four rows ----


@pytest.fixture
def in_blocks(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a manifest whose test split has copies in two blocks: rows 3 and 10 are the same image."""
    monkeypatch.setattr(feature_tables, "BLOCK", 4)
    shutil.copy(manifest / f"test-{SECRET}-1.png", manifest / f"test-{SECRET}-8.png")
    return manifest


def small_batches(manifest: Path, *overrides: str) -> RunSettings:
    return make_settings(manifest, "evaluate.batch_size=2", *overrides)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Send SIGTERM after a number of batches."""
    real = feature_tables.compute_batches

    def interrupted(*given: Any) -> Iterator[Outputs]:
        for count, batch in enumerate(real(*given), 1):
            if count == after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(feature_tables, "compute_batches", interrupted)


@pytest.mark.parametrize("source", ["files", "pack"])
def test_embed__resumes_with_the_same_features(in_blocks: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    settings, out = small_batches(in_blocks), in_blocks / "f.npz"
    if source == "pack":
        make_pack(settings.data, in_blocks / "pack", lambda _: None)
        settings = small_batches(in_blocks, f"data.pack={in_blocks / 'pack'}")
    whole = load_encoder("random", settings).embed("test")
    np.testing.assert_array_equal(whole[1], whole[8])
    with monkeypatch.context() as patched:
        interrupt(patched, 3)
        with pytest.raises(Stopped, match=r"stopped computing features after 4 of 10 images"):
            embed(settings, "random", out)
    assert not out.exists()
    said: list[str] = []
    embed(settings, "random", out, log=said.append)
    assert said[-1].startswith("4 of 10 images are already finished")
    np.testing.assert_array_equal(read(out)[1], whole)
    assert not out.with_name("f.npz.unfinished").exists()


def test_embed__what_has_changed_is_computed_again(in_blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = in_blocks / "f.npz"
    with monkeypatch.context() as patched:
        interrupt(patched, 5)
        with pytest.raises(Stopped):
            embed(small_batches(in_blocks), "random", out)
    shutil.copy(in_blocks / f"test-{SECRET}-2.png", in_blocks / f"test-{SECRET}-5.png")
    said: list[str] = []
    embed(small_batches(in_blocks), "random", out, log=said.append)
    assert said[-1].startswith("4 of 10 images are already finished")
    np.testing.assert_array_equal(read(out)[1], load_encoder("random", small_batches(in_blocks)).embed("test"))
    with monkeypatch.context() as patched:
        interrupt(patched, 5)
        with pytest.raises(Stopped):
            embed(small_batches(in_blocks), "random", out)
    other = small_batches(in_blocks, "seed=5")  # another encoder
    embed(other, "random", out, log=said.append)
    assert said[-1] == "features of test: 10 images"
    np.testing.assert_array_equal(read(out)[1], load_encoder("random", other).embed("test"))


def test_embed__unreadable_images_in_finished_blocks(in_blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (in_blocks / f"test-{SECRET}-3.png").write_bytes(b"no image")
    out, tolerant = in_blocks / "f.csv", small_batches(in_blocks, "data.bad_images=quarantine")
    with monkeypatch.context() as patched:
        interrupt(patched, 3)
        with pytest.raises(Stopped):
            embed(tolerant, "random", out)
    with pytest.raises(ImageError, match=r"^1 of the first 10 images \(of test\.csv\) cannot be read;.*\nimage 5: "):
        embed(small_batches(in_blocks), "random", out)
    with pytest.warns(UserWarning, match=r"1 of 10 images .*: 5 \(of test\.csv\)"):
        table = embed(tolerant, "random", out)
    assert table.loc[table["error"] != "", "row"].tolist() == [5]
    assert table.filter(like="feature_").isna().all(axis=1).tolist() == [row == 5 for row in range(2, 12)]


@on_dask
def test_embed__on_a_cluster_features_are_the_same(
    in_blocks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = small_batches(in_blocks)
    encoder = load_encoder("random", settings)
    weights = tmp_path / "weights.pth"
    torch.save(encoder.module.net.state_dict(), weights)
    monkeypatch.chdir(tmp_path)
    embed(settings, weights.name, Path("local.npz"))
    make_pack(settings.data, Path("pack"), lambda _: None)
    with running(tmp_path / "cluster", 2, OMP_NUM_THREADS=str(torch.get_num_threads())) as cluster:
        address = cluster.address
        for overrides in ([], ["data.pack=pack"], ["data.bad_images=quarantine"]):
            embed(small_batches(in_blocks, *overrides), weights.name, Path("dask.npz"), dask=address)
            np.testing.assert_array_equal(read(Path("dask.npz"))[1], read(Path("local.npz"))[1])
        cluster.processes[1].kill()
        embed(settings, weights.name, Path("dask.csv"), dask=address)
        sent = feature_tables._Job(encoder, str(weights), "raise").for_workers()
        with pytest.raises(CheckpointError, match=r"the encoder has other weights than here"):
            feature_tables._load_once(sent._replace(sha256="other"))
        monkeypatch.setattr(feature_tables, "absolute", lambda files: [f"/elsewhere{file}" for file in files])
        with pytest.raises(SettingsError, match="cannot read the encoder"):
            embed(settings, weights.name, Path("no.npz"), dask=address)
    assert not list(tmp_path.glob("*.unfinished"))
