"""What a decoder writes is what its forward pass says, however the next token is chosen."""

from collections import defaultdict
from types import SimpleNamespace

import psutil
import pytest
import torch
from scipy.stats import chisquare

from laws.cases import decoder, every_distinct_even, suffixed
from qkvbench.backends.torch import Beams, Greedy, Growing, Reserved, Sampling, build, start
from qkvbench.backends.torch.generation.generate import generate, sample
from qkvbench.model import Learned, NoPosition, Rotary, Tokens, with_source

PROMPTS = [[1, 2, 3, 4], [5], [6, 7, 8]]
TOKENS = 6
HOWS = [Greedy(), Sampling(0.8, seed=3), Sampling(top_k=4, top_p=0.9), Beams(3)]

every_how = pytest.mark.parametrize("how", HOWS, ids=str)


def _network(variant="q,k=v", position=Rotary()):
    model = decoder(variant, position)
    network = build(model)
    start(network, model, seed=0)
    return network.double()


@torch.no_grad()
def _after(network, text):
    """The logits that follow a text, from the whole forward pass."""
    return network(torch.tensor([text]))[0, -1]


@every_distinct_even
def test_greedily_each_token_is_the_likeliest_of_the_forward_pass(variant):
    for suffix in ("", "+window3"):
        network = _network(suffixed(variant, suffix))
        for prompt, found in zip(PROMPTS, generate(network, PROMPTS, tokens=TOKENS), strict=True):
            text = list(prompt)
            for token in found:
                assert token == int(_after(network, text).argmax())
                text.append(token)
            assert len(found) == TOKENS


@pytest.mark.parametrize("how", [Greedy(), Beams(3)], ids=str)
def test_a_prompt_is_continued_as_if_it_were_alone(how):
    network = _network()
    together = generate(network, PROMPTS, tokens=TOKENS, strategy=how)
    assert together == [generate(network, [one], tokens=TOKENS, strategy=how)[0] for one in PROMPTS]


def test_one_token_to_draw_from_is_greedy():
    network = _network()
    greedy = generate(network, PROMPTS, tokens=TOKENS)
    for how in (Sampling(5.0, top_k=1), Sampling(top_p=1e-9), Sampling(1e-6), Beams(1)):
        assert generate(network, PROMPTS, tokens=TOKENS, strategy=how) == greedy


def test_the_seed_decides_what_is_drawn_and_the_rest_of_the_batch_does_not():
    network = _network()

    def written(prompts, seed):
        return generate(network, prompts, tokens=TOKENS, strategy=Sampling(2.0, seed=seed))

    assert written(PROMPTS, 1) == written(PROMPTS, 1) != written(PROMPTS, 2)
    assert written(PROMPTS[:2], 1) == written(PROMPTS, 1)[:2]


@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(0.5), Sampling(top_k=5), Sampling(top_p=0.8)], ids=str
)
def test_tokens_are_drawn_as_often_as_softmax_says(how):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(13, generator=rng)
    shares = (logits.double() / how.temperature).softmax(-1)
    order = shares.argsort(descending=True)
    left = how.top_k or 13
    if how.top_p is not None:
        # The fewest that are together so likely.
        left = int((shares[order].cumsum(0) < how.top_p).sum()) + 1
    expected = torch.zeros(13).double()
    expected[order[:left]] = shares[order[:left]] / shares[order[:left]].sum()

    number = 20_000
    uniform = torch.rand(number, generator=rng, dtype=torch.float64)
    counts = sample(logits.expand(number, -1), how, uniform).bincount(minlength=13)
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0
    # One seed in a thousand would fail; this one is fixed.
    assert chisquare(counts[likely].numpy(), (number * expected[likely]).numpy()).pvalue > 1e-3


def test_draws_at_both_ends_find_a_token_that_is_left():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits, Sampling(top_k=2), ends).tolist() == [1, 3]
    assert sample(logits, Sampling(), ends).tolist() == [1, 0]


@every_how
def test_a_text_ends_before_the_first_stop_of_its_own(how):
    network = _network()
    free = generate(network, PROMPTS, tokens=TOKENS, strategy=how)
    if isinstance(how, Beams):
        # With other ends another text may be the best; none contains an end.
        found = generate(network, PROMPTS, tokens=TOKENS, strategy=how, stop={free[0][2]})
        assert all(free[0][2] not in text for text in found)
        return
    stop = {free[0][2], free[1][4]}
    cut = [next((n for n, t in enumerate(text) if t in stop), TOKENS) for text in free]
    found = generate(network, PROMPTS, tokens=TOKENS, strategy=how, stop=stop)
    assert found == [text[:end] for text, end in zip(free, cut, strict=True)]


@pytest.mark.parametrize("how", [Greedy(), Sampling(seed=3)], ids=str)
def test_every_token_is_told_once_and_in_order(how):
    heard = defaultdict(list)
    network = _network()
    stop = {generate(network, PROMPTS, tokens=TOKENS, strategy=how)[0][2]}
    found = generate(
        network,
        PROMPTS,
        tokens=TOKENS,
        strategy=how,
        stop=stop,
        on_token=lambda sequence, token: heard[sequence].append(token),
    )
    assert [heard[sequence] for sequence in range(len(PROMPTS))] == found


