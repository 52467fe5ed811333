"""`python -m train.search RECIPE`: `fastmix search`, as one rank of a run that torchrun or the deepspeed launcher starts.

There is one command with one parser. It takes this process's place, so that the launcher watches the rank itself.
"""

from __future__ import annotations

import os
import sys

os.execv(sys.executable, [sys.executable, "-m", "pipelines.cli", "search", *sys.argv[1:]])
