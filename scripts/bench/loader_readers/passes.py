"""How a reader is driven: it prepares, says so, and makes a pass over its data for each line that comes in. Needs only numpy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def serve(read_pass: Callable[[], int]) -> None:
    """Run passes on demand; a pass returns the tokens it gave to the loop. The first one, before `ready`, warms up."""
    read_pass()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        num_tokens = read_pass()
        print(json.dumps({"rate": num_tokens / (time.perf_counter() - started)}), flush=True)
