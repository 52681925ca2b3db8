"""Scales of int4 are the best there are, and a text says for which numbers."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qkvbench.backends import torch as backend
from qkvbench.backends.torch.cache.quantize import dequantize, quantize
from qkvbench.cli import main
from qkvbench.cost import CACHE_FORMATS
from qkvbench.export.rounding import Inputs, inputs_of, rounded
from qkvbench.model import PRESETS
from qkvbench.model.cycle import parse_cycle
from qkvbench.variant.catalogue import named

INT4 = CACHE_FORMATS["int4"]
OUTPUTS, INPUTS = 24, 96


def _matrix(seed: int = 0) -> torch.Tensor:
    """Numbers of which a few are much larger, as trained ones are."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_t(4, (OUTPUTS, INPUTS)).astype(np.float32))


def _importance(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).lognormal(0, 2, INPUTS).astype(np.float32))


def _read(matrix: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    numbers, scales = rounded(matrix, "int4", None if importance is None else Inputs(importance))
    assert numbers.shape == (OUTPUTS, INPUTS // 2)
    assert scales.shape == (OUTPUTS, INPUTS // 32)
    return dequantize(numbers, scales, torch.float32, INT4, INPUTS)


def _errors(matrix: torch.Tensor, found: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """The weighted squared error of each group."""
    return (importance * (found - matrix) ** 2).unflatten(1, (-1, 32)).sum(-1)


@pytest.mark.parametrize("weighted", [False, True])
def test_no_scale_of_a_fine_grid_is_better_by_more_than_two_percent(weighted: bool) -> None:  # noqa: FBT001
    matrix = _matrix()
    importance = _importance() if weighted else torch.ones(INPUTS)
    found = _errors(matrix, _read(matrix, importance if weighted else None), importance)
    groups = matrix.unflatten(1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    best = torch.full(found.shape, torch.inf)
    for steps, sign in product(np.linspace(6, 9, 300), (1, -1)):
        scale = sign * largest / steps
        grid = (groups / scale).round().clamp(-8, 7) * scale
        best = torch.minimum(best, _errors(matrix, grid.flatten(1), importance))
    assert found.sum() < 1.02 * best.sum()
    rows, scales = quantize(matrix[None, None], INT4)
    plain = dequantize(rows, scales, torch.float32, INT4, INPUTS)[0, 0]
    assert found.sum() < 0.9 * _errors(matrix, plain, importance).sum()


def test_numbers_that_matter_are_closer_and_others_pay_for_it() -> None:
    matrix, importance = _matrix(), _importance()
    equal, fitted = _read(matrix), _read(matrix, importance)
    ones = torch.ones(INPUTS)
    before = _errors(matrix, equal, importance).sum()
    assert _errors(matrix, fitted, importance).sum() < 0.8 * before
    assert _errors(matrix, fitted, ones).sum() > _errors(matrix, equal, ones).sum()


def test_groups_of_zeros_and_inputs_that_are_never_there_are_no_division_by_zero() -> None:
    matrix = _matrix()
    matrix[:, :32] = 0
    importance = _importance()
    importance[32:64] = 0
    found = _read(matrix, importance)
    assert not found[:, :32].any()
    assert torch.isfinite(found).all()
    # Unseen inputs are rounded nonetheless.
    assert (found[:, 32:64] - matrix[:, 32:64]).abs().max() < matrix.abs().max() / 6


def test_errors_are_passed_on_if_inputs_are_alike_and_only_then() -> None:
    rng = np.random.default_rng(2)
    few, noise = (torch.from_numpy(rng.standard_normal((4000, n))).float() for n in (8, INPUTS))
    alike = few @ torch.from_numpy(rng.standard_normal((8, INPUTS))).float() + 0.02 * noise
    matrix = _matrix()
    for rows, share in ((alike, 0.1), (noise, 1.0)):
        fit, fresh = rows[:2000], rows[2000:]
        squares = fit.square().mean(0)
        without = _read(matrix, squares)
        numbers, scales = rounded(matrix, "int4", Inputs(squares, fit.T @ fit / len(fit)))
        found = dequantize(numbers, scales, torch.float32, INT4, INPUTS)
        # Of the outputs for rows that it has not seen.
        before, after = ((fresh @ (each - matrix).T).square().mean() for each in (without, found))
        assert after <= share * before
        assert torch.equal(found, without) == (share == 1.0)


def _network(equation: str = "q,k=v;q,k,v/1") -> backend.Decoder:
    model = PRESETS["small-decoder"]().with_variant(parse_cycle(equation, named))
    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    backend.start(network, model, 0)
    return network


def test_mean_squares_are_those_of_what_each_matrix_reads() -> None:
    network = _network()
    tokens = torch.arange(24).view(2, 12) * 7 % 256
    found = inputs_of(network, tokens)
    weights = backend.named_weights(network)
    blocks = {
        name for name, each in weights.items() if name.startswith("blocks.") and each.dim() == 2
    }
    assert blocks <= found.keys()
    for name in blocks:
        assert found[name].squares.shape == weights[name].shape[1:]
    with torch.no_grad():
        block = network.blocks[0]
        inputs = block.attention_norm(network.embedding(tokens))
    expected = inputs.flatten(0, 1).square().mean(0)
    products = found["blocks.0.attention.o.weight"].products
    torch.testing.assert_close(products.diagonal(), found["blocks.0.attention.o.weight"].squares)
    assert found["blocks.0.attention.q.weight"].products is None
    for matrix in ("q", "k"):
        torch.testing.assert_close(found[f"blocks.0.attention.{matrix}.weight"].squares, expected)


TEXT = "Once more unto the breach, dear friends, once more; " * 20


def test_a_text_changes_the_scales_of_the_blocks_alone(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    words = ["export", "small-decoder", "--variant", "q,k=v", "--to", "edge", "--weights", "int4"]
    words += ["--context", "64"]
    assert main([*words, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert main([*words, "--out", str(tmp_path / "b.safetensors"), "--text", str(file)]) == 0
    first, second = (load_file(tmp_path / f"{each}.safetensors") for each in "ab")
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert all(name.startswith("blocks.") for name in changed)


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (["small-decoder", "--weights", "int8"], TEXT, "--text fits weights in int4"),
        (["small-decoder", "--weights", "int4"], "short", "Give a longer --text."),
        (["small-decoder", "--weights", "int4"], None, "cannot be read: No such file"),
        (["mqar", "--weights", "int4"], TEXT, "leave out --text"),
    ],
)
def test_a_text_that_cannot_help_is_refused(
    words: list[str],
    text: str | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "text.txt", tmp_path / "out.safetensors"
    if text is not None:
        file.write_text(text)
    command = ["export", *words, "--to", "edge", "--out", str(out), "--text", str(file)]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
