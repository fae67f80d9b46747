"""LoRA as data and in a model, against PEFT on each example alone."""

import copy
import itertools
from collections.abc import Callable

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from video2lora.lora import Lora, adapted, compose, concatenate, lora_delta, pad_rank, select, stack

N_LAYERS, D_MODEL, D_FFN, R, BATCH, N_TOKENS = 3, 22, 37, 5, 4, 7
SIZES = {"down_proj": (D_FFN, D_MODEL), "q_proj": (D_MODEL, 12)}
SCALING = 2.5


def random_lora(*, batch: int = BATCH, r: int = R, seed: int = 0, scaling: float = SCALING) -> Lora:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (0.3 * torch.randn(batch, N_LAYERS, *shape, generator=generator)).requires_grad_()

    return Lora(
        lora_a={name: draw(r, d_in) for name, (d_in, _) in SIZES.items()},
        lora_b={name: draw(d_out, r) for name, (_, d_out) in SIZES.items()},
        scaling=scaling,
    )


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=D_MODEL,
        intermediate_size=D_FFN,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(41, (BATCH, N_TOKENS), generator=torch.Generator().manual_seed(2))


def deltas(lora: Lora) -> dict[str, Tensor]:
    """What each adapter adds to each weight: [batch, n_layers, d_out, d_in]."""
    return {name: lora.scaling * lora.lora_b[name] @ lora.lora_a[name] for name in lora.lora_a}


def peft_logits_and_gradients(model: LlamaForCausalLM, lora: Lora, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """PEFT's answer for one example with one adapter, and the gradients of the sum of its squares."""
    config = peft.LoraConfig(r=lora.r, lora_alpha=lora.scaling * lora.r, target_modules=list(SIZES), lora_dropout=0.0)
    wrapped = peft.get_peft_model(model, config)
    parameters = {}
    for path, parameter in wrapped.named_parameters():
        if ".lora_" not in path:
            continue
        _, _, after = path.partition("layers.")
        layer, _, name, factor, *_ = after.split(".")
        source = (lora.lora_a if factor == "lora_A" else lora.lora_b)[name][0, int(layer)]
        parameter.data.copy_(source)
        parameters[f"{factor.lower()}.{name}.{layer}"] = parameter
    logits = wrapped(tokens).logits
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    wrapped.unload()
    return logits.detach(), gradients


def test_each_example_of_a_batch_answers_and_learns_as_with_peft_alone(model: LlamaForCausalLM, tokens: Tensor) -> None:
    """In fp64, where the order of sums cannot hide or feign a difference."""
    model = copy.deepcopy(model).double()
    lora = random_lora().map(lambda factor: factor.detach().double().requires_grad_())
    with adapted(model.model.layers, lora):
        logits = model(tokens).logits
    logits.square().sum().backward()
    for i in range(BATCH):
        expected, gradients = peft_logits_and_gradients(model, select(lora, torch.tensor([i])), tokens[i : i + 1])
        torch.testing.assert_close(logits[i : i + 1], expected, rtol=1e-9, atol=1e-9)
        assert len(gradients) == 2 * len(SIZES) * N_LAYERS
        for name, layer in itertools.product(SIZES, range(N_LAYERS)):
            for factor, ours in (("lora_a", lora.lora_a), ("lora_b", lora.lora_b)):
                theirs = gradients[f"{factor}.{name}.{layer}"]
                scale = theirs.abs().max().item()
                torch.testing.assert_close(ours[name].grad[i, layer], theirs, rtol=1e-9, atol=1e-9 * scale)


def test_one_adapter_serves_a_whole_batch(model: LlamaForCausalLM, tokens: Tensor) -> None:
    one = random_lora(batch=1)
    with torch.no_grad(), adapted(model.model.layers, one):
        shared = model(tokens).logits
    with torch.no_grad(), adapted(model.model.layers, select(one, torch.zeros(BATCH, dtype=torch.long))):
        repeated = model(tokens).logits
    torch.testing.assert_close(shared, repeated)


def test_generation_with_a_cache_equals_generation_without(model: LlamaForCausalLM, tokens: Tensor) -> None:
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(tokens)
    with adapted(model.model.layers, random_lora()):
        cached = model.generate(tokens, attention_mask=mask, use_cache=True, **options)
        uncached = model.generate(tokens, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, model.generate(tokens, attention_mask=mask, **options))


def test_nested_adapters_add_up_like_concatenated_ones(model: LlamaForCausalLM, tokens: Tensor) -> None:
    first, second = random_lora(seed=3), random_lora(batch=1, r=2, seed=4)
    with torch.no_grad():
        with adapted(model.model.layers, first), adapted(model.model.layers, second):
            nested = model(tokens).logits
        with adapted(model.model.layers, concatenate([first, second])):
            joined = model(tokens).logits
    torch.testing.assert_close(nested, joined)


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_model_is_as_before_after_leaving_and_after_an_error(model: LlamaForCausalLM, tokens: Tensor) -> None:
    before = model(tokens).logits
    with adapted(model.model.layers, random_lora()):
        assert n_hooks(model) == len(SIZES) * N_LAYERS
        assert not torch.allclose(model(tokens).logits, before)
    with pytest.raises(KeyError), adapted(model.model.layers, random_lora()):
        raise KeyError
    assert n_hooks(model) == 0
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=0)


def test_a_batch_that_does_not_fit_is_refused(model: LlamaForCausalLM, tokens: Tensor) -> None:
    with (
        adapted(model.model.layers, random_lora(batch=3)),
        pytest.raises(ValueError, match="3 adapters for a batch of 4 examples"),
    ):
        model(tokens)


