"""With this folder on ``PYTHONPATH`` the threads of a Python process change places every 10 µs in place of every 5 ms.

``support.under_load`` puts it there. Every Python process imports a module of this name when it starts, so the operator
and the workers that tests start get it too, and nothing of the product has to know.
"""

from __future__ import annotations

import sys

SWITCH_SECONDS = 10e-6

sys.setswitchinterval(SWITCH_SECONDS)
