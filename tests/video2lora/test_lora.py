"""LoRA as data and in a model, against PEFT on each example alone."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from video2lora.lora import (
    Lora,
    adapted,
    check_rank,
    compose,
    compress,
    concatenate,
    lora_delta,
    merged,
    pad_rank,
    select,
    slice_rank,
    stack,
)

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


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-5)],
    ids=["fp64, where no order of sums can hide a difference", "fp32"],
)
@pytest.mark.parametrize("asked", [[0, 1, 2, 3], [0, 0, 2, 1, 2, 2, 3]], ids=["one question each", "several questions of an adapter"])
def test_each_example_of_a_batch_answers_and_learns_as_with_peft_alone(
    model: LlamaForCausalLM, asked: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    """`asked` says which adapter answers each example; an adapter's gradient is the sum over its examples."""
    model = copy.deepcopy(model).to(dtype)
    # at half the size, for at the whole one PEFT's own fp32 gradients are 1e-5 off its fp64 ones
    lora = random_lora().map(lambda factor: (0.5 * factor.detach()).to(dtype).requires_grad_())
    tokens = torch.randint(41, (len(asked), N_TOKENS), generator=torch.Generator().manual_seed(11))
    with adapted(model.model.layers, select(lora, torch.tensor(asked))):
        logits = model(tokens).logits
    logits.square().sum().backward()
    expected: dict[tuple[int, str], Tensor] = {}
    for i, adapter in enumerate(asked):
        alone = select(lora, torch.tensor([adapter]))
        answer, gradients = peft_logits_and_gradients(model, alone, tokens[i : i + 1])
        assert relative(logits[i : i + 1], answer) < tolerance
        assert len(gradients) == 2 * len(SIZES) * N_LAYERS
        for name, gradient in gradients.items():
            expected[adapter, name] = gradient + expected.get((adapter, name), 0)
    for adapter, name, layer in itertools.product(range(BATCH), SIZES, range(N_LAYERS)):
        for factor, ours in (("lora_a", lora.lora_a), ("lora_b", lora.lora_b)):
            assert relative(ours[name].grad[adapter, layer], expected[adapter, f"{factor}.{name}.{layer}"]) < tolerance


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return ((ours - theirs).norm() / theirs.norm()).item()


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


class Copies(TorchDispatchMode):
    """Shapes of the tensors that are cast while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_factors_of_another_dtype_are_cast_once_and_not_for_every_token(model: LlamaForCausalLM, tokens: Tensor) -> None:
    model, lora = model.double(), random_lora().map(Tensor.detach)
    with torch.no_grad(), adapted(model.model.layers, lora):
        with Copies() as first:
            model(tokens)
        with Copies() as second:
            model(tokens)
    of_factors = {(BATCH, *of) for d_in, d_out in SIZES.values() for of in ((R, d_in), (d_out, R))}
    assert len([shape for shape in first.shapes if shape in of_factors]) == 2 * len(SIZES) * N_LAYERS
    assert not of_factors & set(second.shapes)


def test_a_call_without_gradients_takes_none_from_the_next(model: LlamaForCausalLM, tokens: Tensor) -> None:
    model, lora = model.double(), random_lora()
    with adapted(model.model.layers, lora):
        with torch.no_grad():
            model(tokens)
        model(tokens).logits.sum().backward()
    assert all(factor.grad.abs().max() > 0 for factor in (*lora.lora_a.values(), *lora.lora_b.values()))


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


def test_slices_of_rank_sum_to_the_whole() -> None:
    lora = random_lora()
    first, second = slice_rank(lora, 0, 2), slice_rank(lora, 2, R)
    assert (first.r, second.r, slice_rank(lora, R, R).r) == (2, 3, 0)
    for name, delta in deltas(lora).items():
        torch.testing.assert_close(delta, deltas(first)[name] + deltas(second)[name])


def test_an_adapter_of_no_rank_changes_nothing(model: LlamaForCausalLM, tokens: Tensor) -> None:
    with adapted(model.model.layers, slice_rank(random_lora(), 0, 0)):
        nothing = model(tokens).logits
    torch.testing.assert_close(nothing, model(tokens).logits, rtol=0, atol=0)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_compression_is_the_truncated_svd_of_each_delta(r: int) -> None:
    """torch.linalg.svd of the full delta is the oracle, for the delta that is left and for what is reported as lost."""
    lora = concatenate([random_lora(seed=12), random_lora(r=2, seed=13)]).map(Tensor.double)
    short, loss = compress(lora, r)
    assert (short.batch, short.n_layers, short.r, short.scaling) == (BATCH, N_LAYERS, r, SCALING)
    torch.testing.assert_close(loss.total, compress(lora.map(Tensor.float), r)[1].total, rtol=1e-4, atol=0)
    lost, whole = torch.zeros(BATCH, dtype=torch.float64), torch.zeros(BATCH, dtype=torch.float64)
    for name, delta in deltas(lora).items():
        u, s, vh = torch.linalg.svd(delta.detach(), full_matrices=False)
        torch.testing.assert_close(deltas(short)[name], (u[..., :r] * s[..., None, :r]) @ vh[..., :r, :], rtol=0, atol=1e-11)
        lost_here, whole_here = s[..., r:].square().sum(-1), s.square().sum(-1)
        torch.testing.assert_close(loss.by_module[name], (lost_here / whole_here).sqrt().float(), rtol=1e-6, atol=0)
        lost, whole = lost + lost_here.sum(1), whole + whole_here.sum(1)
    torch.testing.assert_close(loss.total, (lost / whole).sqrt().float(), rtol=1e-6, atol=0)
    assert loss.total.min() > 0.1


def test_compression_loses_nothing_that_is_not_there() -> None:
    """Zero rows, and rows twice, take rank and say nothing: down to the true rank the delta stays."""
    lora = random_lora(r=3, seed=14)
    short, loss = compress(pad_rank(concatenate([lora, lora]), 11), 3)
    for name, delta in deltas(short).items():
        torch.testing.assert_close(delta, 2 * deltas(lora)[name], rtol=0, atol=2e-5)
    assert loss.total.max() < 1e-6
    empty, loss = compress(lora.map(torch.zeros_like), 2)
    assert loss.total.tolist() == [0.0] * BATCH
    assert all(not factor.any() for factor in (*empty.lora_a.values(), *empty.lora_b.values()))


def test_an_adapter_within_the_rank_is_left_alone() -> None:
    lora = random_lora()
    for r in (R, R + 1):
        same, loss = compress(lora, r)
        assert same is lora
        assert loss.total.tolist() == [0.0] * BATCH
        assert {name: of.shape for name, of in loss.by_module.items()} == dict.fromkeys(SIZES, (BATCH, N_LAYERS))


def test_compression_of_a_module_narrower_than_the_rank_and_in_bfloat16() -> None:
    lora = random_lora(r=17, seed=15)  # q_proj has 12 outputs
    short, loss = compress(lora, 13)
    torch.testing.assert_close(deltas(short)["q_proj"], deltas(lora)["q_proj"], rtol=0, atol=5e-5)
    assert loss.by_module["q_proj"].max() < 1e-6 < loss.by_module["down_proj"].min()
    low, loss = compress(lora.map(Tensor.bfloat16), 13)
    assert low.lora_a["q_proj"].dtype == torch.bfloat16
    assert loss.by_module["q_proj"].min() > 1e-4, "what rounding to bfloat16 loses counts too"
    assert loss.by_module["q_proj"].max() < 1e-2


def weights(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Each parameter's identity and bits."""
    return {name: (id(parameter), parameter.detach().clone()) for name, parameter in model.named_parameters()}