def replaced(lora: Lora, old: str, new: str) -> Lora:
    return Lora(
        lora_a={new if name == old else name: a for name, a in lora.lora_a.items()},
        lora_b={new if name == old else name: b for name, b in lora.lora_b.items()},
        scaling=lora.scaling,
    )


def test_layers_that_do_not_fit_are_refused_before_any_hook(model: LlamaForCausalLM) -> None:
    layers = model.model.layers
    with pytest.raises(ValueError, match="3 layers, the model 2"), adapted(layers[:2], random_lora()):
        pass
    missing = replaced(random_lora(), "down_proj", "fc2")
    with pytest.raises(ValueError, match=r"'fc2', got \[\].*mlp.down_proj"), adapted(layers, missing):
        pass
    wrong_size = replaced(random_lora(), "down_proj", "up_proj")
    with pytest.raises(ValueError, match=r"\(37, 22\), the module \(22, 37\)"), adapted(layers, wrong_size):
        pass
    twice = [nn.ModuleDict({"a": layer, "b": copy.deepcopy(layer)}) for layer in layers]
    message = r"got \['a.mlp.down_proj', 'b.mlp.down_proj'\]"
    with pytest.raises(ValueError, match=message), adapted(twice, random_lora()):
        pass
    assert n_hooks(model) == 0


@pytest.mark.parametrize("n_loras", [1, BATCH])
def test_delta_is_the_formula(n_loras: int) -> None:
    x, base = torch.randn(BATCH, N_TOKENS, 11), torch.randn(BATCH, N_TOKENS, 13)
    a, b = torch.randn(n_loras, R, 11), torch.randn(n_loras, 13, R)
    expected = torch.stack([SCALING * x[i] @ a[i % n_loras].T @ b[i % n_loras].T for i in range(BATCH)])
    torch.testing.assert_close(lora_delta(x, lora_a=a, lora_b=b, scaling=SCALING), expected)
    torch.testing.assert_close(lora_delta(x, lora_a=a, lora_b=b, scaling=SCALING, base=base), base + expected)


def test_delta_follows_the_dtype_of_x_or_of_autocast() -> None:
    x, base = torch.randn(BATCH, N_TOKENS, 11), torch.randn(BATCH, N_TOKENS, 13)
    a, b = torch.randn(BATCH, R, 11, requires_grad=True), torch.randn(BATCH, 13, R)
    low = lora_delta(x.bfloat16(), lora_a=a, lora_b=b, scaling=SCALING, base=base.bfloat16())
    assert low.dtype == torch.bfloat16
    low.sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert lora_delta(x, lora_a=a, lora_b=b, scaling=SCALING, base=base.bfloat16()).dtype == torch.bfloat16


def test_concatenation_in_rank_sums_deltas() -> None:
    first, second, shared = random_lora(seed=5), random_lora(r=2, seed=6), random_lora(batch=1, r=3, seed=7)
    joined = concatenate([first, second, shared])
    assert (joined.batch, joined.r) == (BATCH, R + 2 + 3)
    for name, delta in deltas(joined).items():
        torch.testing.assert_close(delta, deltas(first)[name] + deltas(second)[name] + deltas(shared)[name])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [1, 0, 2, 5, 4, 3]])
def test_chunks_of_a_video_compose_to_the_sum_of_their_deltas_in_any_order(order: list[int]) -> None:
    chunks = random_lora(batch=6, seed=8)
    composed = compose(select(chunks, torch.tensor(order)), [2, 1, 3])
    assert (composed.batch, composed.r) == (3, 3 * R)
    for name, delta in deltas(composed).items():
        parts = deltas(chunks)[name]
        expected = torch.stack([parts[:2].sum(0), parts[2] if order[2] == 2 else parts[5], parts[3:].sum(0)])
        torch.testing.assert_close(delta, expected)


def test_composition_keeps_gradients() -> None:
    chunks = random_lora(batch=3, seed=9)
    compose(chunks, [1, 2]).lora_b["q_proj"].sum().backward()
    assert torch.equal(chunks.lora_b["q_proj"].grad, torch.ones_like(chunks.lora_b["q_proj"]))


def test_stack_pads_the_shorter_rank_and_keeps_deltas() -> None:
    short, long = random_lora(batch=1, r=2), random_lora(batch=2, r=R)
    stacked = stack([short, long])
    assert (stacked.batch, stacked.r) == (3, R)
    for name, delta in deltas(stacked).items():
        torch.testing.assert_close(delta, torch.cat([deltas(short)[name], deltas(long)[name]]))


def test_select_repeats_and_reorders() -> None:
    lora, index = random_lora(), torch.tensor([2, 2, 0])
    assert torch.equal(select(lora, index).lora_b["q_proj"], lora.lora_b["q_proj"][index])


def broken_shapes() -> Lora:
    return Lora(lora_a={"q_proj": torch.zeros(2, 3, 5, 7)}, lora_b={"q_proj": torch.zeros(2, 3, 5, 11)}, scaling=1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken_shapes, r"lora_a \(2, 3, 5, 7\) and lora_b \(2, 3, 5, 11\)"),
        (lambda: Lora(lora_a={}, lora_b={}, scaling=1.0), "not none"),
        (lambda: concatenate([]), "at least one"),
        (lambda: concatenate([random_lora(), random_lora(scaling=2.0)]), "scaling"),
        (lambda: concatenate([random_lora(batch=2), random_lora(batch=3)]), r"batches \[2, 3\]"),
        (lambda: concatenate([random_lora(), replaced(random_lora(), "q_proj", "k_proj")]), "k_proj"),
        (lambda: compose(random_lora(batch=3), [1, 1]), "sum to the batch of 3"),
        (lambda: compose(random_lora(batch=3), [3, 0]), "positive"),
        (lambda: pad_rank(random_lora(), R - 1), "rank 5 to rank 4"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Lora], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
