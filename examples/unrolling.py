# SPDX-License-Identifier: Apache-2.0
"""z = tanh(Wz + x): what the gradient of K unrolled iterations has to do with that of the solution.

With D = diag(1 - z^2) the solution has dL/dx = Dv, where (I - DW)'v = dL/dz.  K unrolled iterations give the first K
terms of v's Neumann series, v = sum_k ((DW)')^k dL/dz, at the iterates: the error falls like rho^K, with rho the
spectral radius of DW.  Where rho > 1 neither the iteration z <- tanh(Wz + x) nor the series converges; yet the solution
and its derivative are there as long as I - DW is regular, for Newton's method and any linear solver to find.
"""

import torch
from torch import Tensor

from optlayer.implicit import fixed_point, implicit

n = 20


def f(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(W @ z + x)


def problem(norm: float) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """W of this norm, x, the solution z, DW and rho."""
    torch.manual_seed(0)
    W, x = torch.randn(n, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64, requires_grad=True)
    W = W * (norm / torch.linalg.matrix_norm(W, 2))
    z = fixed_point(f, torch.zeros_like(x), W, x, method="newton", eps_abs=1e-15, eps_rel=1e-15).value
    DW = (1 - z.detach().square())[:, None] * W
    return W, x, z, DW, torch.linalg.eigvals(DW).abs().max().item()


W, x, z, DW, rho = problem(0.9)
(exact,) = torch.autograd.grad(z.square().sum(), x)
print(f"|W| = 0.9, rho = {rho:.2f}")
for K in (10, 20, 40, 80):
    z_K = torch.zeros_like(x)
    for _ in range(K):
        z_K = f(z_K, W, x)
    (g,) = torch.autograd.grad(z_K.square().sum(), x)
    error = ((g - exact).norm() / exact.norm()).item()
    print(f"    gradient of {K} unrolled iterations: relative error {error:.0e}, rho^K = {rho**K:.0e}")
assert error < 1e-13

W, x, z, DW, rho = problem(3.0)
z = z.detach()
print(f"|W| = 3, rho = {rho:.2f}: Newton's method leaves a residual of {(f(z, W, x) - z).abs().max().item():.0e}")
D, g = 1 - z.square(), torch.ones(n, dtype=torch.float64)
v = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - DW.T, g)
for linsolve in ("lu", "gmres"):
    (dx,) = torch.autograd.grad(implicit(lambda z, x: z - f(z, W, x), z, x, linsolve=linsolve) @ g, x)
    print(f"    dL/dx by {linsolve}: relative error {((dx - D * v).norm() / (D * v).norm()).item():.0e}")
    torch.testing.assert_close(dx, D * v, rtol=1e-8, atol=1e-8)
series = term = g
for _ in range(500):
    term = DW.T @ term
    series = series + term
print(f"    v by 500 terms of the Neumann series: error {(series - v).abs().max().item():.0e}")
assert rho > 1.1 and (series - v).abs().max() > 1e20
