"""Healing: a changed model learns from the original, layer by layer, then by its predictions.

First each changed layer learns its original's output from the original's input, which trains all
layers at once without a backward pass through the model. Then the predictions of the whole model
learn those of the original. A held-out text decides which weights are kept and when to stop.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.hub.fit.calls import Call, recording_calls
from qkvbench.hub.fit.progress import TimeLeft
from qkvbench.hub.fit.projections import OUTPUTS, layers_of
from qkvbench.hub.fit.quality import Windows
from qkvbench.hub.fit.shards import weights_hash
from qkvbench.hub.models import attention_layers

Phase = Literal["blocks", "logits"]
Precision = Literal["bf16", "fp32"]
# Tokens of one step: so many windows, at least one.
STEP_TOKENS = 512
# Tokens of the windows that decide which weights are kept.
DECIDING_TOKENS = 1024
# A phase is saved, and measured on the deciding windows, so many times; between two measurements it
# learns at least twice the tokens that one reads. It ends early after as many measurements without
# a gain as patience: with a cosine schedule the gain comes late.
CHECKS = 8
PATIENCE = 6


def fastest_precision() -> Precision:
    """The type that matrices are multiplied in fastest here: bf16 if the CPU does so itself."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


@dataclass(frozen=True)
class Healing:
    """How a model is healed: tokens of each phase, and how.

    ``lora`` is the rank of the adapters, merged at the end; 0 trains the weights themselves.
    ``blocks_lr`` and ``logits_lr`` are peak learning rates, cosine to zero after a warm-up.
    ``teacher`` names the model whose predictions are learned; None is the original itself.
    ``precision`` is the type that matrices are multiplied in; weights and their moments are fp32,
    and so is what is measured.
    """

    blocks: int = 0
    logits: int = 0
    lora: int = 0
    blocks_lr: float = 1e-4
    logits_lr: float = 5e-5
    temperature: float = 1.0
    seed: int = 0
    teacher: str | None = None
    precision: Precision = field(default_factory=fastest_precision)

    @property
    def tokens(self) -> int:
        """Tokens of both phases."""
        return self.blocks + self.logits


@dataclass
class State:
    """The progress of a healing, saved and resumed beside the weights."""

    phase: Phase = "blocks"
    step: int = 0
    best: float = math.inf
    misses: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)