@every_distinct_even
def test_enough_beams_find_the_likeliest_of_all_texts(variant):
    network = _network(variant)
    (found,) = generate(network, [[1, 2]], tokens=2, strategy=Beams(13**2, penalty=0))
    every = torch.cartesian_prod(torch.arange(13), torch.arange(13))
    texts = torch.cat([torch.tensor([[1, 2]]).expand(len(every), -1), every], dim=1)
    with torch.no_grad():
        steps = network(texts)[:, 1:3].log_softmax(-1)
    totals = steps.gather(-1, every[:, :, None]).sum((1, 2))
    assert found == every[totals.argmax()].tolist()


def test_small_rows_and_storages_write_texts_of_the_same_kind():
    network = _network()
    plain = generate(network, PROMPTS, tokens=TOKENS)
    for storage in (Reserved(), Reserved(2), Growing(2)):
        cache = network.new_cache(len(PROMPTS), 9, storage)
        assert generate(network, PROMPTS, tokens=TOKENS, cache=cache) == plain
        assert cache.longest == 9
    for rows in ("fp32", "bf16", "fp16", "int8"):
        found = generate(network, PROMPTS, tokens=TOKENS, rows=rows)
        assert [len(text) for text in found] == [TOKENS] * len(PROMPTS)


def test_a_network_in_training_writes_without_dropout_and_goes_on_training():
    model = decoder("q,k=v", Rotary())
    network = build(model, dropout=0.9).double()
    start(network, model, seed=0)
    assert network.training
    assert generate(network, PROMPTS, tokens=TOKENS) == generate(_network(), PROMPTS, tokens=TOKENS)
    assert network.training
    network(torch.tensor([[1, 2]])).sum().backward()


@pytest.mark.parametrize(
    ("prompts", "words", "said"),
    [
        ([[1], []], {}, "Prompt 1 is empty"),
        ([], {}, "after 0 prompts are no text"),
        ([[1]], {"tokens": 0}, "0 new tokens after 1 prompts"),
        ([[13]], {}, "13 is no token of this model, which has those from 0 to 12"),
        ([[1]], {"stop": [-1]}, "-1 is no token"),
        ([[1] * 4], {"tokens": 9}, "After that prompt it writes 8 at most"),
        ([[1]], {"strategy": Beams(), "on_token": print}, "leave out on_token"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_made(
    prompts, words, said, monkeypatch
):
    network = _network(position=Learned(11))
    monkeypatch.setattr(network, "new_cache", None)
    with pytest.raises(ValueError, match=said):
        generate(network, prompts, **{"tokens": 3, **words})


def test_as_many_tokens_as_the_model_reads_are_written():
    network = _network(position=Learned(11))
    (found,) = generate(network, [[1] * 4], tokens=8)
    assert len(found) == 8


def test_a_cache_that_will_not_fit_is_refused_with_both_numbers(monkeypatch):
    network = _network()
    # Two layers, one root of four heads of six numbers, eight bytes each: 384 bytes a token.
    free = SimpleNamespace(available=384 * 2 * 6 - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(MemoryError, match=r"2 sequences of 6 tokens takes 4\.5 KiB, and 4\.5 KiB"):
        generate(network, [[1], [2]], tokens=6)
    free.available += 1
    assert len(generate(network, [[1], [2]], tokens=6)) == 2
    free.available //= 4
    assert len(generate(network, [[1], [2]], tokens=6, rows="int8")) == 2


def test_a_cache_that_will_not_fit_is_not_begun():
    network = _network()
    with pytest.raises(MemoryError, match=r"of 1099511627776 tokens takes .* TiB, and .* are free"):
        network.new_cache(1, 2**40)


def test_a_cache_without_room_and_one_of_another_model_are_refused():
    network = _network()
    for cache in (network.new_cache(2, 3), network.new_cache(1, 9)):
        with pytest.raises(ValueError, match="need an empty cache for 2 sequences of 6 tokens"):
            generate(network, [[1], [2]], tokens=6, cache=cache)
    with pytest.raises(ValueError, match="made for a model with"):
        generate(network, [[1]], tokens=2, cache=_network("q,k,v").new_cache(1, 9))


def test_a_decoder_with_a_source_writes_by_its_learner():
    network = build(with_source(decoder("q,k=v", Rotary()), Tokens(11), NoPosition()))
    with pytest.raises(ValueError, match="writes from a source"):
        generate(network, [[1]], tokens=2)


@pytest.mark.parametrize(
    "words", [{"temperature": 0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_a_choice_that_leaves_nothing_is_refused(words):
    with pytest.raises(ValueError, match=r"take|top_p is above 0"):
        Sampling(**words)
    with pytest.raises(ValueError, match="needs 1 beam or more"):
        Beams(0)


@pytest.mark.parametrize("temperature", [1e-308, 1e-320])
def test_at_the_least_temperature_the_likeliest_token_is_drawn(temperature):
    logits = torch.tensor([[1.0, 10.0, 9.0]])
    drawn = sample(logits, Sampling(temperature=temperature), torch.tensor([0.5]))
    assert drawn.tolist() == [1]
