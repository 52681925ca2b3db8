"""The error rates of the statistics, by simulated studies whose truth is known.

    python benchmarks/simulate.py --studies 1000

A row marked ! is outside of its bounds; one without bounds shows why a method is not used.
"""

import argparse

from error_rates import every_outcome


def main() -> int:
    """Print the table; exit status 1 if a row is outside of its bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--draw", type=int, default=0, help="another number, other studies")
    options = parser.parse_args()
    print("| arms | seeds | what | found | should be |\n|---|---|---|---|---|")
    broken = 0
    for row in every_outcome(options.studies, draw=options.draw):
        bad = not row.kept and not row.exempt
        broken += bad
        mark = " !" if bad else ""
        wanted = "–" if row.exempt else f"{row.low:.1%} to {row.high:.1%}"
        print(
            f"| {row.profile} | {row.seeds} | {row.what} | {row.found:.1%}{mark} | {wanted} |",
            flush=True,
        )
    print(f"\n{options.studies} studies a row (fewer with bootstraps); {broken} out of bounds.")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
