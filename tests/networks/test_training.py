"""One training step: in every precision, in parts, with activations made again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from laws.cases import decoder, every_distinct_even
from qkvbench import backends
from qkvbench.backends.torch import Learner, types
from qkvbench.backends.torch.training.precision import COMPUTE_DTYPE
from qkvbench.data.batch import IGNORE_INDEX, Batch
from qkvbench.experiment import PRECISIONS, Experiment, Training
from qkvbench.model import Rotary
from qkvbench.task_ref import TaskRef

VOCABULARY, TIME, ITEMS = 13, 7, 5
# Each rounding moves a number by at most half of 2^-bits of itself; a gradient of these two layers
# is about twenty roundings away from fp32's, in either direction: five times one rounding.
FAR = {"bf16": 5 * 2.0**-8, "fp16": 5 * 2.0**-11}


def experiment(variant="q,k=v", model=None, training=None, **changed):
    training = training or Training(steps=1, batch=ITEMS, learning_rate=1e-3, warmup=0)
    model = model or decoder(variant, Rotary())
    return Experiment(model, TaskRef("law"), 1, training, seed=0, **changed)


def in_parts(count, **changed):
    training = Training(
        steps=1, batch=ITEMS, learning_rate=1e-3, warmup=0, micro_batches=count, **changed
    )
    return experiment(training=training)


def batch(seed=0, *, scored=1.0):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, VOCABULARY, (2, ITEMS, TIME))
    targets[rng.random(targets.shape) > scored] = IGNORE_INDEX
    return Batch(inputs, targets)


def slopes(learner, data=None):
    """The loss and the gradients before clipping."""
    learner.experiment = replace(
        learner.experiment, training=replace(learner.experiment.training, clip=1e9)
    )
    loss, norm = learner.gradients(data or batch())
    gradients = {name: each.grad.clone() for name, each in learner.network.named_parameters()}
    return loss, norm, gradients


def in_fp64(learner):
    learner.network.double()
    return learner


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@every_distinct_even
def test_loss_and_gradients_in_half_precision_stay_near_those_of_fp32(variant, precision):
    expected_loss, _, expected = slopes(Learner(experiment(variant)))
    loss, norm, found = slopes(Learner(experiment(variant, precision=precision)))
    assert loss == pytest.approx(expected_loss, rel=FAR[precision])
    assert np.isfinite(norm)
    whole = torch.cat([each.flatten() for each in expected.values()])
    difference = torch.cat([found[name].flatten() - expected[name].flatten() for name in expected])
    assert difference.norm() < FAR[precision] * whole.norm()
    # And it is not fp32 under another name.
    assert difference.norm() > 2.0**-14 * whole.norm()


# The operations by which a part of the table shows on a CPU; inputs of the first kind are looked
# at, of the second kind results: what attention's kernel says of its softmax is its logsumexp.
SHOWN = {
    "projections, feed-forward and logits, forward and backward": ["addmm", "mm"],
    "Q, K and V; attention's inputs and result": [
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ],
    "RoPE": ["addcmul"],
    "GELU": ["gelu", "gelu_backward"],
    "embedding and residual stream": ["embedding", "embedding_dense_backward"],
    "norms": ["native_layer_norm", "native_layer_norm_backward"],
    "learned rotations, computed": ["_linalg_solve_ex", "linalg_lu_solve"],
    "softmax over classes and loss": [
        "_log_softmax",
        "_log_softmax_backward_data",
        "nll_loss_forward",
        "nll_loss_backward",
    ],
    "optimizer state and update": ["_fused_adamw_"],
}


class Watched(TorchDispatchMode):
    """Notes the types of the numbers that go into and come out of every operation."""

    def __init__(self):
        super().__init__()
        self.took, self.gave = {}, {}

    def __torch_dispatch__(self, operation, kinds, words=(), named=None):
        result = operation(*words, **(named or {}))
        name = operation.overloadpacket.__name__
        self.took.setdefault(name, set()).update(_kinds(words))
        self.gave.setdefault(name, []).append(_kinds(result))
        return result


def _kinds(value):
    """The types of the tensors of real numbers in a value."""
    if isinstance(value, torch.Tensor):
        # A gradient scaler's own numbers are one each.
        return {value.dtype} if value.is_floating_point() and value.ndim else set()
    if isinstance(value, list | tuple):
        return set().union(*map(_kinds, value))
    return set()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_stated_to_run_in_a_type_does(precision):
    learner = Learner(experiment("q,k=R(q),v", precision=precision))
    with Watched() as watched:
        learner.gradients(batch())
        learner.update(1e-3)
    stated = {part: row[precision] for part, row in types().items()}
    for part, operations in SHOWN.items():
        for operation in operations:
            kinds = {str(kind).removeprefix("torch.") for kind in watched.took[operation]}
            # Attention's backward pass reads its softmax's logsumexp as well.
            kinds -= {"float32"} if part.startswith("Q, K and V") and len(kinds) > 1 else set()
            assert kinds == {stated.pop(part) if operation == operations[-1] else stated[part]}
    # A learned rotation is applied by batched products, and made and differentiated by others.
    applied = set.union(*watched.gave["bmm"])
    assert applied == {COMPUTE_DTYPE[precision], torch.float32}
    assert stated.pop("learned rotations, applied") == str(COMPUTE_DTYPE[precision])[6:]
    (attended,) = watched.gave["_scaled_dot_product_flash_attention_for_cpu"][:1]
    assert attended == {COMPUTE_DTYPE[precision], torch.float32}
    assert stated.pop("softmax of attention, inside its kernel") == "float32"
    held = [each.dtype for each in learner.network.parameters()]
    held += [each.grad.dtype for each in learner.network.parameters()]
    assert set(held) == {torch.float32}
    assert stated.pop("weights, and the sum of their gradients over micro-batches") == "float32"
    assert learner.scaler.is_enabled() == (stated.pop("loss scaling") == "dynamic")
    assert stated == {}


def test_a_backend_tells_its_types_for_every_precision():
    assert all(set(row) == set(PRECISIONS) for row in backends.find("torch").types().values())


def test_an_overflow_halves_the_scale_and_the_step_is_that_of_a_scale_that_fitted():
    training = Training(steps=1, batch=ITEMS, learning_rate=1e-3, warmup=0, dropout=0.3)

    def from_scale(scale):
        learner = Learner(experiment(training=training, precision="fp16"))
        learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": scale})
        return *slopes(learner), learner.scaler.get_scale()

    loss, norm, found, reached = from_scale(2.0**30)
    assert 1 < reached < 2.0**29
    # The same bits: the dropout of the attempts that failed was drawn again.
    expected_loss, expected_norm, expected, kept = from_scale(reached)
    assert (loss, norm, reached) == (expected_loss, expected_norm, kept)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gradients_that_overflow_at_every_scale_are_reported_and_not_skipped():
    learner = Learner(experiment(precision="fp16"))
    with torch.no_grad():
        # Logits stay finite, since the stream is normed; its gradient goes through this scale.
        learner.network.norm.weight.fill_(6e3)
        learner.network.embedding.table.mul_(1e-9)
        learner.network.blocks[0].feed_forward.down.weight.fill_(6e4)
    loss, norm = learner.gradients(batch())
    assert not (np.isfinite(loss) and np.isfinite(norm))


@pytest.mark.parametrize("scored", [1.0, 0.4], ids=["all places", "some places"])
@pytest.mark.parametrize("count", [2, 3, ITEMS])
def test_parts_of_a_batch_sum_to_the_gradient_of_the_whole(count, scored):
    data = batch(scored=scored)
    # An item without a scored place is a part that adds nothing.
    data.targets[-1] = IGNORE_INDEX
    whole = slopes(in_fp64(Learner(in_parts(1))), data)
    parts = slopes(in_fp64(Learner(in_parts(count))), data)
    assert parts[0] == pytest.approx(whole[0], rel=1e-13)
    torch.testing.assert_close(parts[2], whole[2], rtol=1e-10, atol=1e-13)


def test_parts_carry_their_own_lengths():
    class Heard(Learner):
        def tensors(self, batch):
            self.heard.append((len(batch.inputs), batch.lengths.tolist()))
            return super().tensors(batch)

    learner = Heard(in_parts(2))
    learner.heard = []
    learner.gradients(replace(batch(), lengths=np.array([7, 3, 5, 1, 2])))
    assert learner.heard == [(2, [7, 3]), (3, [5, 1, 2])]


def test_more_parts_than_items_are_refused():
    for count in (0, ITEMS + 1):
        with pytest.raises(ValueError, match=f"take from 1 to {ITEMS} micro-batches"):
            in_parts(count)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@every_distinct_even
def test_activations_made_again_give_the_same_bits_and_less_is_kept(variant, dropout):
    training = Training(steps=1, batch=ITEMS, learning_rate=1e-3, warmup=0, dropout=dropout)

    def two_steps(**changed):
        learner = Learner(experiment(variant, training=training, **changed))
        return [slopes(learner, batch(seed)) for seed in (0, 1)], saved_bytes(learner)

    kept, kept_bytes = two_steps()
    again, again_bytes = two_steps(checkpointing=True)
    for (loss, norm, found), (*expected, slopes_kept) in zip(again, kept, strict=True):
        assert [loss, norm] == expected
        assert all(torch.equal(found[name], slopes_kept[name]) for name in found)
    assert again_bytes < kept_bytes / 2


def saved_bytes(learner):
    """Unique storage, weights aside, that a forward pass keeps for the backward pass."""
    own = {each.untyped_storage().data_ptr() for each in learner.network.parameters()}
    kept = {}

    def keep(tensor):
        # The storage is held on to, so that no other is given its place.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.network.train()
        loss = learner.training_loss(learner.network, *learner.tensors(batch()), smoothing=0.0)
    assert loss.requires_grad
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)
