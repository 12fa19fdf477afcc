# SPDX-License-Identifier: Apache-2.0
"""The compiled part of the build; pyproject.toml declares everything else.

There is no compiled extension yet: every engine runs on plain torch, and the wheel is ``py3-none-any``.
"""

from setuptools import setup

setup(ext_modules=[])
