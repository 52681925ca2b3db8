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
    if _rates(before) != _rates(now):
        return f"its learning rates are {_rates(before)}"
    old, new = set(before.variants), set(now.variants)
    if before.variants[:1] != now.variants[:1]:
        return f"its baseline is {before.variants[0]}, not {now.variants[0]}"
    if not (old <= new or new <= old):
        return f"it has {_listed(old - new)}, which this one has not, and not {_listed(new - old)}"
    shared = set(before.tasks) & set(now.tasks)
    if shared and before.runs and now.runs and not set(before.runs) & set(now.runs):
        return f"its runs on {_listed(shared)} have another model, training or version"
    return None


def _rates(study: StudyInfo) -> str:
    if study.tuning is None:
        return "the tasks' own"
    source = study.tuning.taken_from
    return "tuned" if source is None else f"those of {source}"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
