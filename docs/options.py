"""The options of every command in commands.md; suffixes and changes of blocks in notation.md.

Run     python docs/options.py
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from qkvbench.cli.ls import blocks, suffixes
from qkvbench.cli.parser import build_parser

COMMANDS = Path(__file__).with_name("commands.md")
NOTATION = Path(__file__).with_name("notation.md")
SUFFIX_TABLE = "| suffix | meaning |\n|---|---|\n"
BLOCKS = """
## Arms of a study

| written | the arm |
|---|---|
| `a;b` | layers take the equations a and b in turn |
| `a@cross` | a at this attention site of the model, `q,k,v` at the others; `a@cross+self` at two |
| `a@cross\\|b@encoder` | an equation for each site |
| `a~b` | a, with feed-forwards so wide that the model has as many parameters as with b |
| `a~b:macs` | the same with as many multiply-accumulates |
| `a~again` | a with other initial values: two arms that are known to be alike |
| `none` | no attention |

## Other blocks around it

An arm may name changes of its blocks: `q,k,v~rms~parallel`, or `q,k=v~swiglu~q,k,v` with as many
parameters as the base with `q,k,v`. One change at most of the norm, of its place, of the residual
and of the feed-forward; `./qkv ls blocks` prints the same list. A block without any is
x + attention(LayerNorm(x)), then x + feed-forward(LayerNorm(x)), with a GELU between two matrices.

| change | meaning | source |
|---|---|---|
"""
HEADING = "\n## Every option\n"
ABOUT = """
From the parser itself, by `python docs/options.py`. What stands in brackets is the default.
"""


def main() -> None:
    """Write the end of commands.md and that of notation.md."""
    kept, _, _ = COMMANDS.read_text().partition(HEADING)
    COMMANDS.write_text(kept + options())
    kept, _, _ = NOTATION.read_text().partition(SUFFIX_TABLE)
    NOTATION.write_text(kept + suffix_table() + block_table())


def suffix_table() -> str:
    """A row for each suffix."""
    rows = [f"| `{row['name']}` | {_cell(str(row['about']))} |\n" for row in suffixes()]
    return "".join([SUFFIX_TABLE, *rows])


def block_table() -> str:
    """The rows of the changes of blocks, behind the suffixes."""
    rows = [" | ".join(_cell(str(each)) for each in row.values()) for row in blocks()]
    return BLOCKS + "".join(f"| `{row.replace(' | ', '` | ', 1)} |\n" for row in rows)


def options() -> str:
    """The end of commands.md: a table for each command."""
    return "".join([HEADING, ABOUT, *_lines(build_parser())])


def _lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"\n### {name}\n\n{command.description}\n\n| option | meaning |\n|---|---|\n"
                for each in command._actions:
                    if each.help != argparse.SUPPRESS and each.dest != "help":
                        yield f"| {_name(each)} | {_text(each)} |\n"


def _name(action: argparse.Action) -> str:
    """An option and its value, or the name of a word that has no option."""
    value = action.metavar or ("" if action.nargs == 0 else action.dest)
    if action.choices and action.option_strings and not action.metavar:
        value = "{" + ", ".join(map(str, action.choices)) + "}"
    assert isinstance(value, str)
    if action.nargs in ("+", "*"):
        value += " …"
    if action.nargs in ("?", "*") and not action.option_strings:
        value = f"[{value}]"
    names = [f"{each} {value}".strip() for each in action.option_strings] or [value]
    return ", ".join(f"`{_cell(name)}`" for name in names)


def _text(action: argparse.Action) -> str:
    # A doubled sign is argparse's way to write one.
    text = (action.help or "").replace("%%", "%")
    if action.choices and not action.option_strings:
        text = ", ".join(map(str, action.choices))
    return _cell(text) + (", required" if action.option_strings and action.required else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
