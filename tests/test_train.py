"""Training repeats to the bit, stops before it spoils weights, and records every outcome."""

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from qkvbench import tasks
from qkvbench.backends.torch import Learner
from qkvbench.data.batch import Predictions
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.results.record import Record
from qkvbench.task_ref import parse_task
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.splits import Windows
from qkvbench.train.analyses import POSITIONS, batch_of_snapshots, snapshot
from qkvbench.train.loop import DivergedError, batch_indices, learning_rate, score, train
from qkvbench.train.run import run
from qkvbench.train.run_state import RunState

SHORT = Training(steps=6, batch=16, learning_rate=1e-3, warmup=2, evaluations=2, scored=40)


def experiment(task="digits", variant="q,k=v", training=SHORT, **changed):
    found = tasks.find(task)
    base = Experiment(found.model, parse_task(task), found.version, training, seed=0)
    return replace(base.vary(variants=[variant], seeds=[0])[0], **changed)


def repeatable(record):
    """The part of a record that must repeat: all but times, memory and load."""
    return record.model_dump(exclude={"observed", "machine", "started"})


@pytest.mark.parametrize(
    ("changed", "training"),
    [
        ({}, {}),
        ({"precision": "bf16"}, {}),
        ({"precision": "fp16"}, {}),
        ({}, {"dropout": 0.2}),
        ({"precision": "fp16", "checkpointing": True}, {"dropout": 0.2, "micro_batches": 3}),
    ],
    ids=str,
)
def test_the_same_experiment_gives_the_same_bits(changed, training):
    wanted = experiment(training=replace(SHORT, **training), **changed)
    first, second = run(wanted), run(wanted)
    assert first.status == "done", first.reason
    assert repeatable(first) == repeatable(second)


def test_another_seed_gives_another_result():
    assert run(experiment(seed=0)).metrics != run(experiment(seed=1)).metrics


