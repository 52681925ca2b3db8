"""Scores of generated texts: BLEU and chrF as sacreBLEU computes them."""

from collections.abc import Sequence

from qkvbench.tasks import Scored


def bleu_and_chrf(texts: Sequence[str], references: Sequence[str]) -> Scored:
    """Both scores in points of a hundred, each with the signature that says how it was computed.

    A score without one says little (arXiv:1804.08771). There is one reference for each text.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metrics: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metrics[name] = metric.corpus_score(list(texts), [list(references)]).score
        # Complete only after a score: it counts the references.
        signatures[name] = str(metric.get_signature())
    return Scored(metrics, signatures)


def on_one_line(text: str) -> str:
    """The text on one line, with single blanks."""
    return " ".join(text.split())
