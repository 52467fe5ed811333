"""An S3 server on this machine: moto's, behind a layer that counts requests, delays them and lets them fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY = "the-key", "the-secret"
Answer = Callable[[Any, Any], Iterable[bytes]]


@dataclass
class LocalS3:
    """A running server.

    Attributes:
        port: it listens at, on 127.0.0.1.
        seconds: every request waits.
        failing: how many requests to come are answered with 503, as S3 does when there are too many.
        paths: method and path of every request so far, in the order of their arrival.
        bytes_sent: of all answers to GET.
    """

    port: int = 0
    seconds: float = 0.0
    failing: int = 0
    paths: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a client has to find in its environment."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """What `aws s3 sync` does; the bucket is made if there is none."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(bucket, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Put an object, past the layer that counts."""
        store = _moto_store()
        if bucket not in store.buckets:
            store.create_bucket(bucket, "us-east-1")
        store.put_object(bucket, key, content)

    def delete(self, bucket: str, key: str) -> None:
        """Take an object away."""
        _moto_store().delete_object(bucket, key)

    def answer(self, app: Answer, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Between the client and moto."""
        time.sleep(self.seconds)
        with self._lock:
            self.paths.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            fails, self.failing = self.failing > 0, max(0, self.failing - 1)
        if fails:
            return _refuse(start_response, "503 Slow Down", "SlowDown", environ)
        if f"Credential={ACCESS_KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return _refuse(start_response, "403 Forbidden", "InvalidAccessKeyId", environ)
        content = b"".join(app(environ, start_response))
        if environ["REQUEST_METHOD"] == "GET":
            with self._lock:
                self.bytes_sent += len(content)
        return [content]


def _moto_store() -> Any:
    from moto.s3.models import s3_backends

    return s3_backends["123456789012"]["aws"]  # the account that moto takes everybody for


def _refuse(start_response: Any, status: str, code: str, environ: dict[str, Any]) -> Iterable[bytes]:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body if environ["REQUEST_METHOD"] != "HEAD" else b""]


@contextmanager
def local_s3() -> Iterator[LocalS3]:
    """Run the server in threads of this process until the block ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as S3 keeps them

        def log(self, *_: object) -> None:
            pass

    app, server = DomainDispatcherApplication(create_backend_app), LocalS3()
    listening = make_server(
        "127.0.0.1", 0, lambda environ, start: server.answer(app, environ, start), threaded=True, request_handler=Quiet
    )
    server.port = listening.server_port
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
