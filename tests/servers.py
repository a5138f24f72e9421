"""Servers of object storage on loopback, as Google and Amazon have it, in processes of their own.

`python servers.py google|amazon PORT` is such a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

ENVIRONMENT = {
    'gs': {'STORAGE_EMULATOR_HOST': 'http://127.0.0.1:{port}', 'FSSPEC_GS_TOKEN': 'anon'},
    's3': {
        'AWS_ENDPOINT_URL': 'http://127.0.0.1:{port}',
        'AWS_ACCESS_KEY_ID': 'key',
        'AWS_SECRET_ACCESS_KEY': 'secret',
        'AWS_DEFAULT_REGION': 'us-east-1',
    },
}
BUCKET = 'pod'


@contextlib.contextmanager
def storage(kind: str) -> Iterator[subprocess.Popen]:
    """A server of `kind`, gs or s3, with the bucket `pod`; os.environ leads to it."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = found.getsockname()[1]
    own = {name: value.format(port=port) for name, value in ENVIRONMENT[kind].items()}
    before = {name: os.environ.get(name) for name in own}
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, __file__, kind, str(port)], **quiet)
    os.environ |= own
    fsspec.get_filesystem_class(kind).clear_instance_cache()  # the last server's port is in it
    try:
        _answers(port, server)
        if kind == 's3':
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield server
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _answers(port: int, server: subprocess.Popen) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
            return
        assert server.poll() is None
        time.sleep(0.1)
    raise AssertionError('the server does not answer')


def _exact(read: Callable[..., Any], raw: Callable[..., bytes]) -> Callable[..., Any]:
    """The emulator parses an upload as an e-mail, which loses a carriage return at its end."""

    def read_data(request: Any, query: Any) -> Any:
        if not (request.headers.get('Content-Type') or '').startswith('multipart/related'):
            return read(request, query)
        _, meta, rest = raw(request).split(b'--==0==', 2)
        content = rest.partition(b'\n\n')[2]
        return {
            'meta': json.loads(meta.partition(b'\n\n')[2]),
            'content': content[: content.rindex(b'\n--==0==--')],
            'content-type': 'application/octet-stream',
        }

    return read_data


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == 's3':
        from moto.server import ThreadedMotoServer

        ThreadedMotoServer('127.0.0.1', port, verbose=False).start()
    else:
        from gcp_storage_emulator import server

        server._read_data = _exact(server._read_data, server._read_raw_data)
        server.create_server('127.0.0.1', port, in_memory=True, default_bucket=BUCKET).start()
    while True:
        time.sleep(60)


if __name__ == '__main__':
    main()
