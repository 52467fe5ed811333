"""A server of S3 for the tests beside this file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.local_s3 import LocalS3, local_s3


@pytest.fixture(scope="package")
def server() -> Iterator[LocalS3]:
    with local_s3() as running:
        yield running


@pytest.fixture
def s3(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> LocalS3:
    """The server, found by clients of this process."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.seconds, server.failing, server.bytes_sent = 0.0, 0, 0
    server.paths.clear()
    return server
