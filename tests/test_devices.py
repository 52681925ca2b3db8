"""Two processes train a model to the result of one process. Gloo, on this machine."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from qkvbench import tasks
from qkvbench.backends.torch import Learner
from qkvbench.cli import main
from qkvbench.cli.train import read_experiment
from qkvbench.experiment import Experiment
from qkvbench.task_ref import TaskRef
from qkvbench.train.checkpoint import join_shards
from ranks import CASES, STEPS, begun, experiment, learned

MOVED = "plain q,k=R(q),v"
HERE = Path(__file__).parent
# fp32: sums in another order. bf16 and fp16: gradients of parts are rounded before they are added,
# by 2^-8 and 2^-11, and twenty steps of 1e-3 carry that on.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The results of two processes, in all cases and both shardings."""
    path = tmp_path_factory.mktemp("ranks") / "told.npz"
    save_file(begun(experiment(MOVED))[0].state(), path.with_name("one.safetensors"))
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *start, str(HERE / "ranks.py"), str(path), *CASES]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env={**os.environ, "WORLD_SIZE": ""}
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_as_one_does(case, two_processes):
    alone, precision = learned(experiment(case)), experiment(case).precision
    clip = experiment(case).training.clip
    assert alone["steps"].shape == (STEPS, 2)
    assert clip == 1.0 or (alone["steps"][:, 1] > clip).all(), "nothing was clipped"
    results = np.load(two_processes)
    for sharding in ("ddp", "fsdp"):
        steps = results[f"{case}/{sharding}/steps"]
        for told, own in (
            (steps, alone["steps"]),
            (results[f"{case}/{sharding}/loss"], alone["loss"]),
        ):
            np.testing.assert_allclose(
                told, own, rtol=TOLERANCE[precision], atol=TOLERANCE[precision]
            )


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_state_of_two_processes_loads_in_one_and_the_reverse(sharding, two_processes):
    results, folder = np.load(two_processes), two_processes.with_name(sharding)
    assert len(list(folder.glob("shard-*.safetensors"))) == 2
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    learner, batch = begun(experiment(MOVED))
    here = learner.gradients(batch)
    other = Learner(experiment(MOVED))
    other.restore(join_shards(files))
    # Sums in another order, of numbers near 1.
    for found in (
        other.gradients(batch),
        results[f"{sharding}/here"],
        results[f"{sharding}/from one"],
    ):
        np.testing.assert_allclose(found, here, rtol=1e-6)


@pytest.mark.slow
def test_torch_s_reader_reads_the_state_of_two_processes(two_processes):
    learner = Learner(experiment(MOVED))
    tensors = learner.training_state.live_tensors()
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    reader = HuggingFaceStorageReader(str(two_processes.with_name("fsdp")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(state, storage_reader=reader, no_dist=True)
    files = {path.name: path.read_bytes() for path in two_processes.with_name("fsdp").iterdir()}
    read = join_shards(files)
    assert all((read[name] == tensor.numpy()).all() for name, tensor in state.items())


def test_incomplete_shards_are_refused():
    head = {"DCP_SHARDING_INFO": '{"w": {"saved_offsets": [2]}}'}
    part = save({"w": np.ones(3, np.float32)}, metadata=head)
    with pytest.raises(ValueError, match="a part of w is missing"):
        join_shards({"shard-2.safetensors": part})


def test_devices_are_part_of_the_identity_of_an_experiment():
    one = experiment("plain q,k=v")
    two = replace(one, devices=2)
    assert len({one.id, two.id, replace(two, sharding="fsdp").id}) == 3
    assert "2 devices by fsdp" in replace(two, sharding="fsdp").execution


def test_a_contrastive_batch_is_not_split_over_devices():
    task = tasks.find("clip")
    with pytest.raises(ValueError, match="leave out micro-batches and devices"):
        Experiment(task.model, TaskRef("clip"), task.version, task.training, seed=0, devices=2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"devices": 14}, "take from 1 to 13"),
        ({"devices": 2, "compiled": True}, "leave out --compile or --devices"),
        ({"sharding": "fsdp"}, "take --devices 2 or more"),
    ],
    ids=str,
)
def test_experiments_that_cannot_use_devices_are_refused_in_words(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(experiment("plain q,k=v"), **changed)


TINY = ["run", "--variants", "q,k=v", "--tasks", "digits", "--seeds", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TINY, "--sharding", "fsdp"], "take --devices 2 or more"),
        ([*TINY, "--devices", "2", "--sharding", "fdsp"], "Did you mean fsdp?"),
        ([*TINY, "--devices", "99"], "take from 1 to 32"),
        (["train", "nowhere.json", "--out", "none"], "No such file"),
    ],
    ids=str,
)
def test_requests_for_devices_are_refused_in_words(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_files_of_a_study_are_experiments_for_torchrun(tmp_path):
    assert main([*TINY, "--devices", "2", "--files", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    wanted = read_experiment(path)
    assert (wanted.devices, wanted.id) == (2, path.stem)


def test_as_many_processes_as_devices_must_be_started(tmp_path, monkeypatch, capsys):
    main([*TINY, "--devices", "2", "--files", str(tmp_path)])
    monkeypatch.setenv("WORLD_SIZE", "3")
    (path,) = tmp_path.iterdir()
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "3 processes were started" in capsys.readouterr().err
