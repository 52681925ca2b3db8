"""`qkvbench atlas`: every form of attention in use, as an equation, with its costs."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench import atlas
from qkvbench.atlas import Cost, Form
from qkvbench.cli import atlas_page, names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.show import cache_text, drawing
from qkvbench.cost.units import bytes_text, count_text

WIDTH = 150
# Models that are named in a row of the table.
NAMED = 3


def answer(request: Request) -> int:
    """Print the table or one form, or write the page."""
    if request.name is None and request.out is None and not request.json:
        print_table(_console())
        return 0
    if request.out is not None:
        names.write_page(Path(request.out), atlas_page.page())
        return 0
    chosen = atlas.forms() if request.name is None else _named(request.name)
    if request.json:
        print(json.dumps([facts(form) for form in chosen], indent=1, ensure_ascii=False))
    else:
        print("\n".join(line for form in chosen for line in [*detail(form), ""]))
    return 0


def facts(form: Form) -> dict[str, object]:
    """A form as JSON values; bytes at 2 a number, MACs of a forward pass of so many tokens."""
    return {
        "name": form.name,
        "about": form.about,
        "equation": form.equation and form.written(form.common),
        "lacks": form.lacks or None,
        "positions": atlas.positions_text(form),
        "site": form.site,
        "used_by": list(form.users),
        "source": form.source,
        "proved": form.proved,
        "library_keeps": [each.text for each in form.library_keeps],
        "tokens": atlas.TOKENS,
        "common": _cost_facts(atlas.cost_of(form, form.common)) if form.equation else None,
        "layers": [
            {
                "layer": layer.name,
                "largest_difference": measured and measured.largest,
                **_cost_facts(atlas.cost_of(form, form.own(layer))),
            }
            for layer in form.layers
            for measured in [form.measured(layer)]
        ],
    }


def print_table(console: Console) -> None:
    """The answer in a line, then a row for each form."""
    console.print(Text(atlas.answer(), style="bold"))
    console.print()
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.header_style = "bold"
    narrow = console.width < LEAST_COLUMNS
    shown = [place for place, name in enumerate(HEADS) if not (narrow and name in WIDE_ONLY)]
    for place in shown:
        figure = place >= HEADS.index("parameters")
        table.add_column(
            HEADS[place],
            overflow="fold",
            justify="right" if figure else "left",
            no_wrap=figure or HEADS[place] == "form",
        )
    for form in atlas.forms():
        if form.equation:
            cells = _cells(form)
            table.add_row(*(cells[place] for place in shown))
    console.print(table)
    console.print()
    console.print(Text("Not expressed", style="bold"))
    for form in (*atlas.forms(), *atlas.NOT_EXPRESSED):
        if not form.equation:
            console.print(Text.assemble((f"  {form.name}", "bold"), f": {form.lacks}"))
    console.print()
    console.print(Text("Of papers, in no layer of transformers", style="bold"))
    for form in atlas.PAPERS:
        equation = form.written(form.common)
        console.print(Text.assemble((f"  {form.name}", "bold"), f": {equation}, {form.source}"))
    console.print()
    console.print(Text(COLUMNS + (NARROW if narrow else ""), style="dim"))


HEADS = (
    *("form", "equation", "positions", "used by", "parameters", "MACs", "cache", "library"),
    *("own cache", "own library"),
)
# What a terminal of fewer columns than `LEAST_COLUMNS` leaves out, so that equations stay.
LEAST_COLUMNS = 120
WIDE_ONLY = ("positions", "parameters", "MACs", "own cache", "own library")
NARROW = f" On {LEAST_COLUMNS} columns and with --json there is more."
COLUMNS = (
    f"One layer of d_model {atlas.COMMON['d_model']:g}, {atlas.COMMON['heads']:g} heads of "
    f"{atlas.COMMON['head_dim']:g}, {atlas.COMMON['kv_heads']:g} of K and V if they are grouped; "
    f"MACs of {atlas.TOKENS} tokens. cache: bytes that suffice for a past token, at 2 a number; "
    "library: those that transformers keeps; own: at the sizes of the first model. "
    "'qkvbench atlas NAME' prints one form, or those of a model."
)


def _cells(form: Form) -> list[Text | str]:
    common = atlas.cost_of(form, form.common)
    own = atlas.cost_of(form, form.own(form.layers[0])) if form.layers else None
    users = [user.split()[0] for user in form.users]
    more = f" +{len(set(users)) - NAMED}" if len(set(users)) > NAMED else ""
    return [
        Text(form.name, style="" if form.proved else "dim"),
        form.written(form.common),
        atlas.positions_text(form),
        ", ".join(list(dict.fromkeys(users))[:NAMED]) + more,
        count_text(common.parameters),
        count_text(common.macs),
        *_caches(form, common),
        *(_caches(form, own) if own else ("", "")),
    ]


def _caches(form: Form, cost: Cost) -> tuple[str, str]:
    if form.site == "encoder":
        return "–", "–"
    return bytes_text(cost.cache_bytes), bytes_text(cost.library_bytes)


def detail(form: Form) -> list[str]:
    """The lines of one form: equation, drawing, costs, and its layers in the library."""
    lines = [f"{form.name}   {form.about}"]
    if not form.equation:
        keeps = ", ".join(each.text for each in form.library_keeps) or "nothing"
        return [
            *lines,
            f"  not expressed: the notation lacks {form.lacks}",
            *([f"  used by   {', '.join(form.users)}"] if form.users else []),
            f"  library   keeps {keeps}",
            f"  source    {form.source}",
        ]
    plan = form.plan(form.common)
    lines += ["", *drawing(plan), "", *(cache_text(plan) if form.site == "decoder" else [])]
    common = atlas.cost_of(form, form.common)
    sizes = ", ".join(f"{name} {value:g}" for name, value in form.common.items())
    lines += [
        "",
        f"  equation    {form.written(form.common)}",
        f"  positions   {atlas.positions_text(form)}",
        *([f"  used by     {', '.join(form.users)}"] if form.users else []),
        f"  source      {form.source}",
        f"  sizes       {sizes}: the atlas's, for comparison",
        f"  parameters  {common.parameters:,}",
        f"  MACs        {common.macs:,} of {atlas.TOKENS} tokens",
    ]
    if not form.users:
        lines += [f"  cache       {bytes_text(common.cache_bytes)} of a token suffice"]
    elif form.site != "encoder":
        keeps = ", ".join(each.text for each in form.library_keeps)
        lines += [
            f"  cache       {bytes_text(common.cache_bytes)} of a token suffice; the library keeps "
            f"{bytes_text(common.library_bytes)}: {keeps}"
        ]
    for layer in form.layers:
        own, measured = atlas.cost_of(form, form.own(layer)), form.measured(layer)
        size = ", ".join(f"{name} {value:g}" for name, value in layer.own.items())
        caches = _caches(form, own)
        lines += [
            "",
            f"  {layer.model} {layer.attention}: {size}",
            f"    equal in fp64 to {measured.largest:.0e}" if measured else "    not measured",
            f"    cache of a token {caches[0]}, in the library {caches[1]}",
            *(f"    {text}" for text in atlas.weights_text(layer)),
        ]
    return lines


def _named(name: str) -> tuple[Form, ...]:
    """The form with this name, or every form of a model."""
    wanted = name.strip().lower()
    forms = (*atlas.forms(), *atlas.PAPERS, *atlas.NOT_EXPRESSED)
    if found := tuple(form for form in forms if form.name == wanted):
        return found
    models = {user.split()[0].lower() for form in forms for user in form.users}
    if wanted in models:
        return tuple(
            form for form in forms if wanted in {user.split()[0].lower() for user in form.users}
        )
    known = [*(form.name for form in forms), *sorted(models)]
    raise RequestError(
        f"The atlas has no form and no model '{name}'.{names.suggestion(name, known)}\n"
        "'qkvbench atlas' lists the forms."
    )


def _cost_facts(cost: Cost) -> dict[str, object]:
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "cache_bytes_per_token": cost.cache_bytes,
        "library_bytes_per_token": cost.library_bytes,
    }


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=WIDTH, highlight=False)
