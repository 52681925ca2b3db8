"""The name of a task with its options: a value, and the one text in which it is written.

    name[@length][#tokenizer][@position][@HEADSxHEAD_DIM]

`lm-reviews#bpe-1024` reads the same text with another tokenizer, `long-plays@8192` in windows of
another length; the model of `recall@rotary` has RoPE, that of `recall@1x64` one head of 64
coordinates. The name may be the path of a person's own data, which has no length.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from qkvbench.model import POSITIONS

# Data of one's own that `tasks.own` reads, by suffix.
OWN_SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".csv", ".tsv")

# Numbers are written without leading zeros, so each task has one text. The tokenizer of a path has
# no dot and no separator: what has one belongs to the path.
_OPTIONS = re.compile(
    r"(?P<base>.+?)"
    r"(?:#(?P<tokenizer>[^#./\\]*?))?"
    rf"(?:@(?P<position>(?:{'|'.join(POSITIONS)})(?:/[0-9.]+)?))?"
    r"(?:@(?P<heads>0|[1-9][0-9]{0,3})x(?P<head_dim>0|[1-9][0-9]{0,3}))?",
    re.DOTALL,
)
_LENGTH = re.compile(r"(.+)@(0|[1-9][0-9]{0,8})", re.DOTALL)


@dataclass(frozen=True)
class HeadSizes:
    """So many heads of so many coordinates, in place of a model's own."""

    heads: int
    head_dim: int

    def __str__(self) -> str:
        """As in ``1x64``."""
        return f"{self.heads}x{self.head_dim}"


@dataclass(frozen=True)
class TaskRef:
    """A task's name or path, and its options; None leaves the task's own.

    ``length`` and ``tokenizer`` say how inputs are read, ``position`` and ``heads`` what the
    model is built with. Whether there is such a task, and whether it has these options, is for
    `tasks.find` to say.
    """

    name: str
    length: int | None = None
    tokenizer: str | None = None
    position: str | None = None
    heads: HeadSizes | None = None

    def __str__(self) -> str:
        """The text that `parse_task` reads."""
        options = (
            ("@", self.length),
            ("#", self.tokenizer),
            ("@", self.position),
            ("@", self.heads),
        )
        return self.name + "".join(f"{mark}{it}" for mark, it in options if it is not None)

    @property
    def is_path(self) -> bool:
        """Whether the name is a path: it has a separator or a suffix of data of one's own."""
        return _is_path(self.name)

    @property
    def inputs(self) -> "TaskRef":
        """The same inputs and targets, read by the task's own model."""
        return replace(self, position=None, heads=None)


def parse_task(text: str) -> TaskRef:
    """The task that a text names, such that ``str(parse_task(text)) == text``.

    Every text is one: what follows no rule stays in the name, and no task has that name.
    """
    found = _OPTIONS.fullmatch(text)
    if found is None:
        return TaskRef(text)
    base, length = found["base"], None
    if not _is_path(base) and (sized := _LENGTH.fullmatch(base)):
        base, length = sized[1], int(sized[2])
    heads = HeadSizes(int(found["heads"]), int(found["head_dim"])) if found["heads"] else None
    return TaskRef(base, length, found["tokenizer"], found["position"], heads)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each task's name as a table has it: of a path only the folders that make it unique."""
    refs = {name: parse_task(name) for name in names}
    short = {name: _ending(ref, 1) for name, ref in refs.items()}
    for parts in range(2, 1 + max((len(Path(ref.name).parts) for ref in refs.values()), default=0)):
        counts = Counter(short.values())
        short |= {name: _ending(refs[name], parts) for name in refs if counts[short[name]] > 1}
    # `./a.txt` and `a.txt` are one file under two names.
    counts = Counter(short.values())
    return {name: text if counts[text] == 1 else name for name, text in short.items()}


def _ending(ref: TaskRef, parts: int) -> str:
    """The last parts of a path with the options; another name is whole."""
    if not ref.is_path:
        return str(ref)
    return str(replace(ref, name=str(Path(*Path(ref.name).parts[-parts:]))))


def _is_path(name: str) -> bool:
    return "/" in name or os.sep in name or Path(name).suffix.lower() in OWN_SUFFIXES


def _as_task(value: object) -> object:
    return parse_task(value) if isinstance(value, str) else value


# In a file a task is its text.
TaskText = Annotated[TaskRef, BeforeValidator(_as_task), PlainSerializer(str, return_type=str)]