def assert_same_weights(model: nn.Module, before: dict[str, tuple[int, Tensor]]) -> None:
    after = weights(model)
    assert after.keys() == before.keys()
    for name, (identity, bits) in before.items():
        assert after[name][0] == identity, name
        assert torch.equal(after[name][1].view(torch.uint8), bits.view(torch.uint8)), name


def one_lora(seed: int = 0, r: int = R) -> Lora:
    return random_lora(batch=1, r=r, seed=seed).map(Tensor.detach)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_answer_like_adapted_ones_and_come_back_bit_for_bit(
    model: LlamaForCausalLM, tokens: Tensor, dtype: torch.dtype
) -> None:
    model = model.to(dtype)
    before, lora = weights(model), one_lora()
    with adapted(model.model.layers, lora):
        expected = model(tokens).logits
    with merged(model.model.layers, lora):
        got = model(tokens).logits
        assert n_hooks(model) == 0
        for name, parameter in model.named_parameters():
            is_target = name.split(".")[-2] in SIZES
            assert torch.equal(parameter, before[name][1]) != is_target, name
        layer = model.model.layers[1].mlp.down_proj
        whole = before["model.layers.1.mlp.down_proj.weight"][1].float() + deltas(lora)["down_proj"][0, 1]
        torch.testing.assert_close(layer.weight, whole.to(dtype), rtol=0, atol=1e-6 if dtype == torch.float32 else 2**-8)
    assert_same_weights(model, before)
    change = relative(model(tokens).logits, expected)
    assert change > 0.1
    assert relative(got, expected) < (1e-5 if dtype == torch.float32 else change / 20)


def test_merges_nest_and_survive_errors(model: LlamaForCausalLM, tokens: Tensor) -> None:
    before, first, second = weights(model), one_lora(3), one_lora(4, r=2)
    with adapted(model.model.layers, concatenate([first, second])):
        expected = model(tokens).logits
    with torch.inference_mode(), merged(model.model.layers, first):
        outer = weights(model)
        with pytest.raises(KeyError), merged(model.model.layers, second):
            torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-4)
            raise KeyError
        assert_same_weights(model, outer)
        with adapted(model.model.layers, second):
            torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-4)
    assert_same_weights(model, before)
    for _ in range(100):
        with merged(model.model.layers, first):
            pass
    assert_same_weights(model, before)


def test_a_layer_that_is_there_twice_is_merged_and_restored(model: LlamaForCausalLM) -> None:
    """It gets the deltas of all its places; what counts is that its own weights come back."""
    layers, before = [model.model.layers[0]] * N_LAYERS, weights(model)
    with merged(layers, one_lora()):
        pass
    assert_same_weights(model, before)


def test_what_cannot_be_merged_is_refused_and_changes_nothing(model: LlamaForCausalLM) -> None:
    before, layers = weights(model), model.model.layers
    refused = [
        (random_lora(batch=2).map(Tensor.detach), "batch of 2"),
        (random_lora(batch=1), "pass no gradient"),
        (replaced(one_lora(), "down_proj", "up_proj"), r"\(37, 22\), the module \(22, 37\)"),
        (replaced(one_lora(), "down_proj", "act_fn"), "expected a linear module"),
    ]
    for lora, message in refused:
        with pytest.raises(ValueError, match=message), merged(layers, lora):
            pass
    assert_same_weights(model, before)


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
        (lambda: slice_rank(random_lora(), 2, R + 1), "rows 2 to 6 in rank of an adapter of rank 5"),
        (lambda: compress(random_lora(), 0), "rank 5 to rank 0"),
        (lambda: check_rank(random_lora(), limit=4, what="vLLM"), "has rank 5, vLLM takes at most 4"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Lora], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