def parse_healing(words: Sequence[str]) -> Healing:
    """The healing of words such as tokens=100k, blocks=50k, lora=16; ValueError if one is wrong."""
    found: dict[str, Any] = {}
    known = {"tokens": _tokens, "blocks": _tokens, "logits": _tokens, "lora": int, "seed": int,
             "blocks_lr": float, "logits_lr": float, "temperature": float}  # fmt: skip
    for word in words:
        name, equals, value = word.partition("=")
        if (name == "teacher" and value) or (name == "precision" and value in ("bf16", "fp32")):
            found[name] = value
            continue
        try:
            found[name] = known[name](value)
            least = 1e-6 if name == "temperature" else 0
            if not equals or not found[name] >= least or math.isinf(found[name]):
                raise ValueError
        except (KeyError, ValueError, OverflowError):
            raise ValueError(
                f"--heal {word} is not a setting of healing.\nWrite tokens=100k (half by blocks, "
                "half by logits), or blocks=N and logits=N; and lora=RANK, blocks_lr=X, "
                "logits_lr=X, temperature=X, seed=N, teacher=FOLDER, precision=bf16 or fp32."
            ) from None
    if "tokens" in found:
        tokens = found.pop("tokens")
        logits = found.get("logits", tokens - found.get("blocks", tokens // 2))
        found |= {"blocks": tokens - logits, "logits": logits}
        if min(found["blocks"], logits) < 0:
            raise ValueError("--heal tokens=N is the sum of blocks=N and logits=N; write two.")
    return Healing(**found)


def heal(  # noqa: PLR0913
    model: Any,
    original: Any,
    text: Windows,
    held_out: Windows,
    healing: Healing,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
    teacher: Any = None,
    start: str = "",
) -> list[tuple[str, int, float]]:
    """Train the changed layers in place; the distance from the original by phase and tokens.

    Blocks learn from the original's, predictions from those of ``teacher`` if there is one.
    ``folder`` holds the state: the same call resumes a healing that was interrupted, with the same
    batches; ``start`` says how the changed weights were made, and those of another are refused.
    The weights that are kept, the start included, are those nearest to the teacher on the
    windows of ``held_out``: by divergence of predictions, or squared error if there are none.
    """
    healer = Healer(
        model, Lessons(original), text, held_out, healing, folder, progress, teacher, start
    )
    for _ in healer.steps():
        pass
    return healer.history


class Lessons:
    """The inputs and outputs of a model's attention layers, on the batch asked for last.

    So models that are healed side by side, on the same batches, share one pass of the original.
    """

    def __init__(self, original: Any) -> None:
        """Lessons that have read no batch."""
        self.original = original
        self._asked: tuple[Tensor, Precision] | None = None
        self._calls: dict[int, Call] = {}

    @torch.no_grad()
    def of(self, batch: Tensor, precision: Precision) -> dict[int, Call]:
        """The call of each layer, by its number."""
        asked = self._asked
        if asked is None or asked[1] != precision or not torch.equal(asked[0], batch):
            with recording_calls(layers_of(self.original)) as calls, _computing_in(precision):
                self.original.base_model(input_ids=batch)
            self._asked = batch, precision
            self._calls = {number: call for number, [call] in calls.items()}
        return self._calls


class Healer:
    """One healing, as `heal` has it, that can be taken step by step."""

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        lessons: Lessons,
        text: Windows,
        held_out: Windows,
        healing: Healing,
        folder: Path,
        progress: Callable[[str], None],
        teacher: Any = None,
        start: str = "",
    ) -> None:
        """A healing that has not begun."""
        original = lessons.original
        self.model, self.original, self.text, self.held_out = model, original, text, held_out
        self.teacher, self.lessons = original if teacher is None else teacher, lessons
        self.healing, self.folder, self.progress = healing, folder, progress
        self.pairs = _changed_layers(model, original)
        changed = [name for _, name, _, _ in self.pairs]
        outputs = [_sibling(name, theirs) for _, name, _, theirs in self.pairs]
        changed += [output for output in outputs if output]
        self.lora = _add_lora(model, changed, healing)
        self.parameters = _trained(model, changed)
        self.windows_per_step = max(1, STEP_TOKENS // text.shape[1])
        predicts = original.get_output_embeddings() is not None
        self.difference = divergence if predicts else squared_error
        with torch.no_grad():
            self.targets = [_output(self.teacher, row) for row in held_out]
        self.history: list[tuple[str, int, float]] = []
        self.identity = self._identity(start)

    def steps(self) -> Iterator[None]:
        """The healing, or the rest of one that was interrupted, a step at a time."""
        self.model.requires_grad_(requires_grad=False)
        for parameter in self.parameters.values():
            parameter.requires_grad = True
        self.model.eval()
        state = self._resume()
        if state is None:
            distance = self._distance()
            self.history.append(("start", 0, distance))
            self._keep_best()
            state = State(best=distance)
        for phase in ("blocks", "logits"):
            if state.phase != phase:
                continue
            yield from self._phase(phase, state)
            self._load_best()
            if phase == "blocks":
                state.phase, state.step, state.misses = "logits", 0, 0
                self._optimizer_state = None
        self.model.requires_grad_(requires_grad=True)
        if self.lora is not None:
            self.lora()

    def _phase(self, phase: Phase, state: State) -> Iterator[None]:
        tokens = self.healing.blocks if phase == "blocks" else self.healing.logits
        per_step = self.windows_per_step * self.text.shape[1]
        steps = math.ceil(tokens / per_step)
        if not steps:
            return
        peak = self.healing.blocks_lr if phase == "blocks" else self.healing.logits_lr
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=peak, weight_decay=0.0)
        if state.step and self._optimizer_state is not None:
            _fill(optimizer, self.parameters, self._optimizer_state)
        every = max(steps // CHECKS, math.ceil(2 * self.held_out.numel() / per_step))
        step_loss = self._blocks_loss if phase == "blocks" else self._logits_loss
        time_left = TimeLeft(f"healing by {phase}", steps, self.progress, first=state.step)
        while state.step < steps and state.misses < PATIENCE:
            for group in optimizer.param_groups:
                group["lr"] = peak * _schedule(state.step, steps)
            step_loss(self._batch(phase, state.step))
            nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            time_left.done(state.step)
            if state.step % every == 0 or state.step == steps:
                distance, read = self._distance(), min(state.step * per_step, tokens)
                self.history.append((phase, read, distance))
                self.progress(
                    f"healing by {phase}: {read:,} of {tokens:,} tokens, "
                    f"{self._measure} {distance:.4f} (best {state.best:.4f})"
                )
                if distance < state.best:
                    state.best, state.misses = distance, 0
                    self._keep_best()
                else:
                    state.misses += 1
                self._save(state, optimizer)
            yield

    def _batch(self, phase: Phase, step: int) -> Tensor:
        """The windows of a step: every window once in a pass, in an order by its seed."""
        first = step * self.windows_per_step
        if phase == "logits":
            first += -(-self.healing.blocks // self.text.shape[1])
        rows = []
        for place in range(first, first + self.windows_per_step):
            turn, row = divmod(place, len(self.text))
            rng = torch.Generator().manual_seed(self.healing.seed + 1009 * turn)
            rows.append(int(torch.randperm(len(self.text), generator=rng)[row]))
        return self.text[rows]

    def _blocks_loss(self, batch: Tensor) -> None:
        """Backward of the squared error of each changed layer's output, as a share."""
        precision = self.healing.precision
        lessons = self.lessons.of(batch, precision)
        for number, name, ours, theirs in self.pairs:
            with _computing_in(precision):
                found = lessons[number].again(ours)
                if sibling := _sibling(name, theirs):
                    found = self.model.get_submodule(sibling)(found)
            squared_error(lessons[number].output.float(), found.float()).backward()

    def _logits_loss(self, batch: Tensor) -> None:
        """Backward of the divergence from the original's predictions, at a temperature."""
        for row in batch:
            with _computing_in(self.healing.precision):
                with torch.no_grad():
                    wanted = _output(self.teacher, row)
                found = _output(self.model, row)
            loss = self.difference(*_common(wanted, found), self.healing.temperature)
            (loss / len(batch)).backward()

    @property
    def _measure(self) -> str:
        """The name of the distance that decides."""
        return self.difference.__name__.replace("_", " ")

    @torch.no_grad()
    def _distance(self) -> float:
        """The mean distance from the original on the deciding windows."""
        pairs = zip(self.targets, self.held_out, strict=True)
        found = [
            float(self.difference(*_common(wanted, _output(self.model, row))))
            for wanted, row in pairs
        ]
        return statistics.fmean(found)

    def _keep_best(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            self.folder / "best.safetensors", {n: p.data for n, p in self.parameters.items()}
        )

    @torch.no_grad()
    def _load_best(self) -> None:
        with safe_open(self.folder / "best.safetensors", "pt") as file:
            for name, parameter in self.parameters.items():
                parameter.copy_(file.get_tensor(name))

    def _identity(self, start: str) -> str:
        """A hash of everything that decides the result; the changed weights by how they start.

        Their last bits may differ if they are fitted again.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.healing), sort_keys=True).encode())
        digest.update(f"{start} {weights_hash(self.original)}".encode())
        if self.teacher is not self.original:
            digest.update(weights_hash(self.teacher).encode())
        for part in (self.text, self.held_out):
            digest.update(f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
        digest.update(json.dumps(self.model.config.qkv_mode).encode())
        for name, parameter in self.parameters.items():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
        return digest.hexdigest()

    def _save(self, state: State, optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"weight.{n}": p.data for n, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            moments = optimizer.state[parameter]
            tensors |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step")}
        notes = {"state": asdict(state), "identity": self.identity, "history": self.history}
        write_whole(self.folder / "last.safetensors", tensors, {"notes": json.dumps(notes)})

    @torch.no_grad()
    def _resume(self) -> State | None:
        """The saved state of this very healing, its weights loaded; None if there is none."""
        self._optimizer_state: dict[str, Tensor] | None = None
        file = self.folder / "last.safetensors"
        if not file.is_file():
            return None
        with safe_open(file, "pt") as saved:
            notes = json.loads(saved.metadata()["notes"])
            if notes["identity"] != self.identity:
                raise ValueError(
                    f"{self.folder.name} is the state of another healing: another model, text, "
                    "start, setting or mode.\nRemove that folder, or write the same request to "
                    "resume it."
                )
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors.pop(f"weight.{name}"))
        self._optimizer_state = tensors
        self.history = [tuple(row) for row in notes["history"]]
        state = State(**notes["state"])
        self.progress(f"resumed healing by {state.phase} after {state.step} steps")
        return state


def _changed_layers(model: Any, original: Any) -> list[tuple[int, str, Any, Any]]:
    """Number, name, our module and the original's layer of each layer whose equation changed."""
    layers = zip(attention_layers(model), layers_of(original), strict=True)
    return [
        (number, name, ours, theirs)
        for number, ((name, ours), theirs) in enumerate(layers)
        if set(ours.plan.matrix_rows) != {"q", "k", "v"} or ours.plan.geometry != theirs.geometry
    ]


def _trained(model: Any, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of these layers that are trained: adapters if there are any."""
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(name.startswith(f"{layer}.") for layer in names)
    }
    adapters = {name: one for name, one in found.items() if "lora_" in name}
    return adapters or found


def _add_lora(model: Any, names: Sequence[str], healing: Healing) -> Callable[[], None] | None:
    """Put adapters on the projections of these layers; the function that merges them."""
    if not healing.lora:
        return None
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        f"{name}.{part}".rstrip(".")
        for name in names
        for part, module in model.get_submodule(name).named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    torch.manual_seed(healing.seed)
    config = LoraConfig(r=healing.lora, lora_alpha=2 * healing.lora, target_modules=targets)
    inject_adapter_in_model(config, model)

    def merge() -> None:
        for target in targets:
            layer: Any = model.get_submodule(target)
            layer.merge()
            parent, _, attribute = target.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())

    return merge


def _computing_in(precision: Precision) -> Any:
    """Matrices are multiplied in this type inside."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _sibling(name: str, theirs: Any) -> str | None:
    """The name of a layer's output projection if it is not in its attention class."""
    if theirs.family.output is not None:
        return None
    return f"{name.rpartition('.')[0]}.{OUTPUTS[theirs.family.kind]}"


def _output(model: Any, row: Tensor) -> Tensor:
    """The logits of each place, or the last hidden states of a model without a head."""
    output = model(input_ids=row[None])
    return (output.logits if "logits" in output else output.last_hidden_state)[0].float()


def _common(wanted: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs that both have: tables of logits are filled up to other lengths in each model."""
    most = min(wanted.shape[-1], found.shape[-1])
    return wanted[:, :most], found[:, :most]


def divergence(wanted: Tensor, found: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean divergence of predictions in nats."""
    log_p, log_q = (functional.log_softmax(x / temperature, -1) for x in (wanted, found))
    return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * temperature**2


def squared_error(wanted: Tensor, found: Tensor, _: float = 1.0) -> Tensor:
    """The squared error of hidden states as a share, for models that predict no tokens."""
    return (found - wanted).square().sum() / wanted.square().sum()


def _schedule(step: int, steps: int) -> float:
    """A warm-up over a tenth of the steps, then a cosine to zero."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _fill(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give an optimizer the moments that were saved."""
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")
        }


def write_whole(
    file: Path, tensors: Mapping[str, Tensor], notes: dict[str, str] | None = None
) -> None:
    """Write a file that is whole or absent."""
    making = file.with_name(file.name + ".making")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, making, notes)
    making.replace(file)


def _tokens(text: str) -> int:
    """A number of tokens; k and M are thousands and millions."""
    factor = {"k": 1_000, "K": 1_000, "M": 1_000_000, "m": 1_000_000}.get(text[-1:], 1)
    return round(float(text[:-1] if factor > 1 else text) * factor)
