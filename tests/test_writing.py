"""Written texts: kept with their scores, scored alike by sacreBLEU's own command."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import fake_study
from qkvbench import tasks
from qkvbench.backends.torch import Learner
from qkvbench.cli import main
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment
from qkvbench.results.record import GeneratedTexts
from qkvbench.results.store import Store
from qkvbench.task_ref import TaskRef
from qkvbench.tasks.kinds.generation_scores import bleu_and_chrf, on_one_line
from qkvbench.train import run
from qkvbench.train.loop import generate

TASK = tasks.find("translation")


def _hypotheses():
    """Texts that are right in part: words of the references left out, cased otherwise, empty."""
    rng = np.random.default_rng(0)
    texts = []
    for reference in TASK.generation.references()[:300]:
        words = [word for word in reference.split() if rng.random() < 0.8]
        texts.append(" ".join(words if rng.random() < 0.9 else map(str.lower, words)))
    return texts


@pytest.fixture(name="store")
def _store(tmp_path):
    texts = _hypotheses()
    scored = bleu_and_chrf(texts, TASK.generation.references()[: len(texts)])
    (experiment,) = fake_study.experiments("translation", arms=["q,k,v"], seeds=1)
    record = fake_study.record(experiment).model_copy(
        update={
            "metrics": scored.metrics,
            "written": GeneratedTexts(texts=texts, signatures=scored.signatures),
            "data_identity": TASK.load().identity,
        }
    )
    store = Store(tmp_path / "store")
    store.write_run(record)
    return store


def test_the_command_of_sacrebleu_gives_the_scores_of_the_record(store, tmp_path, capsys):
    out = tmp_path / "texts of it"
    assert main(["texts", str(store.path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    (command,) = [line.strip() for line in said.splitlines() if "sacrebleu" in line]
    name, *words = shlex.split(command)
    # As the line says it, with all digits instead of four.
    assert words[-2:] == ["-w", "4"]
    done = subprocess.run(
        [sys.executable, "-m", name, *words[:-1], "12"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {each["name"].lower(): each for each in json.loads(done.stdout)}
    (record,) = store.runs().good
    assert 30 < record.metrics["bleu"] < 90
    assert found["bleu"]["score"] == round(record.metrics["bleu"], 12)
    # The number behind chrF is that of its signature's own beta.
    assert found["chrf2"]["score"] == round(record.metrics["chrf"], 12)
    for score, name in (("bleu", "bleu"), ("chrf", "chrf2")):
        assert found[name]["signature"] == record.written.signatures[score]
        assert record.written.signatures[score] in said


def test_texts_that_were_scored_on_other_data_are_not_written_beside_these(store, tmp_path, capsys):
    (record,) = store.runs().good
    store.write_run(record.model_copy(update={"data_identity": "0" * 64}))
    assert main(["texts", str(store.path), "--out", str(tmp_path / "out")]) == 2
    assert "not those with which" in capsys.readouterr().err


def test_a_study_without_texts_says_which_task_has_them(tmp_path, capsys):
    store = Store(tmp_path)
    (experiment,) = fake_study.experiments("sort", arms=["q,k,v"], seeds=1)
    store.write_run(fake_study.record(experiment))
    assert main(["texts", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "--tasks translation" in capsys.readouterr().err


def test_a_text_of_many_lines_is_one_line():
    assert on_one_line(" a\r\nb\u2028c\x85 \x1cd ") == "a b c d"


class _Copying(Learner):
    """A model that writes what it is given."""

    def write(self, batch, search):
        assert search == TASK.generation.search
        lengths = batch.second.lengths
        return [row[:length] for row, length in zip(batch.second.inputs, lengths, strict=True)]


def test_each_item_is_written_once_and_in_order():
    test = TASK.load().test
    learner = _Copying(Experiment(TASK.model, TaskRef("translation"), 1, TASK.training, seed=10))
    texts, scored = generate(TASK.generation, learner, test, None)
    assert texts == TASK.generation.sources()
    assert scored == bleu_and_chrf(texts, TASK.generation.references())
    assert generate(TASK.generation, learner, test, 7)[0] == texts[:7]


def test_the_labels_of_what_is_scored_are_never_smoothed():
    """The loss of a prediction is that of the formula without ε, in training with it."""
    few = replace(TASK.training, steps=1, batch=4)
    batch = TASK.load().validation.batch(np.arange(4))
    assert isinstance(batch, Batch)
    losses, trained = {}, {}
    for smoothing in (0.0, 0.3):
        training = replace(few, smoothing=smoothing)
        learner = Learner(Experiment(TASK.model, TaskRef("translation"), 1, training, seed=10))
        losses[smoothing] = learner.predict(batch).loss
        trained[smoothing], _ = learner.gradients(batch)
    np.testing.assert_array_equal(losses[0.0], losses[0.3])
    scored = losses[0.0][batch.targets >= 0].mean()
    assert trained[0.0] == pytest.approx(scored, rel=1e-5)
    assert trained[0.3] != pytest.approx(scored, rel=1e-3)


@pytest.mark.nightly
@pytest.mark.timeout(900)  # a whole training, on a busy machine
def test_what_was_learned_translates_better_than_copying_and_than_nothing_learned():
    training = {steps: replace(TASK.training, steps=steps) for steps in (1, TASK.training.steps)}
    found = {
        steps: run(Experiment(TASK.model, TaskRef("translation"), TASK.version, each, seed=10))
        for steps, each in training.items()
    }
    references = TASK.generation.references()
    copied = bleu_and_chrf(TASK.generation.sources(), references).metrics["bleu"]
    learned = found[TASK.training.steps]
    assert learned.status == "done"
    assert len(learned.written.texts) == len(references)
    assert found[1].metrics["bleu"] < 1 < copied < learned.metrics["bleu"] / 1.5
