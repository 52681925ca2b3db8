"""Main effects of design choices, averaged over the others, and their interactions."""

from collections.abc import Sequence

from qkvbench.reports.parts.formatting import metric_text, p_text, plural, printable
from qkvbench.results.effects import CONFIDENCE, Effect, Effects, effects
from qkvbench.results.view import View
from qkvbench.results.welch import unit_of

ABOUT = "main effects and interactions of function, heads and positions, with intervals"
SUFFIX = "txt"

NOTHING = (
    "No task of this study has residual degrees of freedom for a model of function, heads and "
    "positions: it needs two functions, and more runs than parameters, such as more seeds."
)


def render(view: View) -> str:
    """One section for each task."""
    by_task = effects(view.runs)
    if not by_task:
        return f"{printable(view.name)}\n\n{NOTHING}\n"
    return "\n\n".join([printable(view.name), *(_part(each) for each in by_task)]) + "\n"


def _part(task: Effects) -> str:
    lines = [
        f"{printable(task.task)} · {metric_text(task.metric)} · {plural(task.runs, 'run')}"
        + (f", {task.unscored} without a score are left out" if task.unscored else "")
        + (f", {task.unplain} of arms with another size or block are, too" if task.unplain else ""),
        f"Mean {task.mean:.4g}; residual deviation {task.residual_deviation:.3g} "
        f"({plural(task.degrees, 'degree')} of freedom), {_residual_parts(task)}.",
    ]
    if task.at_floor:
        lines.append(
            f"Left out: the runs with {', '.join(task.at_floor)} positions, where a model without "
            "attention does as well as half of the arms."
        )
    if task.metric.solved is not None:
        lines.append(
            "A run either solves this task or does not, so the scores are bimodal: the residual is "
            "mostly whether a run solves it, not how well."
        )
    lines += ["", "term                     df  share of variation       F  p (Holm)"]
    lines += [
        f"{term.name:<24} {term.degrees:>2}  {term.share:>18.1%}  {term.f:>6.3g}  {p_text(term.p)}"
        for term in task.terms
    ]
    lines += [
        "",
        f"Main effects, {CONFIDENCE:.0%} intervals for all of them at once",
        *_scale(task),
    ]
    lines += [_line(each, f"{each.factor} {each.level}") for each in task.effects]
    significant = [each for each in task.interactions if each.significant]
    lines += ["", _interactions_heading(significant, len(task.interactions))]
    lines += [_line(each, f"{each.factor}, under {each.level}") for each in significant]
    return "\n".join(lines)


def _scale(task: Effects) -> list[str]:
    """The scale of the effects, and what the intervals allow for."""
    lines = ["The noise of runs may differ from arm to arm: none of it is pooled (HC3)."]
    if unit_of(task.metric.unit).logit:
        lines.append(
            "Terms and effects are computed on logits; an effect is given as the change from the "
            "mean of what it is against."
        )
    return lines


def _residual_parts(task: Effects) -> str:
    if task.item_deviation is None:
        return "which is noise of a run and interactions outside of the model"
    return (
        f"of which test items are {task.item_deviation:.3g}; the rest is noise of a run and "
        "interactions outside of the model"
    )


def _interactions_heading(significant: Sequence[Effect], count: int) -> str:
    if not count:
        return "Interactions with positions: the runs have one scheme, or none can be estimated."
    if not significant:
        return f"Interactions with positions: none of {count} is significant."
    return (
        f"Significant interactions with positions, {len(significant)} of {count}: the effect of "
        f"the choice minus its effect under {significant[0].versus}"
    )


def _line(effect: Effect, name: str) -> str:
    sign = "*" if effect.significant else " "
    against = f"against {effect.versus}"
    return (
        f"{sign} {name:<32} {effect.value:>+8.4f}  [{effect.low:+.4f}, {effect.high:+.4f}]  "
        f"{p_text(effect.p):<10} {against}"
    )
