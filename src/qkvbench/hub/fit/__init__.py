"""A smaller attention for a pretrained model: fit it, plan it layer by layer, heal it, save it.

`source` loads a checkpoint, `moments` reads a calibration text, `starts` makes tied weights from
them, `outputs` fits their output projections, `tying` puts both into a model, `quality` measures
it, `planning` chooses layers for a cache, `healing` trains the changed layers, and `folder` writes
the result; `calls` are what a layer is given on a text.
"""
