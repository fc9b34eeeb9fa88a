from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medmoco import config
from medmoco.datasets.phantoms.phantom import phantom
from medmoco.errors import ManifestError, SettingsError
from medmoco.training.slurm import Resources, job_script, write_job
from tests.helpers.together import free_port

ROOT = Path(__file__).parents[2]

# What SLURM does: start one process for each task, tell each who it is, and end with the highest exit code.
SRUN = r"""#!/bin/bash
echo "srun $SLURM_JOB_ID $*" >> "$CALLS"
while [[ "$1" == --* ]]; do shift; done
processes=()
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NODELIST=localhost "$@" &
    processes+=($!)
    echo "started $!" >> "$CALLS"
done
highest=0
for process in "${processes[@]}"; do
    wait "$process"
    code=$?
    ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = r"""#!/bin/bash
echo "scontrol $*" >> "$CALLS"
exit "$SCONTROL_CODE"
"""
# Stands for Python in what is about the job alone: notes what it is told, leaves a status, and ends.
PYTHON = r"""#!/bin/bash
echo "python $SLURM_PROCID $PWD $OMP_NUM_THREADS $NCCL_DEBUG $(printf '[%s]' "$@")" >> "$CALLS"
mkdir -p runs/cxr
[ -z "$STATE" ] || printf '{\n  "state": "%s",\n  "step": 3\n}\n' "$STATE" > runs/cxr/status.json
exit "$CODE"
"""


def _executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def _header(script: str) -> dict[str, str]:
    """Read the options for sbatch as it does: up to the first line that is no comment, split as by a shell."""
    options = {}
    for line in script.splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.removeprefix("--").partition("=")
            options[name] = value
    return options


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder, with a space in its name, that a user stands in beside a settings file."""
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "train.csv").write_text("Path\n" + "".join(f"{number}.png\n" for number in range(40)))
    (folder / "cxr.yaml").write_text("""
out: runs/cxr
data: {manifest: ., root: images, workers: 3}
method: {queue_size: 32}
train: {global_batch_size: 24}
""")
    return folder


def _write(overrides: tuple[str, ...] = (), resources: Resources | None = None, out: str = "job.sbatch") -> str:
    settings = config.load(Path("cxr.yaml"), overrides)
    return write_job(Path(out), Path("cxr.yaml"), overrides, settings, resources or Resources())


