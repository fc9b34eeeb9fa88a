from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from medmoco import __version__
from medmoco.errors import DataError, SettingsError
from medmoco.utils.jobs import cluster as cluster_module
from medmoco.utils.jobs.cluster import Needs, absolute, first_existing, on_cluster
from tests.helpers.dask_cluster import Part, connected, die_at_once, on_dask, running, touch, wait_for_workers

PARTS = [Part(number) for number in range(12)]


def never() -> bool:
    return False


@on_dask
def test_run__makes_each_part_once_until_asked_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, image = tmp_path / "out", tmp_path / "image.png"
    out.mkdir()
    make, needs = partial(touch, out), Needs(out, {"the images": str(image)})
    with running(tmp_path / "cluster") as cluster, connected(cluster.address) as dask:
        with pytest.raises(SettingsError, match="the scheduler has no workers"):
            list(dask.run(make, PARTS, never, Needs(out)))
        cluster.start_worker()
        wait_for_workers(cluster.address, 1)
        with pytest.raises(SettingsError, match=r"cannot read the images,\nwhich must be accessible to all workers"):
            list(dask.run(make, PARTS, never, needs))
        image.touch()
        with monkeypatch.context() as patched:
            patched.setattr(cluster_module, "__version__", "9.9")
            with pytest.raises(SettingsError, match=r"has medmoco .*, not 9\.9; install the same version"):
                list(dask.run(make, PARTS, never, needs))
        assert not list(out.iterdir())
        assert list(dask.run(make, [], never, needs)) == []
        assert list(dask.run(make, PARTS, never, needs)) == [2] * 12
        assert {file.name for file in out.iterdir()} == {str(part.number) for part in PARTS}
        (out / "5").unlink()
        some: list[int] = []
        for images in dask.run(make, PARTS, lambda: bool(some), needs):
            some.append(images)
        assert 0 < len(some) < 12


@on_dask
def test_run__a_part_that_kills_its_workers(tmp_path: Path) -> None:
    with (
        running(tmp_path / "cluster", 1, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as cluster,
        connected(cluster.address) as dask,
        pytest.raises(DataError, match=r"part 0: every Dask worker that tried to make it died"),
    ):
        list(dask.run(die_at_once, PARTS[:1], never, Needs(tmp_path)))


def test_make_part__a_worker_that_joins_late_is_checked_too(tmp_path: Path) -> None:
    here = Needs(tmp_path, {"the images": str(tmp_path), "the encoder": ""})
    assert cluster_module._make_part(partial(touch, tmp_path), Part(1), here, __version__) == 2
    for needs, version in (
        (here, "9.9"),
        (Needs(tmp_path, {"the images": str(tmp_path / "elsewhere.png")}), __version__),
        (Needs(tmp_path / "elsewhere"), __version__),
    ):
        with pytest.raises(SettingsError, match="--dask: the worker on"):
            cluster_module._make_part(partial(touch, tmp_path), Part(2), needs, version)
    assert not (tmp_path / "2").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_on_cluster__no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no scheduler answers at this address"), on_cluster("127.0.0.1:port"):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingsError, match=r"pip install distributed"), on_cluster("tcp://127.0.0.1:9"):
        pass
    with on_cluster(None) as cluster:
        assert cluster is None


def test_first_existing__is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.png").touch()
    assert first_existing(["a.png", "b.png"]) == str(tmp_path / "b.png")
    assert first_existing(["a.png"]) == ""
    assert absolute(["a.png", "/b/../c.png"]) == [str(tmp_path / "a.png"), "/b/../c.png"]
