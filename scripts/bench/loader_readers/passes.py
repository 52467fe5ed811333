"""How a reader is driven: it prepares, says so, and makes a pass over its data for each line that comes in. Needs only numpy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

LEAST_SECONDS = 0.3


def serve(read_pass: Callable[[], int]) -> None:
    """Run passes on demand, for as long as can be timed; a pass returns the tokens it gave to the loop. The first one warms up."""
    read_pass()
    print("ready", flush=True)
    for _ in sys.stdin:
        started, num_tokens = time.perf_counter(), 0
        while (seconds := time.perf_counter() - started) < LEAST_SECONDS:
            num_tokens += read_pass()
        print(json.dumps({"rate": num_tokens / seconds}), flush=True)
