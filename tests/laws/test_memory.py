"""What is computed of a training step's memory is what its forward pass keeps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from laws.arms import CATALOGUED, EVEN, POSITIONS, decoder
from qkvbench import cost
from qkvbench.backends.torch import Learner
from qkvbench.backends.torch.attention.softmax import HELD
from qkvbench.backends.torch.training.loss import CHUNKED_VOCABULARY
from qkvbench.backends.torch.training.precision import autocast
from qkvbench.cost import memory
from qkvbench.data.batch import IGNORE_INDEX, Batch
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Encoder, Init, Learned, Rotary, Tokens, Vectors, transformer
from qkvbench.task_ref import TaskRef
from qkvbench.variant import Scores, parse, write

ITEMS, TIME = 5, 7

every_plain = pytest.mark.parametrize(
    "variant", [each for each in CATALOGUED if each.scores == Scores()], ids=write
)


def encoder(inputs, predicts, pooling="mean", classes=11):
    stack = Encoder(inputs, classes, predicts, pooling=pooling)
    return transformer(
        "law",
        stack,
        layers=2,
        d_model=EVEN.d_model,
        heads=EVEN.heads,
        position=Learned(TIME),
        init=Init(embedding_std=0.5, position_std=0.5),
    )


MODELS = {
    "decoder": decoder("q,k,v"),
    "rotary": decoder("q,k,v", Rotary()),
    "vocabulary": decoder("q,k,v", vocabulary=1031),
    "places": encoder(Tokens(13), "each position"),
    "whole": encoder(Vectors(3), "the whole"),
    "class token": encoder(Vectors(3), "the whole", "class token"),
    "class token of words": encoder(Tokens(13), "the whole", "class token"),
    "which": encoder(Vectors(3), "which position", classes=TIME),
}


def experiment(model, *, dropout=0.0, micro_batches=1, **changed):
    training = Training(
        steps=1,
        batch=ITEMS,
        learning_rate=1e-3,
        warmup=0,
        dropout=dropout,
        micro_batches=micro_batches,
    )
    return Experiment(model, TaskRef("law"), 1, training, seed=0, **changed)


def batch(model, scored=TIME, time=TIME):
    """`scored` places of each item have a target."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 11, (ITEMS, time))
    if isinstance(model.inputs, Vectors):
        inputs = rng.normal(size=(ITEMS, time, model.inputs.features)).astype(np.float32)
    one = isinstance(model.architecture, Encoder) and model.architecture.predicts != "each position"
    classes = min(11, time) if one else 11
    targets = rng.integers(0, classes, (ITEMS, 1 if one else time))
    targets[:, scored:] = IGNORE_INDEX
    return Batch(inputs, targets)


def kept_bytes(wanted, data):
    """Unique storage, weights aside, that the forward pass keeps for the backward pass."""
    learner = Learner(wanted)
    weights = {each.untyped_storage().data_ptr() for each in learner.network.parameters()}
    kept = {}

    def keep(tensor):
        # The storage is held on to, so that no other is given its place.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    def keep_input(_block, inputs):
        if wanted.checkpointing:
            keep(inputs[0])

    for block in learner.network.blocks:
        block.register_forward_pre_hook(keep_input)
    learner.network.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        autocast(wanted.precision, torch.device("cpu")),
    ):
        loss = learner.training_loss(
            learner.network, *learner.tensors(data), wanted.training.smoothing
        )
    assert loss.requires_grad
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


@pytest.mark.parametrize("kind", MODELS)
@every_plain
def test_computed_activations_are_what_a_forward_pass_keeps(variant, kind):
    wanted = experiment(MODELS[kind].with_variant(variant))
    computed = cost.step_memory(wanted, TIME).activations
    assert computed == kept_bytes(wanted, batch(wanted.model))


@pytest.mark.parametrize("changed", [{"dropout": 0.3}, {"checkpointing": True}], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_so_they_are_with_dropout_and_where_activations_are_made_again(kind, changed):
    wanted = experiment(MODELS[kind].with_variant(parse("q,k=R(q),v=R(q)")), **changed)
    computed = cost.step_memory(wanted, TIME).activations
    assert computed == kept_bytes(wanted, batch(wanted.model))


@pytest.mark.parametrize("kind", ["decoder", "vocabulary", "places"])
def test_so_they_are_where_few_places_are_scored(kind):
    wanted = experiment(MODELS[kind])
    computed = cost.step_memory(wanted, TIME, scored=2).activations
    assert computed == kept_bytes(wanted, batch(wanted.model, scored=2))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", MODELS)
@every_plain
def test_so_they_are_in_half_precision(variant, kind, precision):
    wanted = experiment(MODELS[kind].with_variant(variant), precision=precision)
    computed = cost.step_memory(wanted, TIME).activations
    assert computed == kept_bytes(wanted, batch(wanted.model))


@pytest.mark.parametrize("position", POSITIONS, ids=str)
def test_so_they_are_with_every_position_scheme_that_leaves_value_and_scores_alone(position):
    wanted = experiment(decoder("q,k=v", position))
    computed, kept = (
        cost.step_memory(wanted, TIME).activations,
        kept_bytes(wanted, batch(wanted.model)),
    )
    if position.turned == ("q", "k", "v") or position.kind == "alibi":
        assert abs(kept - computed) <= added_bound(wanted)
    else:
        assert computed == kept


@pytest.mark.parametrize("variant", ["q=k,v+2d", "q,k,v++", "q,k=v-diag"])
def test_what_is_added_to_scores_moves_them_no_further_than_its_bound(variant):
    wanted = experiment(decoder(variant, Rotary()))
    computed = cost.step_memory(wanted, TIME).activations
    assert abs(kept_bytes(wanted, batch(wanted.model)) - computed) <= added_bound(wanted)


def added_bound(wanted):
    """Three tensors like Q and three of scores, in each layer."""
    width, heads = EVEN.heads * EVEN.head_dim, EVEN.heads
    numbers = 3 * ITEMS * TIME * width + 3 * min(ITEMS * heads * TIME**2, HELD)
    return 4 * len(wanted.model.blocks) * numbers


def test_parts_of_a_batch_keep_what_the_largest_of_them_does():
    whole, part = experiment(MODELS["rotary"]), experiment(MODELS["rotary"], micro_batches=3)
    one = replace(whole, training=replace(whole.training, batch=2))
    assert cost.step_memory(part, TIME) == cost.step_memory(one, TIME)


@every_plain
def test_activations_grow_in_proportion_to_the_length(variant):
    wanted = experiment(MODELS["rotary"].with_variant(variant))
    first, second, third = (
        cost.step_memory(wanted, tokens).activations for tokens in (500, 1000, 1500)
    )
    assert third - second == second - first


def test_the_loss_goes_by_rows_from_the_vocabulary_that_the_sum_says():
    assert memory.MANY == CHUNKED_VOCABULARY
