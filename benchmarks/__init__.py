# SPDX-License-Identifier: Apache-2.0
"""Figures of reliability, accuracy and speed, one command each: ``python -m benchmarks.NAME``.

    reliability   the problem collections: status, residuals and iterations, beside PIQP's
    gradients     the gradient of every kind of hard case, beside its exact value
    softmax       the Jacobian of the softmax problem, beside its closed form
    throughput    right answers per second on the workloads of the field, beside five other libraries
    kernels       GFLOP/s of the dense kernels in C++, by size
    growth        cost over the batch and the size, latency of one problem, two threads
    memory        what four ways to differentiate an iteration keep for backward, and how good their gradients are

Each prints a table and writes it to ``benchmarks/results``. No answer counts before ``referee.py``, which knows numpy
alone, has verified it on the original data.
"""
