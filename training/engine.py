"""The recipe's `training` section -> a DeepSpeed engine around the hypernetwork; its state out and in, whatever the world size.

ZeRO shards what belongs to the trained parameters: 1.6 M in the demo, 129 M and 227 M for SmolVLM2, never the frozen VLM, which
stays outside. Source of the optimizer: arXiv 2606.04351 appendix E: AdamW on all parameters, cosine to 0 after a warm-up, clipped.

The state that is kept is whole (weights and both moments per parameter, by name): DeepSpeed's own checkpoints refuse another number
of workers or another stage. DeepSpeed's C++ op for CPUs serves inference collectives alone, so it is switched off: no compiler needed.

Command  python -m training.engine   one step in this process, to see that DeepSpeed works here. Cost: 10 s.
"""

import importlib.metadata
import logging
import math
import os
import tempfile
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from infra.config import TrainingSettings
from infra.errors import BadInputError

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARED_MEMORY_OP = "deepspeed_shm_comm"  # a CPU all-reduce in shared memory, which `inference_all_reduce` alone uses
BUCKET_ELEMENTS = 50_000_000  # of gradients reduced at once: 200 MB. DeepSpeed's default of 5e8 reserves 2 GB


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """What DeepSpeed is told. Precision is not: parameters stay fp32 and the loss runs under autocast, as published."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # it asks for one; the loss is averaged by us, over all workers' targets
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own fused one wants a compiler
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "steps_per_print": 1_000_000_000,  # progress is ours to print
    }


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Of the update that follows `step` finished ones: linear warm-up from 0, then cosine to 0 at n_steps."""
    n_warm = math.ceil(settings.warmup * settings.n_steps)
    if step < n_warm:
        return settings.lr * step / n_warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, settings.n_steps - n_warm)))


class Engine:
    """DeepSpeed around one module whose forward gives losses. The process group must be there (Ray Train makes it)."""

    def __init__(self, module: nn.Module, settings: TrainingSettings) -> None:
        self.settings = settings
        self.names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        optimizer = torch.optim.AdamW(self.names.values(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        self.optimizer = optimizer
        self.deepspeed = _deepspeed().initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(settings),
            dist_init_required=False,
        )[0]

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Add the gradients of a part of the step; with the last one ZeRO reduces them. All workers have as many parts."""
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        self.deepspeed.backward(loss)

    def update(self, lr: float) -> float:
        """Clip, step, zero the gradients. Returns the gradients' norm before clipping."""
        self._set_rate(lr)
        if self.settings.zero_stage:
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm())
        norm = torch.nn.utils.get_total_norm([one.grad for one in self.names.values() if one.grad is not None])  # stage 0 keeps none
        self.deepspeed.step()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter, whole, fp32, on the CPU. All workers must call it together."""
        return {name: self._whole(parameter, None) for name, parameter in self.names.items()}

    def moments(self) -> dict[str, Tensor]:
        """AdamW's moments as `exp_avg/NAME`, `exp_avg_sq/NAME`, whole. All workers must call it together, after a first update."""
        return {f"{key}/{name}": self._whole(parameter, key) for key in MOMENTS for name, parameter in self.names.items()}

    def restore(self, moments: dict[str, Tensor], *, step: int, loss: Tensor) -> None:
        """Take up AdamW's moments after `step` updates; the weights are those the module was made with.

        ZeRO makes and shards the moments at the first update, so one at rate 0 comes first; it changes no weight. `loss` is any
        loss of the module: its gradient counts for nothing, but every worker must have one.
        """
        self._set_rate(0.0)
        self.deepspeed.backward(loss * 0.0)
        self.deepspeed.step()
        for state in self.optimizer.state.values():
            state["step"].fill_(step)
        for name, parameter in self.names.items():
            for key in MOMENTS:
                self._put(parameter, key, moments[f"{key}/{name}"].to(self.deepspeed.device))

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _whole(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """A parameter (key None) or one of its moments, gathered from its shards."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.settings.zero_stage == 0:
            whole = parameter if key is None else self.optimizer.state[parameter][key]
        elif key is None:
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, key)
        return whole.detach().cpu().clone()

    def _put(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if self.settings.zero_stage == 0:
            self.optimizer.state[parameter][key].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def warm_up() -> str:
    """One ZeRO step of a small layer in this process, in a process group of one. Raises BadInputError if DeepSpeed does not work here."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it; Ray Train sets it
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            engine = Engine(nn.Linear(3, 1), TrainingSettings())
            engine.backward(engine.deepspeed(torch.ones(1, 3)).sum())
            engine.update(1e-4)
        finally:
            torch.distributed.destroy_process_group()
    return f"DeepSpeed {importlib.metadata.version('deepspeed')} works here, without its compiled operations"


def _deepspeed() -> ModuleType:
    """DeepSpeed for this machine's device, with no operation to compile. Raises BadInputError where it is not installed."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise BadInputError(f"DeepSpeed cannot be imported ({error}): pip install 'video2lora[training]'") from error
    deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OP] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


if __name__ == "__main__":
    print(warm_up())
