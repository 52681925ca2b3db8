"""Three tasks of lm-evaluation-harness on a checkpoint and its conversions, without the Hub.

Run     ./qkv setup hf eval, then
        .venv/bin/python benchmarks/harness.py smollm2-135m FOLDER ... [--documents N]
Tasks   sentiment: praise or blame of a film in a sentence; last word: the perplexity of the last
        word of a sentence; continuation: the line of a play that follows, among three of that play

Each folder is loaded by the harness itself, with the code that lies in it (trust_remote_code), as a
machine without qkvbench would. Beside each score stands its difference from the first source's on
the same documents, with the standard error of that difference; for the last word it is of the
logarithm of the perplexity, in nats.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from qkvbench.data import plays
from qkvbench.data.labelled_reviews import labelled_reviews
from qkvbench.hub.fit.source import find

Document = dict[str, Any]


def sentiment(count: int, rng: random.Random) -> list[Document]:
    """Sentences about films, half of them praise."""
    texts, verdicts = labelled_reviews("rotten_tomatoes")
    found = [
        rng.sample([t for t, v in zip(texts, verdicts, strict=True) if v == wanted], count // 2)
        for wanted in (0, 1)
    ]
    return [
        {"text": f"Review: {text}\nSentiment:", "choices": ["negative", "positive"], "answer": n}
        for n, sentences in enumerate(found)
        for text in sentences
    ]


def last_word(count: int, rng: random.Random) -> list[Document]:
    """Sentences of reviews without their last word."""
    texts, _ = labelled_reviews("imdb")
    found: list[Document] = []
    for text in rng.sample(texts, 4 * count):
        words = text.split(". ")[0].split()
        if 15 <= len(words) <= 40 and words[-1].isalpha():
            found.append({"text": " ".join(words[:-1]), "choices": [words[-1]], "answer": 0})
    return found[:count]


def continuation(count: int, rng: random.Random) -> list[Document]:
    """Four lines of a play, the line that follows, and two others of the same play."""
    lines = [list(_lines(text)) for text in plays.texts()["test"].values()]
    found: list[Document] = []
    for _ in range(count):
        play = rng.choice(lines)
        first = rng.randrange(len(play) - 5)
        choices = [play[first + 4], *rng.sample(play, 2)]
        order = rng.sample(range(3), 3)
        found.append(
            {
                "text": "\n".join(play[first : first + 4]) + "\n",
                "choices": [choices[n] for n in order],
                "answer": order.index(0),
            }
        )
    return found


def _lines(text: str) -> Iterator[str]:
    """Whole lines of verse or prose, without names of speakers."""
    for line in text.splitlines():
        if len(line.split()) > 5:
            yield line.strip()


# Tasks with their kind of output, what joins a text and its choices, and their measure.
TASKS = {
    "sentiment": (sentiment, "multiple_choice", " ", "acc"),
    "last_word": (last_word, "loglikelihood", " ", "perplexity"),
    "continuation": (continuation, "multiple_choice", "", "acc"),
}


def tasks(folder: Path, count: int) -> list[dict[str, Any]]:
    """The tasks as the harness wants them, their documents in files of the folder."""
    found = []
    for name, (make, output_type, delimiter, metric) in TASKS.items():
        file = folder / f"{name}.jsonl"
        documents = make(count, random.Random(0))
        file.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
        choice = {"doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
        # The harness puts a delimiter before choices alone.
        word = {"doc_to_target": "{{' ' + choices[0]}}"}
        found.append(
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {
                    "data_files": {"test": str(file)},
                    "cache_dir": str(folder / "cache"),
                },
                "test_split": "test",
                "output_type": output_type,
                "doc_to_text": "{{text}}",
                "target_delimiter": delimiter,
                "metric_list": [{"metric": metric}],
            }
            | (choice if output_type == "multiple_choice" else word)
        )
    return found


def main() -> None:
    """A line of scores for each checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sources", nargs="+", help="a folder, or a model that comes in a package")
    parser.add_argument("--documents", type=int, default=100, help="of each task (100)")
    request = parser.parse_args()
    torch.set_num_threads(1)
    first: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        made = tasks(Path(place), request.documents)
        for name in request.sources:
            folder = Path(name) if Path(name).is_dir() else find(name).folder
            scores = simple_evaluate(
                model="hf",
                model_args={
                    "pretrained": str(folder),
                    "dtype": "float32",
                    "trust_remote_code": True,
                },
                tasks=made,
                task_manager=TaskManager(include_defaults=False),
                device="cpu",
                batch_size=4,
                bootstrap_iters=0,
            )
            found: dict[str, Any] = {"source": name, "documents": request.documents}
            for task, (_, _, _, metric) in TASKS.items():
                found[task] = scores["results"][task][f"{metric},none"]
                ours = each_document(scores["samples"][task], metric)
                differences = [
                    b - a for a, b in zip(first.setdefault(task, ours), ours, strict=True)
                ]
                error = statistics.stdev(differences) / len(differences) ** 0.5
                found[f"{task} difference"] = [statistics.fmean(differences), error]
            print(json.dumps(found), flush=True)


def each_document(samples: list[dict[str, Any]], metric: str) -> list[float]:
    """The score of each document: 1 if it is right, or the loss of its last word in nats."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    if metric == "acc":
        return [float(sample[metric]) for sample in ordered]
    return [-float(sample["filtered_resps"][0][0]) for sample in ordered]


if __name__ == "__main__":
    main()
