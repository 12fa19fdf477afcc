# SPDX-License-Identifier: Apache-2.0
"""Backward through an iteration that runs back, so that none of its states need be kept.

    z <- tanh(Wz + x)   as   (z, w) <- (w, (1 - c) z + c f(w)),   f(w) = tanh(Ww + x)

has the same fixed point z = w, and from (z', w') follows w = z', z = (w' - c f(z')) / (1 - c).  The price: an iteration
that converges forgets where it came from, and what is forgotten is not in the last state.  Rounding grows on the way
back by 1 / (1 - c) and more in each step, the cotangent shrinks like the convergence; here half of the digits remain.
With c near 0 the way back is safe, and the way forth slow.  implicit() needs no way back; see memory.py.
"""

import torch

from optlayer.implicit import fixed_point

torch.manual_seed(0)
batch, n = 32, 64
x, W = (torch.randn(k, n, dtype=torch.float64) for k in (batch, n))
W = (0.9 / torch.linalg.matrix_norm(W, 2) * W).requires_grad_()


def f(z, W, x):
    return torch.tanh(z @ W.mT + x)


class Reversible(torch.autograd.Function):
    """The second of the pair after K steps from (z, z)."""

    @staticmethod
    def forward(ctx, z, W, x, K, c=0.5):
        w = z
        for _ in range(K):
            z, w = w, (1 - c) * z + c * f(w, W, x)
        ctx.save_for_backward(W, x, z, w)
        ctx.K, ctx.c = K, c
        return w

    @staticmethod
    def backward(ctx, g_w):
        W, x, z, w = ctx.saved_tensors
        c, g_z, g_W, g_x = ctx.c, torch.zeros_like(z), torch.zeros_like(W), torch.zeros_like(x)
        for _ in range(ctx.K):
            value, pull = torch.func.vjp(f, z, W, x)
            z, w = (w - c * value) / (1 - c), z
            d_w, d_W, d_x = pull(c * g_w)
            g_z, g_w, g_W, g_x = (1 - c) * g_w, g_z + d_w, g_W + d_W, g_x + d_x
        return g_z + g_w, g_W, g_x, None, None


solution = fixed_point(f, torch.zeros_like(x), W, x, batch_dims=1, method="newton", eps_abs=1e-15, eps_rel=1e-15)
(exact,) = torch.autograd.grad(solution.value.square().sum(), W)
for c in (0.5, 0.1):
    errors = {}
    for K in (10, 20, 40, 80, 160, 320):
        (g,) = torch.autograd.grad(Reversible.apply(torch.zeros_like(x), W, x, K, c).square().sum(), W)
        errors[K] = ((g - exact).norm() / exact.norm()).item()
    print(f"c = {c}: relative error of the gradient", ", ".join(f"{errors[K]:.0e} for K = {K}" for K in errors))
    assert 1e-12 < errors[320] < 1e-3 < errors[10]
