# SPDX-License-Identifier: Apache-2.0
"""``python -m optlayer``."""

import sys

from .cli import main

sys.exit(main())
