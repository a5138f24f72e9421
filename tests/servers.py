"""Servers of object storage on loopback, as Google and Amazon have it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import fsspec


@contextlib.contextmanager
def google() -> Iterator[dict[str, str]]:
    """The environment in which gs:// is this server; it holds the bucket `pod`."""
    from gcp_storage_emulator.server import create_server

    server = create_server('127.0.0.1', port := _free_port(), in_memory=True, default_bucket='pod')
    server.start()
    try:
        yield {'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}', 'FSSPEC_GS_TOKEN': 'anon'}
    finally:
        server.stop()


@contextlib.contextmanager
def amazon() -> Iterator[dict[str, str]]:
    """The same of s3://."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer('127.0.0.1', port := _free_port(), verbose=False)
    server.start()
    own = {
        'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}',
        'AWS_ACCESS_KEY_ID': 'key',
        'AWS_SECRET_ACCESS_KEY': 'secret',
    }
    try:
        with environment(own):
            fsspec.filesystem('s3', skip_instance_cache=True).mkdir('pod')
        yield own
    finally:
        server.stop()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]