def test_a_record_is_strict_json_and_its_experiment_runs_again():
    record = run(experiment())
    text = json.dumps(record.model_dump(mode="json"), allow_nan=False)
    again = from_json(json.loads(text)["experiment"])
    assert again.id == record.id
    assert run(again).metrics == record.metrics


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"final_learning_rate": math.nan}, "final_learning_rate is nan"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"betas": (0.9, math.nan)}, "betas is"),
        ({"clip": math.inf}, "clip is inf"),
        ({"clip": -1}, "positive clip"),
        ({"clip": 0}, "positive clip"),
        ({"scored": 0}, "1 or more scored items"),
        ({"steps": 0}, "1 or more steps"),
    ],
    ids=str,
)
def test_a_training_that_cannot_be_is_refused_in_words(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(SHORT, **changed)


def test_no_threads_are_refused_in_words():
    with pytest.raises(ValueError, match="1 or more threads"):
        experiment(threads=0)


def test_a_loss_that_is_not_finite_stops_before_the_step_that_would_spoil_the_weights():
    wild = experiment(training=replace(SHORT, learning_rate=1e30, warmup=0))
    learner, state = Learner(wild), RunState()
    task = tasks.find("digits")
    with pytest.raises(DivergedError, match="the step was not taken"):
        train(wild, task, task.load(), learner, lambda _step, _loss: None, state)
    assert 0 < len(state.step_s) < SHORT.steps
    assert all(torch.isfinite(tensor).all() for tensor in learner.weights().values())


def test_fp16_takes_every_step_and_learns_as_fp32_does():
    whole, half = (run(experiment(precision=precision)) for precision in ("fp32", "fp16"))
    assert half.status == "done", half.reason
    # Six steps, each of which moves the loss by a tenth: fp16's rounding is far below that.
    losses = [[point.train_loss for point in record.curve] for record in (half, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]


def test_a_run_that_diverges_is_a_record_with_a_reason_and_no_score():
    record = run(experiment(training=replace(SHORT, learning_rate=1e30, warmup=0)))
    assert record.status == "diverged"
    assert "At step" in record.reason
    assert record.metrics == {}
    json.dumps(record.model_dump(mode="json"), allow_nan=False)


@pytest.mark.parametrize("nats", [300.0, 800.0])
def test_a_loss_too_large_for_its_perplexity_is_a_divergence_like_any_other(nats):
    """Larger than a number, or than a record holds."""

    class Sure(Learner):
        def predict(self, batch):
            said = super().predict(batch)
            loss = np.full_like(said.loss, nats)
            return Predictions(loss, said.predicted, said.targets, said.ranks)

    task = tasks.find("lm-reviews")
    with pytest.raises(DivergedError, match="not finite"):
        score(task, Sure(experiment("lm-reviews")), task.load().test, 2)


def test_curves_are_of_the_validation_split_and_scores_of_the_test_split():
    left = []
    record = run(experiment(), at_end=lambda _experiment, _record, learner: left.append(learner))
    task = tasks.find("digits")
    data = task.load()
    own = [score(task, left[0], each, SHORT.scored) for each in (data.validation, data.test)]
    assert own[0] != own[1]
    assert [record.curve[-1].metrics, record.metrics] == own


@pytest.mark.parametrize(("threshold", "step"), [(0.0, 3), (1.0, None)])
def test_the_first_evaluation_beyond_the_threshold_is_the_step_at_which_a_run_solves(
    threshold, step
):
    task = tasks.find("digits")
    easy = replace(task, metric=replace(task.metric, solved=threshold))
    state = RunState()
    train(experiment(), easy, task.load(), Learner(experiment()), lambda *_: None, state)
    assert [point.step for point in state.curve] == [3, 6]
    assert state.solved_step == step


def test_a_run_whose_data_are_missing_is_a_record_with_a_reason(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "file"))
    record = run(experiment("lm-reviews"))
    assert record.status == "failed"
    assert "is a file" in record.reason


def test_memory_that_runs_out_has_a_status_of_its_own(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", full)
    assert run(experiment()).status == "oom"


def test_every_epoch_has_every_item_once_in_an_order_of_its_own():
    training = replace(SHORT, batch=3)
    batches = list(islice(batch_indices(7, training, seed=0), 7))
    epochs = np.concatenate(batches).reshape(3, 7)
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert not (epochs[0] == epochs[1]).all()
    other = np.concatenate(list(islice(batch_indices(7, training, seed=1), 7)))
    assert not (other == epochs.ravel()).all()


@pytest.mark.parametrize("after", [0, 1, 2, 3, 6, 7, 8, 100])
def test_the_batches_after_any_step_need_none_of_those_before(after):
    # Seven items in threes: a batch may hold the end of an epoch and the beginning of the next,
    # and after seven batches an epoch ends with one.
    training = replace(SHORT, batch=3)
    whole = islice(batch_indices(7, training, seed=0), after, after + 9)
    found = islice(batch_indices(7, training, seed=0, after=after), 9)
    np.testing.assert_array_equal(list(found), list(whole))


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_its_end():
    training = replace(SHORT, steps=100, warmup=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(training, step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[54] == pytest.approx(0.55)  # half of the cosine
    assert rates[-1] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert learning_rate(SHORT, SHORT.steps) == SHORT.final_learning_rate == 0


def test_a_loss_before_training_is_that_of_guessing():
    wanted = experiment("lm-reviews")
    # Logits of small variance: a decoder with zero output predicts all bytes alike.
    learner = Learner(wanted)
    with torch.no_grad():
        learner.weights()["output.weight"].zero_()
    batch = tasks.find("lm-reviews").load().test.batch(np.arange(2))
    assert learner.predict(batch).loss.mean() == pytest.approx(math.log(256), rel=1e-6)


def test_positions_without_a_target_change_neither_loss_nor_gradient():
    wanted = experiment("recall")
    batch = tasks.find("recall").load().train.batch(np.arange(8))
    one, other = Learner(wanted), Learner(wanted)
    # The last answer is seen by no scored place: causality hides it.
    changed = batch.inputs.copy()
    changed[:, -1] = 32 + (changed[:, -1] - 31) % 32
    assert one.gradients(batch) == other.gradients(replace(batch, inputs=changed))


def test_matrices_decay_and_offsets_scales_and_rotations_do_not():
    learner = Learner(experiment("digits", "q,k=R(q),v=R(q)"))
    decayed, free = learner.optimizer.param_groups
    names = {id(tensor): name for name, tensor in learner.network.named_parameters()}
    assert decayed["weight_decay"] == SHORT.weight_decay
    assert free["weight_decay"] == 0
    assert all(names[id(t)].endswith(("weight", "positions")) for t in decayed["params"])
    assert {"bias", "k", "v"} <= {names[id(t)].split(".")[-1] for t in free["params"]}


def test_an_experiment_is_the_same_after_a_round_trip_through_json():
    for task in tasks.names():
        for variant in ("q,k=R(q),v=R(q)", "q,k,v/2"):
            wanted = experiment(task, variant)
            assert from_json(json.loads(json.dumps(to_json(wanted)))) == wanted


def test_identities_of_stored_results_do_not_change():
    # These name stored results: a change here orphans everything that was measured.
    assert experiment().id == "0f7ced0ff9d42c35"
    assert experiment("recall", "q=k=x,v", seed=3).id == "41ec8fec359059c1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "level"), [("digits", 0.9), ("sort", 0.95), ("recall", 0.95), ("lm-reviews", 3.0)]
)
def test_canonical_attention_learns_every_task_of_quick(task, level):
    record = run(experiment(task, "q,k,v", tasks.find(task).training))
    better = record.score > level if record.metric.better == "higher" else record.score < level
    assert better, record.metrics


@pytest.mark.slow
def test_no_projections_sort_far_worse_than_three():
    training = tasks.find("sort").training
    scores = [run(experiment("sort", text, training)).score for text in ("q,k,v", "q=k=v=x")]
    assert scores[0] - scores[1] > 0.1


def test_a_run_has_snapshots_of_its_layers_before_training_and_after_the_last_step():
    record = run(experiment(variant="q,k=v"))
    assert record.status == "done", record.reason
    first, last = record.snapshots[0], record.snapshots[-1]
    assert (first.step, last.step) == (0, SHORT.steps)
    assert first.layers == ["blocks.0.attention", "blocks.1.attention"]
    assert last.measures["kv_cka"] == [1.0, 1.0]
    assert last.measures["entropy"] != first.measures["entropy"]
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_a_record_without_snapshots_can_be_read():
    before = run(experiment()).model_dump(mode="json")
    del before["snapshots"]
    assert Record.model_validate(before).snapshots == []


def test_snapshots_change_no_bit_of_training():
    wanted = experiment(training=replace(SHORT, dropout=0.2))
    batch = tasks.find("digits").load().train.batch(np.arange(16))

    def steps(look):
        # One learner after the other: dropout is drawn from the framework's one stream.
        learner = Learner(wanted)
        for step in range(3):
            look(step, learner, batch)
            yield learner.gradients(batch)
            learner.update(1e-3)

    assert list(steps(snapshot)) == list(steps(lambda *_: None))


def test_a_snapshot_uses_the_beginning_of_long_items_only():
    task = tasks.find("lm-reviews")
    long = Windows(np.zeros(20_001, dtype=np.uint8), 5000)
    data = Data(train=long, validation=long, test=long, identity="")
    batch = batch_of_snapshots(replace(task, tokens=5000), data)
    assert batch.inputs.shape == batch.targets.shape == (1, POSITIONS)


def test_a_model_that_is_no_longer_finite_has_snapshots_without_numbers():
    learner = Learner(experiment())
    with torch.no_grad():
        learner.weights()["blocks.0.attention.q.weight"].fill_(math.nan)
    batch = tasks.find("digits").load().validation.batch(np.arange(2))
    found = snapshot(1, learner, batch)
    assert set(found.measures["entropy"]) == {None}
    json.dumps(found.model_dump(), allow_nan=False)


@pytest.mark.slow
def test_memory_of_a_training_step_grows_in_proportion_to_its_length():
    from train_memory import experiment as arm
    from train_memory import observed

    from qkvbench.sweep.local import Workers

    with Workers("torch") as workers:
        for variant in ("q,k,v", "q=k=v"):
            half, whole = (workers.call(observed, arm(variant), n) for n in (4096, 8192))
            assert whole < 2.3 * half
            # Not even the scores of one head: 8192 × 8192 numbers of 4 bytes.
            assert whole < 4 * 8192**2
