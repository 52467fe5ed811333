from __future__ import annotations

import pickle
from pathlib import Path

from fastmix_data.exports.format import ExportRequest
from fastmix_data.manifest.manifest import Manifest


def test_what_a_format_plans_is_made_once_and_does_not_travel(mixed_manifest: Manifest, tmp_path: Path) -> None:
    planned: list[ExportRequest] = []

    def plan(request: ExportRequest) -> int:
        planned.append(request)
        return len(planned)

    request = ExportRequest(mixed_manifest, mixed_manifest.root_path, tmp_path)
    assert [request.once(plan) for _ in range(3)] == [1, 1, 1] and len(planned) == 1
    travelled = pickle.loads(pickle.dumps(request))  # a function of a test could not be pickled
    assert travelled.directory == tmp_path and travelled.once(plan) == 2
