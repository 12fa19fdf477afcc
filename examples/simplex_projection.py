# SPDX-License-Identifier: Apache-2.0
"""The nearest point of the probability simplex (sparsemax), for a batch in one call.

    minimise  1/2 |x - t|^2    subject to   sum(x) = 1,  x >= 0

Where S is the support of x, the derivative is dx/dt = diag(1_S) - 1_S 1_S' / |S|.
"""

import torch

from optlayer import solve_qp

torch.manual_seed(0)
n, batch = 6, 4
t = torch.randn(batch, n, dtype=torch.float64, requires_grad=True)
eye, ones = torch.eye(n, dtype=torch.float64), torch.ones(1, n, dtype=torch.float64)

solution = solve_qp(eye, -t, A=ones, b=ones[:, 0], lb=0.0)
x = solution.x

for i in range(batch):
    print(f"t = {[f'{v:5.2f}' for v in t[i].tolist()]}  x = {[f'{v:.2f}' for v in x[i].tolist()]}")

# P = I is shared by the batch, q = -t is not; the Jacobian comes element by element.
J = -solution.jacobian("x", "q")
S = (x > 1e-9).double()
closed = torch.diag_embed(S) - S[:, :, None] * S[:, None, :] / S.sum(-1)[:, None, None]
print(f"largest error of dx/dt against its closed form: {float((J - closed).detach().abs().max()):.0e}")
torch.testing.assert_close(J, closed, rtol=0, atol=1e-9)

# One element without a solution does not disturb the others: its status says so, and the masked loss trains on.
b = torch.tensor([[1.0], [-1.0], [1.0], [1.0]], dtype=torch.float64)
solution = solve_qp(eye, -t, A=ones, b=b, lb=0.0)
print("with sum(x) = -1 in element 1:", solution.status.tolist(), "solved:", solution.solved.tolist())
(grad,) = torch.autograd.grad(solution.x[solution.solved].square().sum(), t)
finite, zero = bool(grad.isfinite().all()), bool((grad[1] == 0).all())
print("gradient of the masked loss is finite:", finite, "and zero there:", zero)
assert solution.solved.tolist() == [True, False, True, True] and finite and zero
