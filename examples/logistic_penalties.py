# SPDX-License-Identifier: Apache-2.0
"""Twenty weight decays of a logistic regression, one for each feature, learned from validation data.

    w(rho) = argmin  1/N sum_i [log(1 + exp(x_i'w)) - y_i x_i'w]  +  1/2 sum_j exp(rho_j) w_j^2
    minimise over rho   L(rho) = the same loss of w(rho) on the validation data, without the penalty

w(rho) is the root of the gradient F(w, rho) = X'(sigmoid(Xw) - y) / N + exp(rho) w.  With its Jacobian, the Hessian
H = X'SX / N + diag(exp(rho)), the hypergradient is dL/drho = -exp(rho) w (H^-1 dL/dw).
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from optlayer.implicit import root

torch.manual_seed(0)
N, n = 500, 20
truth, data = torch.randn(n, dtype=torch.float64), torch.randn(2 * N, n, dtype=torch.float64)
labels = (data @ truth + 0.1 * torch.randn(2 * N, dtype=torch.float64) > 0).double()
(X, X_v), (y, y_v) = data.split(N), labels.split(N)


def F(w: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
    return X.T @ (torch.sigmoid(X @ w) - y) / N + rho.exp() * w


def validation(rho: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = root(F, start, rho).value  # Newton's method; a start near the root saves iterations and changes nothing else
    return cross_entropy(X_v @ w, y_v), w.detach()


rho = torch.zeros(n, dtype=torch.float64, requires_grad=True)
optimiser, w, losses = torch.optim.SGD([rho], lr=5.0), torch.zeros(n, dtype=torch.float64), []
for step in range(301):
    loss, w = validation(rho, w)
    losses.append(float(loss.detach()))
    if step % 100 == 0:
        accuracy = ((X_v @ w > 0) == (y_v > 0.5)).double().mean()
        print(f"step {step:3d}: validation loss {losses[-1]:.3f}, accuracy {float(accuracy):.3f}")
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
assert abs(losses[0] - 0.582) < 1e-3 and abs(losses[-1] - 0.148) < 1e-3 and accuracy > 0.95

# The hypergradient beside a central difference along a direction.
rho, d, h = rho.detach().requires_grad_(), torch.randn(n, dtype=torch.float64), 1e-4
(g,) = torch.autograd.grad(validation(rho, w)[0], rho)
difference = (validation(rho.detach() + h * d, w)[0] - validation(rho.detach() - h * d, w)[0]) / (2 * h)
print(f"slope along a direction {float(g @ d):.9f}, by differences {float(difference):.9f}")
torch.testing.assert_close(g @ d, difference, rtol=1e-6, atol=0)
