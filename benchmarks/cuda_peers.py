"""AdamW of other libraries on the same sizes, each only where it is installed."""

from collections.abc import Callable
from typing import Any

LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-2


def torch_on_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def adamw(count: int, each: int) -> dict[str, Callable[[], Any]]:
    """Name -> a step of AdamW on `count` tensors of `each` float32 elements."""
    return {**_torch(count, each), **_cupy(count, each)}


def _torch(count: int, each: int) -> dict[str, Callable[[], Any]]:
    if not torch_on_cuda():
        return {}
    import torch

    def params() -> list[Any]:
        made = [torch.full((each,), 0.5, device="cuda", requires_grad=True) for _ in range(count)]
        for p in made:
            p.grad = torch.full_like(p, 1e-3)
        return made

    settings: dict[str, Any] = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY}
    found: dict[str, Callable[[], Any]] = {
        "torch fused": torch.optim.AdamW(params(), fused=True, **settings).step,
        "torch foreach": torch.optim.AdamW(params(), foreach=True, **settings).step,
    }
    try:
        from apex.optimizers import FusedAdam  # type: ignore[import-not-found]

        found["apex"] = FusedAdam(params(), adam_w_mode=True, **settings).step
    except ImportError:
        pass
    try:
        import bitsandbytes  # type: ignore[import-not-found]

        found["bitsandbytes"] = bitsandbytes.optim.AdamW(params(), **settings).step
    except ImportError:
        pass
    return found


def torch_classes(count: int, each: int, kind: str, device: str = "cuda") -> dict[str, Callable[[], Any]]:
    """Name -> a step of a torch class; with "moving" gradients two sets take turns, as after `set_to_none`."""
    import torch

    import fastopt.torch

    def step(make: Callable[..., Any], **more: Any) -> Callable[[], Any]:
        params = [torch.full((each,), 0.5, device=device, requires_grad=True) for _ in range(count)]
        sets = [[torch.full_like(p, 1e-3) for p in params] for _ in range(1 + (kind == "moving"))]
        opt, turn = make(params, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, **more), 0

        def give() -> None:
            nonlocal turn
            turn += 1
            for p, g in zip(params, sets[turn % len(sets)], strict=True):
                p.grad = g

        def moving() -> None:
            give()
            opt.step()

        give()
        return moving if len(sets) > 1 else opt.step

    return {
        "fastopt": step(fastopt.torch.AdamW),
        "torch fused": step(torch.optim.AdamW, fused=True),
        "torch foreach": step(torch.optim.AdamW, foreach=True),
    }


_FORMULA = """
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    p = p - lr * (m / c1 / (sqrtf(v / c2) + eps) + decay * p);
"""


def _cupy(count: int, each: int) -> dict[str, Callable[[], Any]]:
    """What is written by hand with CuPy: one elementwise kernel, a launch for each tensor."""
    try:
        import cupy  # type: ignore[import-not-found]
    except ImportError:
        return {}
    kernel = cupy.ElementwiseKernel(
        "float32 g, float32 lr, float32 beta1, float32 beta2, float32 eps, float32 decay, float32 c1, float32 c2",
        "float32 p, float32 m, float32 v",
        _FORMULA,
        "adamw",
    )
    state = [[cupy.full(each, x, "float32") for x in (1e-3, 0.5, 0.0, 0.0)] for _ in range(count)]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        for g, p, m, v in state:
            kernel(g, LR, BETA1, BETA2, EPS, DECAY, 1 - BETA1**t, 1 - BETA2**t, p, m, v)

    return {"CuPy": step}
