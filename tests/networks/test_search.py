"""Beam search finds what it says: greedily with one beam, the best of all texts with enough."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from laws.cases import decoder, every_distinct_even
from qkvbench.backends.torch import Growing, Learner, build, start
from qkvbench.backends.torch.generation.beam_search import beam_search
from qkvbench.data.batch import Batch, Search, Sequences
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Rotary, Tokens, with_source
from qkvbench.task_ref import TaskRef

VOCABULARY, SOURCE = 4, 11
BEGIN = END = 3
ITEMS, FEW = 30, 3
LENGTHS = torch.tensor([3, 7, 1, 5, 2, 6] * 5)
SEARCH = Search(BEGIN, END, longest=3, beams=2)
# As many beams as there are texts: none is ever left out.
EVERY = replace(SEARCH, beams=VOCABULARY**SEARCH.longest)


def _network(variant):
    model = with_source(decoder(variant, Rotary(), vocabulary=VOCABULARY), Tokens(SOURCE), Rotary())
    network = build(model)
    start(network, model, seed=0)
    return network.double().eval()


def _sources():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(SOURCE, (ITEMS, 7), generator=rng)


@torch.no_grad()
def _logits(network, item, texts):
    """What follows each token of each text, begin first, from the whole forward pass."""
    begun = torch.tensor([[BEGIN, *text] for text in texts])
    source = _sources()[item : item + 1].expand(len(texts), -1)
    lengths = LENGTHS[item : item + 1].expand(len(texts))
    return network.head(network.hidden(begun, None, source, lengths))


def _scores(network, item, texts, search):
    """log P / lp of texts of one length; their end counts unless they were cut off."""
    ended = [[*text, END] if len(text) < search.longest else [*text] for text in texts]
    tokens = len(ended[0])
    steps = _logits(network, item, texts)[:, :tokens].log_softmax(-1)
    totals = steps.gather(-1, torch.tensor(ended)[:, :, None]).sum((1, 2))
    return totals / ((5 + tokens) / 6) ** search.penalty


def _texts(network, search, items=slice(FEW)):
    with torch.no_grad():
        found = beam_search(network, _sources()[items], LENGTHS[items], search)
    return [tuple(tokens.tolist()) for tokens in found]


@every_distinct_even
def test_one_beam_takes_the_likeliest_token_of_the_whole_forward_pass(variant):
    network = _network(variant)
    longer = replace(SEARCH, beams=1, longest=5)
    for item, found in enumerate(_texts(network, longer)):
        text = []
        while len(text) < longer.longest:
            token = int(_logits(network, item, [text])[0, -1].argmax())
            if token == END:
                break
            text.append(token)
        assert found == tuple(text)


@every_distinct_even
def test_enough_beams_find_the_best_of_all_texts(variant):
    network = _network(variant)
    letters = [token for token in range(VOCABULARY) if token != END]
    lengths = [list(product(letters, repeat=tokens)) for tokens in range(SEARCH.longest + 1)]
    for item, found in enumerate(_texts(network, EVERY)):
        scores = {
            text: float(score)
            for texts in lengths
            for text, score in zip(texts, _scores(network, item, texts, EVERY), strict=True)
        }
        assert found == max(scores, key=scores.__getitem__)


@every_distinct_even
def test_the_beams_of_a_batch_are_those_of_single_items(variant):
    network = _network(variant)
    together = _texts(network, SEARCH)
    alone = [_texts(network, SEARCH, slice(n, n + 1))[0] for n in range(FEW)]
    assert together == alone


def test_more_beams_find_texts_that_score_better():
    """On average: a beam may leave out the way that a narrower one would have gone."""
    network = _network("q,k,v")

    def mean(beams):
        search = replace(SEARCH, beams=beams)
        found = _texts(network, search, slice(ITEMS))
        scores = [_scores(network, n, [text], search) for n, text in enumerate(found)]
        return torch.stack(scores).mean()

    means = [mean(beams) for beams in (1, SEARCH.beams, EVERY.beams)]
    assert means == sorted(means)
    assert means[0] < means[-1]


def test_a_penalty_prefers_longer_texts():
    network = _network("q,k,v")
    tokens = [
        sum(map(len, _texts(network, replace(EVERY, penalty=penalty)))) for penalty in (0.0, 2.0)
    ]
    assert tokens[0] < tokens[1]


def test_beams_share_the_rows_of_their_source_and_each_goes_on_as_its_parent():
    network = _network("q,k,v")
    cache = network.new_cache(6, 4, Growing(2))
    network.read_source(_sources()[:2], LENGTHS[:2], cache)
    for token in (1, 2):
        network.step(torch.tensor([0, token, 2, 3, token, 1]), cache)

    def held():
        return [
            torch.cat([rows.expand(6, -1, -1, -1) for _, rows in each.tiles(0, 2, torch.float64)])
            for layer in cache.layers
            for each in layer.rows.values()
        ]

    before, taken = held(), cache.bytes
    crossed = [layer.cross.rows for layer in cache.layers]
    assert all(rows.table.batch == 2 for layer in crossed for rows in layer.values())
    parents = torch.tensor([1, 0, 2, 4, 4, 4])
    cache.reorder(parents)
    assert cache.bytes == taken
    assert [layer.cross.rows for layer in cache.layers] == crossed
    for old, now in zip(before, held(), strict=True):
        assert torch.equal(now, old[parents])


def test_a_search_that_finds_nothing_is_refused():
    for wrong in ({"beams": 0}, {"longest": 0}, {"penalty": -0.1}):
        with pytest.raises(ValueError, match=r"Take|take"):
            replace(SEARCH, **wrong)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learner_writes_what_its_network_finds_and_only_from_a_source(precision):
    plain = decoder("q,k=v", Rotary(), vocabulary=VOCABULARY)
    training = Training(steps=1, batch=2, learning_rate=0.1, warmup=0)
    model = with_source(plain, Tokens(SOURCE), Rotary())
    experiment = Experiment(model, TaskRef("translation"), 1, training, seed=0, precision=precision)
    # What is read is the source: of the texts themselves nothing is seen.
    unseen = np.full((len(LENGTHS), 2), -7)
    batch = Batch(unseen, unseen, second=Sequences(_sources().numpy(), LENGTHS.numpy()))
    learner = Learner(experiment)
    found = learner.write(batch, SEARCH)
    assert len(found) == len(LENGTHS)
    if precision == "fp32":
        direct = beam_search(learner.network, _sources(), LENGTHS, SEARCH)
        assert [each.tolist() for each in found] == [each.tolist() for each in direct]
    with pytest.raises(TypeError, match="reads a source"):
        Learner(replace(experiment, model=plain)).write(batch, SEARCH)