def _start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start job.sbatch as a node does; what it calls is noted in the file `calls`."""
    script = (folder / "job.sbatch").read_text()
    header = _header(script)
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    _executable(tools / "srun", SRUN)
    _executable(tools / "scontrol", SCONTROL)
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    tasks = int(header["nodes"]) * int(header["ntasks-per-node"])
    told = {
        "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "SCONTROL_CODE": "0", "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": str(tasks), "SLURM_CPUS_PER_TASK": header["cpus-per-task"],
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", folder / "job.sbatch"], cwd=header["chdir"], env={**os.environ, **told, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _calls(folder: Path, program: str) -> list[str]:
    return [line for line in (folder / "calls").read_text().splitlines() if line.startswith(f"{program} ")]


# ---- what is written ----


@pytest.mark.parametrize(
    "resources",
    [Resources(), Resources(2, 4, 71.5, 6, "128G", "gpu long", "p'1")],
    ids=["one node", "several nodes, awkward names"],
)
def test_job_script__is_valid_shell(place: Path, resources: Resources) -> None:
    _write(("train.global_batch_size=32", "evaluate.where=Age >= 18 and View in ('PA', AP)"), resources)
    subprocess.run(["bash", "-n", "job.sbatch"], check=True)


def test_job_script__asks_for_what_is_wanted(place: Path) -> None:
    _write(("out=runs/run 2",), Resources(nodes=2, gpus=3, hours=71.5, memory="128G", account="p'1"))
    header = _header((place / "job.sbatch").read_text())
    assert header == {
        "job-name": "run 2", "account": "p'1", "mem": "128G", "time": "71:30:00", "nodes": "2", "ntasks-per-node": "3",
        "gres": "gpu:3", "cpus-per-task": "4", "chdir": str(place), "output": "%x-%j.out", "signal": "USR1@300",
        "requeue": "", "open-mode": "append",
    }  # fmt: skip


def test_job_script__names_a_network_only_between_nodes(place: Path) -> None:
    settings = config.load(Path("cxr.yaml"))
    one, two = (
        job_script(Path("cxr.yaml"), (), settings, Resources(nodes), python=Path("python"), folder=place)
        for nodes in (1, 2)
    )
    assert "NCCL_SOCKET_IFNAME" not in one
    assert "NCCL_SOCKET_IFNAME" in two


def test_write_job__says_what_each_gpu_gets_and_how_to_submit(place: Path) -> None:
    assert _write(resources=Resources(nodes=2, gpus=4), out="a job") == (
        "a job: 2 nodes with 4 GPUs each, 3 of the 24 images of a batch on each GPU\n"
        "Review the file, then submit it with: sbatch 'a job'"
    )


@pytest.mark.parametrize(
    ("overrides", "resources", "expected"),
    [
        ((), Resources(nodes=5), "5 processes.*Set it to a multiple of 5, such as 25"),
        (("method.queue_size=9999",), Resources(), "method.queue_size 9999 exceeds"),
        ((), Resources(partition="a\n#SBATCH --exclusive"), "--partition of the job would be 'a"),
        (('out="a\\nb"',), Resources(), "--job-name of the job would be"),
    ],
)
def test_write_job__refuses_what_can_never_work(
    place: Path, overrides: tuple[str, ...], resources: Resources, expected: str
) -> None:
    with pytest.raises(SettingsError, match=f"(?s){expected}"):
        _write(overrides, resources)
    assert not (place / "job.sbatch").exists()


def test_write_job__refuses_a_manifest_that_is_not_there(place: Path) -> None:
    with pytest.raises(ManifestError, match="absent"):
        _write(("data.manifest=absent",))


def test_write_job__keeps_a_file_that_is_there(place: Path) -> None:
    (place / "job.sbatch").write_text("mine")
    with pytest.raises(SettingsError, match=r"job\.sbatch exists"):
        _write()
    assert (place / "job.sbatch").read_text() == "mine"
    with pytest.raises(SettingsError, match=r"absent/job\.sbatch cannot be written: No such file"):
        _write(out="absent/job.sbatch")


# ---- what it does ----


@pytest.mark.parametrize(
    ("state", "code", "requeued"),
    [
        ("stopped", 75, True),
        ("stopped", 1, True),  # behind torchrun
        ("stopped", 137, True),  # saved, then hung and killed
        ("done", 0, False),
        ("failed", 5, False),
        ("running", 137, False),
        ("", 2, False),  # ended before it wrote anything: the word below is of an earlier start
    ],
)
def test_job__queues_again_only_when_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, state: str, code: int, requeued: bool
) -> None:
    _executable(place / "python", PYTHON)
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    _write()
    (place / "runs/cxr").mkdir(parents=True)
    (place / "runs/cxr/status.json").write_text('{"state": "stopped"}')
    job = _start(place, STATE=state, CODE=str(code))
    _, complaints = job.communicate(timeout=60)
    assert job.returncode == code
    assert _calls(place, "scontrol") == ["scontrol requeue 4711"] * requeued
    assert not complaints


def test_job__says_so_where_it_cannot_queue_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _executable(place / "python", PYTHON)
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    _write()
    job = _start(place, STATE="stopped", CODE="75", SCONTROL_CODE="1")
    words, _ = job.communicate(timeout=60)
    assert job.returncode == 75
    assert "submit the job once more" in words


def test_job__starts_a_process_for_each_gpu_with_the_words_as_given(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _executable(place / "py'thon", PYTHON)
    monkeypatch.setattr(sys, "executable", str(place / "py'thon"))
    where = "evaluate.where=Age >= 18 and View in ('PA', \"AP\")"
    _write((where, "train.lr=0.1"), Resources(nodes=2, gpus=2))
    _start(place, STATE="done", CODE="0").communicate(timeout=60)
    words = ["pretrain", "--config", str(place / "cxr.yaml"), where, "train.lr=0.1", "--resume"]
    said = "".join(f"[{word}]" for word in ("-P", "-m", "medmoco", *words))
    assert sorted(_calls(place, "python")) == [f"python {rank} {place} 4 WARN {said}" for rank in range(4)]
    assert "--cpus-per-task=4" in _calls(place, "srun")[0]


@pytest.mark.slow
def test_job__saves_queues_again_and_goes_on_to_the_end(place: Path) -> None:
    phantom(place / "data", patients=40, image_size=64, seed=0)
    small = (
        "data.manifest=data", "data.root=data/{split}", "data.canvas_size=40", "data.workers=1", "views.size=32",
        "model.backbone=resnet10t", "train.device=cpu", "train.epochs=6", "train.checkpoint_every=1",
    )  # fmt: skip
    _write(small, Resources(gpus=2))
    checkpoints = place / "runs/cxr/checkpoints"

    job = _start(place, MASTER_PORT=str(free_port()))
    deadline = time.monotonic() + 300
    while job.poll() is None and time.monotonic() < deadline and not any(checkpoints.glob("step-*.pt")):
        time.sleep(0.1)
    for line in _calls(place, "started"):
        os.kill(int(line.split()[1]), signal.SIGUSR1)
    _, complaints = job.communicate(timeout=600)
    assert job.returncode == 75, complaints
    assert _calls(place, "scontrol") == ["scontrol requeue 4711"]
    step = json.loads((place / "runs/cxr/status.json").read_text())["step"]
    assert 0 < step < 12

    job = _start(place, MASTER_PORT=str(free_port()))
    _, complaints = job.communicate(timeout=600)
    assert job.returncode == 0, complaints
    assert _calls(place, "scontrol") == []
    assert f"from step {step}, 2 processes" in complaints
    assert json.loads((place / "runs/cxr/status.json").read_text())["state"] == "done"


def test_page__shows_what_is_written() -> None:
    """The batch files in docs/cluster.md are what the command before each of them writes."""
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    shown = re.findall(r"^medmoco slurm ([^\n]*)\n```\n\nwrites\n\n```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 2
    folder, python = Path("/projects/chest"), Path("/envs/medmoco/bin/python")
    for command, script in shown:
        words = command.split()
        overrides = [word for word in words if "=" in word]
        numbers = {name: int(value) for name, value in re.findall(r"--(nodes|gpus|hours) (\d+)", command)}
        file = Path(words[words.index("--config") + 1])
        settings = config.load(ROOT / file, overrides)
        written = job_script(file, overrides, settings, Resources(**numbers), python=python, folder=folder)
        assert script == written
