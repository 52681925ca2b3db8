"""Whether a study goes on in a folder of results, or is another one than the folder's."""

from qkvbench.results.record import StudyInfo

# What the runs of a study have in common.
COMMON = ("name", "backend", "precision", "threads")


def difference(before: StudyInfo, now: StudyInfo) -> str | None:
    """How `now` is another study than `before`, in words; None if it is the same or a part of it.

    More or fewer seeds, tasks or arms are the same study.
    """
    for field in COMMON:
        if getattr(before, field) != getattr(now, field):
            return f"its {field} is {getattr(before, field)}, not {getattr(now, field)}"
    if (before.tuning is None) != (now.tuning is None):
        return "its learning rates are " + ("the tasks' own" if now.tuning else "tuned")
    old, new = set(before.variants), set(now.variants)
    if before.variants[:1] != now.variants[:1]:
        return f"its baseline is {before.variants[0]}, not {now.variants[0]}"
    if not (old <= new or new <= old):
        return f"it has {_listed(old - new)}, which this one has not, and not {_listed(new - old)}"
    shared = set(before.tasks) & set(now.tasks)
    if shared and before.runs and now.runs and not set(before.runs) & set(now.runs):
        return f"its runs on {_listed(shared)} have another model, training or version"
    return None


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
