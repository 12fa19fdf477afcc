# SPDX-License-Identifier: Apache-2.0
"""A network that learns behind a safety filter: whatever it proposes, the robot stays out of the disk.

    minimise  1/2 |v - v_net|^2    subject to   2 (x - c)'v >= -alpha (|x - c|^2 - r^2),   |v_i| <= 1

is solved for the velocity v of each robot x at each step (a control barrier function).  The loss is the distance to the
goal at the end; its gradient reaches the network through all the QPs of the way.
"""

import torch
from torch import nn

from optlayer.nn import QPLayer

torch.manual_seed(0)
disk, radius, goal, alpha, dt, steps = torch.zeros(2), 1.0, torch.tensor([2.0, 0.0]), 2.0, 0.2, 20
start = torch.stack([torch.full((32,), -2.0), torch.linspace(-0.8, 0.8, 32)], 1)
network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
safe = QPLayer(2, m=1, inputs=("q", "G", "h"), constants={"P": torch.eye(2), "lb": -1.0, "ub": 1.0})
optimiser = torch.optim.Adam(network.parameters(), lr=0.02)

losses = []
for epoch in range(8):
    x, clearance = start, torch.inf
    for _ in range(steps):
        away = x - disk
        barrier = away.square().sum(-1, keepdim=True) - radius**2
        v = safe(-network(x), -2 * away[:, None, :], alpha * barrier)
        x = x + dt * v
        clearance = min(clearance, float((x - disk).detach().norm(dim=-1).min()) - radius)
    loss = (x - goal).square().sum(-1).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(float(loss.detach()))
    print(f"epoch {epoch}: loss {losses[-1]:.3f}, smallest clearance on the way {clearance:+.3f}")
    # |x + dt v - c|^2 - r^2 >= (1 - alpha dt) (|x - c|^2 - r^2): a step never enters the disk, up to float32's 1e-5.
    assert clearance >= -1e-4
assert losses[-1] < losses[0]
