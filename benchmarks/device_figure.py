"""Which variant for which device: the least time of a step and the longest text, by data sheets.

Run     qkvbench cost gpt-1.2b --position rotary --context 8192 --batch 8 --json > cost.json
        python benchmarks/device_figure.py cost.json --out docs/devices.svg
Takes   a second; nothing is measured
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from line_chart import opening

from qkvbench.cost.units import seconds_text

COLOURS = ("#444444", "#c8553d", "#1b6ca8", "#3a7d44", "#8e5ea2")
LEFT, TOP, ROW, WIDTH, GAP = 150, 74, 24, 290, 40


def main() -> None:
    """Read the document of 'cost', and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("costs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(drawing(json.loads(args.costs.read_text())))


def drawing(document: dict[str, Any]) -> str:
    """A row for each device, a dot for each variant: time on the left, tokens on the right."""
    rows = document["costs"]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    devices = sorted(
        dict.fromkeys(row["device"] for row in rows),
        key=lambda device: min(row["decode_s"] for row in rows if row["device"] == device),
    )
    height = TOP + ROW * len(devices) + 44
    said = (
        f"{document['model']}, {document['context']:,} cached tokens of {document['batch']} "
        "sequences; the least that data sheets allow. No dot: it does not hold a token."
    )
    title = "Which variant for which device"
    parts = opening(LEFT + 2 * WIDTH + GAP + 30, height, 16, title, said)
    for number, (variant, colour) in enumerate(zip(variants, COLOURS, strict=False)):
        at = LEFT + 150 * number
        parts.append(f'<circle cx="{at}" cy="51" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{at + 9}" y="55" fill="{colour}">{variant}</text>')
    for number, device in enumerate(devices):
        y = TOP + ROW * (number + 0.5)
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{device}</text>')
    for column, (field, name, text) in enumerate(
        (
            ("decode_s", "a step takes at least", seconds_text),
            ("longest_context", "longest text of each sequence, in tokens", _count),
        )
    ):
        left = LEFT + column * (WIDTH + GAP)
        values = [row[field] for row in rows if row[field]]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        bottom = TOP + ROW * len(devices)
        for power in range(low, high + 1):
            x = left + (power - low) / (high - low) * WIDTH
            parts.append(
                f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e4e4e4"/>'
            )
            if (power - low) % max(1, (high - low) // 4) == 0:
                parts.append(
                    f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle" font-size="10">'
                    f"{text(10.0**power)}</text>"
                )
        parts.append(
            f'<text x="{left + WIDTH / 2}" y="{bottom + 33}" text-anchor="middle">{name}</text>'
        )
        for row in rows:
            if not row[field]:
                continue
            x = left + (math.log10(row[field]) - low) / (high - low) * WIDTH
            y = TOP + ROW * (devices.index(row["device"]) + 0.5)
            place = variants.index(row["variant"])
            # Dots that would cover each other stand one below the other.
            y += 4 * (place - (len(variants) - 1) / 2)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[place]}" '
                'fill-opacity="0.85"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _count(value: float) -> str:
    power = round(math.log10(value))
    return f"{10 ** (power % 3)}{['', ' k', ' M', ' G', ' T'][power // 3]}"


if __name__ == "__main__":
    main()
