# SPDX-License-Identifier: Apache-2.0
"""What backward remembers of K iterations z <- tanh(Wz + x), and how good a gradient of the solution it makes.

    unrolled       every iterate
    checkpointed   one iterate in sqrt(K); backward iterates anew from each, and holds those in between for a while
    implicit       the last iterate, where it solves one linear system for each row of z

All three are as far from the gradient of the solution as the last iterate is from the solution.  A fourth way is in
reversible.py.
"""

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from optlayer.implicit import implicit

torch.manual_seed(0)
batch, n = 32, 64
x, W = (torch.randn(k, n, dtype=torch.float64) for k in (batch, n))
W = (0.9 / torch.linalg.matrix_norm(W, 2) * W).requires_grad_()


def unrolled(z, W, x, K):
    for _ in range(K):
        z = torch.tanh(z @ W.mT + x)
    return z


def checkpointed(z, W, x, K):
    for part in torch.arange(K).split(round(K**0.5)):
        z = checkpoint(unrolled, z, W, x, len(part), use_reentrant=False)
    return z


def at_the_end(z, W, x, K):
    z = unrolled(z, W.detach(), x, K)
    return implicit(lambda z, W, x: z - unrolled(z, W, x, 1), z, W, x, batch_dims=1)


def measure(method, K):
    """The KiB that are kept from forward to backward, each storage once, and the gradient of |z|^2 in W."""
    kept = {}
    with saved_tensors_hooks(lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t):
        z = method(torch.zeros_like(x), W, x, K)
    (g,) = torch.autograd.grad(z.square().sum(), W)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) / 1024, g


_, exact = measure(at_the_end, 1000)
print("KiB kept for backward (relative error of the gradient)")
for K in (10, 20, 40, 80, 160, 320):
    print(f"K = {K:3d}", end="")
    for name, method in {"unrolled": unrolled, "checkpointed": checkpointed, "implicit": at_the_end}.items():
        kib, g = measure(method, K)
        print(f"   {name} {kib:4.0f} ({(g - exact).norm() / exact.norm():.0e})", end="")
        assert name != "unrolled" or kib == 48 + K * batch * n * 8 / 1024
        assert name != "implicit" or int(kib) == 64  # W, x and z, and a quarter for the status of each row
    print()
