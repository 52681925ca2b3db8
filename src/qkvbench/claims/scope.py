"""The scope of the work: configurations and benchmarks, software, popularity."""

import math

from qkvbench.claims.kit.arithmetic import NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import Figure, exact_figure, figure
from qkvbench.claims.kit.reported import (
    FIVE_SHOT,
    PERPLEXITY_1_2B,
    PERPLEXITY_300M,
    SYNTHETIC,
    VISION,
)

TABLES = (PERPLEXITY_300M, PERPLEXITY_1_2B, FIVE_SHOT, SYNTHETIC, VISION)

# `python benchmarks/upstream_mode.py 4.45.0` counts again: modules of the released wheel, and those
# that have the words `qkv_mode`.
MODULES, WITH_MODE = 1781, 0


def _variants() -> Arithmetic:
    every = {arm for table in TABLES for arm in table}
    most = max(len(table) for table in TABLES)
    return Arithmetic(
        f"The study's tables, as far as they are known here, have {len(every)} variants in all, "
        f"{most} in one table, and neither GLUE nor WMT14.",
        (exact_figure(len(every), f"{len(every)}"),),
    )


CLAIMS = (
    Claim(
        name="article-hundreds-of-variants",
        text="The study tests hundreds of variants.",
        place="text, against the study's tables",
        quantity="variants in the study's tables",
        arithmetic=_variants,
        tests=(OwnFigures(),),
        figures=(Figure(200, 200, math.inf, "hundreds"),),
    ),
    Claim(
        name="article-fifteen-by-eight",
        text="The study tests 15 configurations on 8 benchmarks, among them GLUE and WMT14.",
        place="text, against the study's tables",
        quantity="variants in the study's tables",
        arithmetic=_variants,
        tests=(OwnFigures(),),
        figures=(figure("15"),),
    ),
    Claim(
        name="article-qkv-mode",
        text="Version 4.45.0 of transformers has an option `qkv_mode`.",
        place="text on software",
        quantity="modules of the released package that have the words `qkv_mode`",
        arithmetic=lambda: Arithmetic(
            f"Of the {MODULES:,} modules of the released package none has the words.",
            (exact_figure(WITH_MODE, f"{WITH_MODE} of {MODULES:,} modules"),),
        ),
        tests=(OwnFigures(),),
        figures=(Figure(1, 1, math.inf, "1 or more"),),
        benchmark="upstream_mode",
    ),
    Claim(
        name="article-stars",
        text="The suite's repository has 2,300 stars.",
        place="text on software",
        quantity="stars of the repository on the day of the article",
        arithmetic=lambda: Arithmetic("Nothing computes it; no address is given here."),
        tests=(NotTestable("the repository, and its history of stars"),),
        figures=(figure("2.3", "k"),),
    ),
)
