"""moto's S3 on a port of this machine, which refuses or holds what a test wants it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class S3:
    """The bucket `data`. Writing or removing a key that ends in `refused` gets a 403; writing one that ends in `held`
    begins, and never comes to its end until `released`. `writes` are the keys that were written, in order.
    """

    url: str
    client: Any
    refused: str = "-"
    held: str = "-"
    holding: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    writes: list[str] = field(default_factory=list[str])

    @property
    def environment(self) -> dict[str, str]:
        """What makes the packages of a store use it."""
        return KEYS | {"AWS_ENDPOINT_URL": self.url}

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket="data", Key=key, Body=content)
        return f"s3://data/{key}"

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket="data", Key=key)["Body"].read()

    def there(self) -> list[str]:
        return [found["Key"] for found in self.client.list_objects_v2(Bucket="data").get("Contents", [])]

    def remove(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket="data", Key=key)


@contextmanager
def serving_s3() -> Iterator[S3]:
    moto = DomainDispatcherApplication(create_backend_app)

    def gate(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        key = environ["PATH_INFO"].partition("/data/")[2]
        if environ["REQUEST_METHOD"] in ("PUT", "DELETE") and key.endswith(s3.refused):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if environ["REQUEST_METHOD"] == "PUT" and key:
            if key.endswith(s3.held):
                s3.holding.set()
                s3.released.wait(60)
                start("503 Slow Down", [])
                return [b""]
            s3.writes.append(key)
        return moto(environ, start)

    server = make_server("127.0.0.1", 0, gate, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    s3 = S3(url, client)
    client.create_bucket(Bucket="data")
    s3.remove(*s3.there())  # moto has one memory in this process
    S3FileSystem.clear_instance_cache()  # which has endpoints and credentials of before
    try:
        yield s3
    finally:
        s3.released.set()
        server.shutdown()
        server.server_close()
