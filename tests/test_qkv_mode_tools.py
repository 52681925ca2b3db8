"""Trainer, PEFT, torch.compile, the harness and remote code with `qkv_mode`: slow tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from qkv_mode_models import HEAD, VOCABULARY, config_of, inputs_of, model_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Sums in another order, in fp32.
NEAR = 1e-5


def _examples(count=24):
    rng = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCABULARY, (count, 1), generator=rng).expand(count, 12).clone()
    rows = 3 + (rows + torch.arange(12)) % (VOCABULARY - 3)
    return [{"input_ids": row, "labels": row} for row in rows]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_trainer_trains_a_mode_and_its_checkpoint_loads(kind, tmp_path):
    transformers.set_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind, qkv_mode="shared"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=60,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to=[],
        logging_steps=10,
        save_steps=60,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=_examples())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) == len(before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-60").eval()
    with torch.no_grad():
        inputs = inputs_of(kind)
        assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


# PEFT uses an old name of transformers.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "targets"),
    [("llama", ["q_proj", "o_proj"]), ("gpt2", ["c_attn"]), ("bert", ["query"])],
)
def test_lora_finds_the_projections_by_the_library_s_names_and_merges(kind, targets, tmp_path):
    import peft

    model = model_of(kind, qkv_mode="shared")
    inputs = inputs_of(kind)
    with torch.no_grad():
        plain = model(**inputs).logits
    lora = peft.LoraConfig(
        r=2, target_modules=targets, fan_in_fan_out=kind == "gpt2", init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, lora)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    adapted(**inputs).logits.square().sum().backward()
    with torch.no_grad():
        changed = adapted(**inputs).logits
        assert not torch.allclose(changed, plain)
        adapted.save_pretrained(tmp_path)
        merged = adapted.merge_and_unload()
        assert (merged(**inputs).logits - changed).abs().max() < 1e-3


COMPILED = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from qkv_mode_models import inputs_of, model_of

model, inputs = model_of("llama", qkv_mode=sys.argv[2]), inputs_of("llama")
plain = model(**inputs).logits
compiled = torch.compile(model)(**inputs).logits
gradients = []
for logits in (plain, compiled):
    model.zero_grad()
    logits.square().sum().backward()
    gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
for name, gradient in gradients[0].items():
    torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-3)
print((compiled - plain).abs().max().item() / max(1.0, plain.detach().abs().max().item()))
"""


# In a subprocess without the shape checks of tests, which the compiler cannot trace.
@pytest.mark.parametrize("mode", [pytest.param("shared", marks=pytest.mark.nightly), "q,k=v"])
def test_a_compiled_model_computes_the_same_forward_and_backward(mode):
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, tests, mode], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < NEAR


COMPILED_LAYER = """
import torch
import qkvbench
from qkvbench.model import Rotary

layer = qkvbench.torch.Attention(VARIANT, d_model=48, heads=4, POSITION)
x = torch.randn(2, 7, 48)
compiled = torch.compile(layer, backend="aot_eager")(x)
print((compiled - layer(x)).abs().max().item())
"""


@pytest.mark.parametrize(
    ("variant", "position"), [("q,k=v", "position=Rotary()"), ("q,k,v+2d", "")]
)
def test_a_layer_with_tables_of_positions_compiles_on_its_first_call(variant, position):
    script = COMPILED_LAYER.replace("VARIANT", repr(variant)).replace("POSITION", position)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < NEAR


# transformers passes torch's mask function a deprecated option.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_flex_attention_goes_forward_with_left_padding():
    model = model_of("llama", qkv_mode="q,k=v", head_dim=16)
    tokens = inputs_of("llama")["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    found = []
    for name in ("eager", "flex_attention"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            found.append(model(tokens, attention_mask=mask, use_cache=False).logits)
    assert ((found[0] - found[1]) * mask[..., None]).abs().max() < 1e-4


def test_the_harness_scores_a_mode_on_a_local_task_as_its_own_logits_say(tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *"abcdefghij"])}
    base = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    documents = [
        {"question": "a b c", "choices": ["d", "e"], "answer": place % 2} for place in range(6)
    ]
    file = tmp_path / "local.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": "local_letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    model = model_of("llama", qkv_mode="q,k=v")
    scores = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    with torch.no_grad():
        tokens = torch.tensor([[words[letter] for letter in "abc"]])
        last = model(tokens).logits[0, -1]
    better = int(last[words["e"]] > last[words["d"]])
    expected = sum(document["answer"] == better for document in documents) / len(documents)
    assert scores["results"]["local_letters"]["acc,none"] == expected


_ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("qkvbench", "jaxtyping"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch, transformers
folder, auto = sys.argv[1:3]
found = getattr(transformers, auto)
try:
    found.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error) or "does not recognize" in str(error), error
else:
    raise SystemExit("the code ran without trust_remote_code")
model = found.from_pretrained(folder, trust_remote_code=True).eval()
inputs = torch.load(folder + "/inputs.pt", weights_only=True)
with torch.no_grad():
    torch.save(model(**inputs).logits, folder + "/logits.pt")
"""


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_code_in_the_folder_runs_the_model_without_qkvbench(kind, tmp_path):
    model = model_of(kind, qkv_mode="shared")
    folder = tmp_path / "saved"
    model.save_pretrained(folder, with_code=True)
    inputs = inputs_of(kind)
    torch.save(inputs, folder / "inputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(folder), HEAD[kind]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(folder / "logits.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(found, model(**inputs).logits)


def test_the_example_runs_and_its_cache_is_half():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "qkv_mode.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    sizes = [int(line.split()[1].replace(",", "")) for line in done.stdout.splitlines()]
    # Each row has 64 numbers and the four bytes of its position.
    assert sizes[1] / sizes[0] == pytest.approx((64 + 1) / 128)
