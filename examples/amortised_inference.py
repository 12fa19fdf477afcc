# SPDX-License-Identifier: Apache-2.0
"""Semi-amortised variational inference: why an exact optimum teaches the encoder nothing, and two ways out.

    z ~ N(0, I),   x | z ~ N(Wz + b, g I),   q(z) = N(m, diag(s^2)),   the encoder proposes m_0 for each x

    L(m, s) = -(|x - Wm - b|^2 + sum_j s_j^2 |w_j|^2) / 2g - D/2 log(2 pi g) - 1/2 sum_j (m_j^2 + s_j^2 - 1 - log s_j^2)

With C = I + W'W/g the maximum L* is at m = C^-1 W'(x - b) / g, s_j^2 = 1 / C_jj, and log p(x) - L* is
1/2 (sum_j log C_jj - log det C).  The model learns by the envelope theorem: dL*/dW is the derivative of L with m and s
held fixed.  The encoder learns nothing: every start leads to the same m*, dm*/dm_0 = 0, and dL/dm* = 0 besides.  Ways
out are K steps of ascent, whose derivative fades as K grows, and a proximal term:

    m <- m + eta dL/dm                 dm_K/dm_0 = (I - eta C)^K
    max  L - lam/2 |m - m_0|^2         dm*/dm_0 = lam (lam I + C)^-1, by the implicit function theorem
"""

import torch
from torch.distributions import MultivariateNormal
from torch.func import grad, jacrev
from torch.linalg import inv, matrix_norm, matrix_power

from optlayer.implicit import argmin

torch.manual_seed(2)
D, k, g, eta, lam = 6, 2, torch.tensor(0.2, dtype=torch.float64), 0.024, 2.0
W, b, x, m_0 = (torch.randn(size, dtype=torch.float64) for size in ((D, k), (D,), (5, D), (5, k)))
eye, close = torch.eye(D, dtype=torch.float64), torch.testing.assert_close


def L(v, W, x, m_0=0.0, lam=0.0):  # v = (m, log s)
    m, s2 = v[..., :k], (2 * v[..., k:]).exp()
    fit = (x - m @ W.mT - b).square().sum(-1) + (s2 * W.square().sum(-2)).sum(-1)
    prior = (m.square() + s2 - 1 - s2.log()).sum(-1) / 2
    return -fit / (2 * g) - D / 2 * (2 * torch.pi * g).log() - prior - lam / 2 * (m - m_0).square().sum(-1)


def infer(m_0, W, x, lam=0.0):
    return argmin(lambda *p: -L(*p), torch.cat([m_0, 0 * m_0], -1), W, x, m_0, lam, batch_dims=m_0.dim() - 1).value


def ascend(m, log_s, W, x, K):
    for _ in range(K):
        m = m + eta * grad(lambda m: L(torch.cat([m, log_s]), W, x))(m)
    return m


v, C = infer(m_0, W, x), eye[:k, :k] + W.T @ W / g
gap, closed = MultivariateNormal(b, W @ W.T + g * eye).log_prob(x) - L(v, W, x), (C.diag().log().sum() - C.logdet()) / 2
dW, dm = grad(lambda W, m_0: L(infer(m_0, W, x), W, x).sum(), (0, 1))(W, m_0)
slope, held = grad(lambda v, W: L(v, W, x).sum(), (0, 1))(v, W)
print(f"log p(x) - L* = {gap[0]:.12f}, in closed form {closed:.12f}")
print(f"|dL/dv| = {slope.abs().max():.0e}, dL*/dW with v held fixed is off by {(dW - held).abs().max():.0e}")
assert max((gap - closed).abs().max(), slope.abs().max(), (dW - held).abs().max()) <= 1e-12 and not dm.any()
for K in (1, 10, 50):
    J = jacrev(ascend)(m_0[0], v[0, k:], W, x[0], K)
    print(f"|dm_K/dm_0| = {matrix_norm(J, 2):.1e} after {K} steps")
    close(J, matrix_power(eye[:k, :k] - eta * C, K), rtol=0, atol=1e-13)
J = jacrev(infer)(m_0[0], W, x[0], lam)[:k]
print(f"|dm*/dm_0|  = {matrix_norm(J, 2):.1e} with the proximal term, and 0 without")
close(J, lam * inv(lam * eye[:k, :k] + C))
