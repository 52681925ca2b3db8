"""A damaged checkpoint is detected by its hash, named and set aside; the one before is used."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest

from faults.runs import (
    TRAINING,
    Numbers,
    every_step,
    experiment,
    left_over,
    progress,
    repeatable,
    save_steps,
)
from qkvbench.backends import SingleProcess
from qkvbench.data.cache import sha256_of
from qkvbench.train import checkpoint
from qkvbench.train.checkpoint import CheckpointError, Checkpoints
from qkvbench.train.run import run

FILES = ("state.safetensors", "progress.json", "SHA256SUMS")
SHORT = replace(TRAINING, steps=6, evaluations=2)


def truncated(to):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: to if to >= 0 else len(content) + to])

    return damage


def flipped(path):
    """One bit of the file, in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "4 bytes": truncated(4),
    "50 bytes": truncated(50),
    "one byte less": truncated(-1),
    "one bit": flipped,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_file_sets_its_checkpoint_aside_and_the_one_before_is_used(
    damage, name, tmp_path, caplog
):
    wanted = experiment()
    place = save_steps(tmp_path, wanted, [7, 8])
    newest = place.folder(wanted) / "step-000000008"
    damage(newest / name)
    found = next(place.valid(wanted))
    assert found.progress.step == 7
    assert (found.state["weights.a"] == 7).all()
    assert not newest.exists()
    aside = list(place.folder(wanted).glob("step-000000008.*.corrupt"))
    assert len(aside) == 1
    assert (aside[0] / name).exists()
    [message] = caplog.messages
    assert str(newest) in message
    if name != "SHA256SUMS":
        assert name in message
        assert sha256_of(aside[0] / name) in message


def test_a_file_that_is_missing_is_damage_too(tmp_path, caplog):
    wanted = experiment()
    place = save_steps(tmp_path, wanted, [1, 2])
    (place.folder(wanted) / "step-000000002" / "state.safetensors").unlink()
    assert next(place.valid(wanted)).progress.step == 1
    assert "state.safetensors" in caplog.text


def test_a_checkpoint_of_another_run_is_not_used(tmp_path, caplog):
    wanted, other = experiment(), experiment("q,k,v")
    place = save_steps(tmp_path, other, [2])
    place.folder(other).rename(place.folder(wanted))
    assert list(place.valid(wanted)) == []
    assert other.id in caplog.text


def test_checkpoints_of_other_runs_are_not_read_whole(tmp_path, monkeypatch):
    wanted, other = experiment(), experiment("q,k,v")
    save_steps(tmp_path, other, [2])
    read = []
    whole = checkpoint._read
    monkeypatch.setattr(checkpoint, "_read", lambda *each: read.append(each) or whole(*each))
    assert list(Checkpoints(tmp_path).of_other_devices(wanted)) == []
    assert read == []


def test_only_the_last_few_are_kept(tmp_path):
    wanted = experiment()
    place = save_steps(tmp_path, wanted, range(1, 6))
    names = sorted(path.name for path in place.folder(wanted).iterdir())
    assert names == ["step-000000004", "step-000000005"]
    place.remove(wanted)
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []


def test_the_same_step_again_takes_the_place_of_the_one_before(tmp_path):
    wanted = experiment()
    place = save_steps(tmp_path, wanted, [3, 3])
    assert [found.progress.step for found in place.valid(wanted)] == [3]
    assert left_over(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_sentence_with_path_and_bytes(tmp_path):
    wanted = experiment()
    (tmp_path / "file").write_text("in the way")
    place = every_step(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"file/.* of 60 bytes cannot be written"):
        place.save(
            wanted, progress(wanted, 1), Numbers({"weights.a": np.zeros((3, 5), np.float32)})
        )


class Cut(BaseException):
    """The process ends here, as far as the run can tell."""


def cut_at(wanted, place, step):
    def report(now, _loss):
        if now == step:
            raise Cut

    with pytest.raises(Cut):
        run(wanted, report, checkpoints=place)


def test_all_ranks_are_told_of_a_folder_that_is_there_or_of_none(tmp_path):
    wanted, told = experiment(), []

    class Rank(SingleProcess):
        def broadcast(self, text):
            told.append(text and (tmp_path / wanted.id / text).is_dir())
            return text if self.rank == 0 else ""

    def save(root, rank):
        numbers = Numbers({"weights.a": np.zeros(3, np.float32)})
        numbers.world = Rank(rank, 2)
        every_step(root).save(wanted, progress(wanted, 1), numbers)

    save(tmp_path, 0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError):
        save(tmp_path / "file", 0)
    assert told == [True, ""]
    # The others write nothing if rank 0 has no folder, and fail together with it.
    with pytest.raises(CheckpointError, match="rank 0 could not create its folder"):
        save(tmp_path, 1)


@pytest.mark.slow
def test_a_run_with_a_damaged_checkpoint_comes_to_the_same_end(tmp_path, caplog):
    wanted = experiment(training=SHORT)
    alone = run(wanted)
    assert alone.status == "done", alone.reason
    place = every_step(tmp_path)
    cut_at(wanted, place, 5)
    folder = place.folder(wanted)
    flipped(folder / "step-000000004" / "state.safetensors")
    again = run(wanted, checkpoints=place)
    assert again.observed.resumed == [3]
    assert repeatable(again) == repeatable(alone)

    caplog.clear()
    for path in folder.glob("step-*[0-9]/state.safetensors"):
        flipped(path)
    anew = run(wanted, checkpoints=place)
    assert anew.observed.resumed == []
    assert repeatable(anew) == repeatable(alone)
    assert "No checkpoint" in caplog.text
    assert "begins anew" in caplog.text


def test_numbers_of_another_learner_are_refused_and_the_run_begins_anew(tmp_path, caplog):
    wanted = experiment(training=replace(SHORT, steps=2))
    place = save_steps(tmp_path, wanted, [1])
    with caplog.at_level(logging.WARNING):
        record = run(wanted, checkpoints=place)
    assert record.status == "done", record.reason
    assert record.observed.resumed == []
    assert "it is of another learner" in caplog.text


def test_weights_that_are_not_finite_are_never_kept(tmp_path, caplog):
    """The step that spoils them is seen before they are saved; the next one ends the run."""
    place = Checkpoints(tmp_path, every_s=0.0, share=math.inf)
    training = replace(SHORT, learning_rate=1e39, warmup=0)
    record = run(experiment(training=training), checkpoints=place)
    assert record.status == "diverged"
    assert list(place.valid(experiment(training=training))) == []
    assert "is not finite: not saved" in caplog.text
