"""Ranger, the optimiser of pipeline A of Henry et al. 2020: https://arxiv.org/abs/2011.01045."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Ranger(torch.optim.RAdam):
    """RAdam between gradient centralisation and Lookahead: https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer.

    Gradient centralisation (Yong et al. 2020, https://arxiv.org/abs/2004.01461) takes the mean over all axes but the
    first from the gradient of every tensor of two axes or more. Then torch's RAdam (Liu et al. 2020,
    https://arxiv.org/abs/1908.03265) steps. After every `k` steps Lookahead (Zhang et al. 2019,
    https://arxiv.org/abs/1907.08610) moves slow weights by `alpha` towards the fast ones, which go on from there.
    Gradients must be unscaled: with a GradScaler, `unscale_` comes first, as nnU-Net has it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        k: int = 6,
        alpha: float = 0.5,
    ):
        super().__init__(params, lr, betas, eps)
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in moving:
            if p.ndim > 1:
                p.grad -= p.grad.mean(tuple(range(1, p.ndim)), keepdim=True)
        # RAdam initialises a parameter's state only if that is empty: the slow weights are added after its first step.
        starts = {p: p.clone() for p in moving if p not in self.state}
        super().step()
        for p, slow in starts.items():
            self.state[p]["slow"] = slow
        for p in moving:
            if int(self.state[p]["step"]) % self.k == 0:
                p.copy_(self.state[p]["slow"].lerp_(p, self.alpha))
        return loss
