"""The five configurations of the article's table at 125M: time and memory, here.

Run     python benchmarks/article_table.py [--tokens N] [--seconds S] [--threads N]
        [--findings FOLDER]: `studies/benchmarks` is where the ledger of claims finds them
Takes   about three minutes on one core and 4 GB of memory
Size    GPT-2 small, random weights, fp32, one sequence: a decode step, then a prefill and a forward
        pass if the time allows

The article names neither hardware nor length, so this is no repetition of its table.
"""

import argparse
import time

from findings import add_option, write_findings

from qkvbench.claims.kit.measured import changes
from qkvbench.claims.kit.models import gpt2_small
from qkvbench.claims.kit.reported import ARTICLE
from qkvbench.measure.conditions import Conditions
from qkvbench.measure.observe import observed
from qkvbench.sweep.local import Workers
from qkvbench.variant import parse


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--threads", type=int, default=1)
    add_option(parser)
    words = parser.parse_args()
    models = [gpt2_small().with_variant(parse(arm)) for arm in ARTICLE]
    conditions = Conditions(
        backend="torch",
        precision="fp32",
        threads=words.threads,
        context=words.tokens,
        batch=1,
        seconds=words.seconds,
        cache=None,
    )
    ends_s = time.monotonic() + words.seconds
    with Workers("torch", forked_from="here") as workers:
        observation = observed(models, conditions, workers.call, ends_s)
    found = [change for arm in observation.arms for change in changes(arm)]
    for change in found:
        print(f"{change.quantity:20} {change.text}")
    for left in observation.left_out:
        print(left)
    write_findings(words.findings, "article_table", "cpu", found)


if __name__ == "__main__":
    main()
