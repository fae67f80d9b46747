"""The rivals of training compute what ours computes, loss and gradients alike: a step that is fast because it learns less is no rival."""

import shutil

import pytest
import torch

from benchmarks.training import CACHED, PUBLISHED, STORED, Row, measure_lora, measure_steps, ratio, tables, verdicts
from benchmarks.training_bench import made_bench
from benchmarks.training_costs import peak_bytes
from benchmarks.training_rivals import Apply, Bench, PeftLoop, batched, compiled, lora_part, made_layers, ours, per_token, published
from benchmarks.training_workers import speed_ups

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return made_bench("tiny", n_videos=2, n_frames=3, n_targets=3, device="cpu")


def gradients(bench: Bench, loss: float) -> dict[str, torch.Tensor]:
    """And the loss beside them; none are left."""
    found = {name: parameter.grad.clone() for name, parameter in bench.student.named_parameters() if parameter.grad is not None}
    bench.optimizer.zero_grad()
    return {**found, "loss": torch.tensor(loss)}


def test_every_step_has_the_same_loss_and_gradients(bench: Bench) -> None:
    expected = gradients(bench, ours(bench, "jpegs"))
    assert len(expected) == 1 + len(list(bench.student.parameters()))
    for other in (gradients(bench, published(bench, "jpegs")), gradients(bench, ours(bench, "tokens"))):
        for name, value in expected.items():
            largest = float(value.abs().max())
            assert largest > 0, name
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-3 * largest, msg=lambda told, name=name: f"{name}: {told}")


@pytest.mark.parametrize("rival", [PeftLoop(r=3, sizes=(17, 13)), per_token], ids=["peft", "per token"])
def test_every_lora_part_has_the_same_sums_and_gradients(rival: Apply) -> None:
    layers = made_layers(2, batch=5, n_tokens=7, r=3, sizes=(17, 13), like=torch.zeros(1))
    assert not torch.allclose(batched(layers[0]), layers[0].given)
    torch.testing.assert_close(lora_part(rival, layers), lora_part(batched, layers))


def test_memory_is_what_is_held_at_once() -> None:
    x, weight = torch.ones(7, 11, requires_grad=True), torch.ones(11, 13, requires_grad=True)

    def work() -> None:
        hidden = x @ weight  # 91 numbers
        total = hidden.exp()  # 91 more, kept for its gradient
        del hidden
        torch.autograd.grad(total, [x, weight], torch.ones(7, 13))  # 91 ones; 91 of hidden's; 143 and 77 of the two

    assert peak_bytes(work, CPU) == 4 * (91 + 91 + 91 + 143 + 77)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_has_the_same_loss_and_gradients() -> None:
    torch.multiprocessing.spawn(compile_and_compare, nprocs=1)  # where shapes are not checked: that does not compile


def compile_and_compare(_rank: int) -> None:
    bench = made_bench("tiny", n_videos=2, n_frames=3, n_targets=3, device="cpu")
    expected, compiled_one = gradients(bench, ours(bench, "tokens")), compiled(bench)
    found = gradients(compiled_one, ours(compiled_one, "tokens"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3 * float(value.abs().max()))


@pytest.mark.slow
def test_a_run_measures_every_system(bench: Bench) -> None:
    said: list[str] = []
    steps = measure_steps(bench, n_rounds=1, say=said.append)
    assert [row.name for row in steps] == [PUBLISHED, STORED, CACHED], "nothing was decoded"
    assert steps[0].flops > 1.5 * steps[1].flops > 1.5 * steps[2].flops > 0
    assert all(row.per_s[0] > 0 and row.floor_share[0] > 0 for row in steps)
    lora = measure_lora(bench, n_rounds=2, say=said.append)
    assert lora[2].peak_bytes > 4 * lora[0].peak_bytes > 0 and {len(row.per_s) for row in lora} == {2}
    assert [table.count("\n") for table in tables(steps, lora)] == [1 + len(steps), 1 + len(lora)]


def test_a_verdict_is_the_median_of_ratios_taken_round_by_round() -> None:
    assert ratio([2.0, 4.0, 1.0], [1.0, 4.0, 3.0]) == (1.0, pytest.approx(1 / 3), 2.0)
    steps = [Row(PUBLISHED, per_s=[1.0, 2.0]), Row(STORED, per_s=[6.0, 8.0]), Row(CACHED, per_s=[6.0, 8.0])]
    lora = [Row("ours", per_s=[9.0], peak_bytes=3), Row("peft", per_s=[3.0], peak_bytes=5), Row("per token", per_s=[1.0], peak_bytes=11)]
    assert verdicts(steps, lora, [1.8, 1.6, 1.75], is_gpu=False) == [
        "ours, frames stored, samples/s ÷ published: 5.00 (4.00 to 6.00), target 5: reached",
        "ours, visual tokens stored, samples/s ÷ ours, frames stored: 1.00, target 1.5: NOT reached",
        "LoRA part, passes/s ÷ peft: 3.00, target 3: reached",
        "LoRA part, peak memory of per token ÷ ours: 3.67, target 4: NOT reached",
        "two workers ÷ one: 1.75 (1.60 to 1.80), target 1.7: reached",
    ]


@pytest.mark.slow
def test_two_workers_step_together() -> None:
    (speed_up,) = speed_ups("tiny", n_videos=1, n_frames=2, n_targets=2, n_rounds=1)
    assert speed_up > 0
