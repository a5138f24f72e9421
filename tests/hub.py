"""The Hugging Face hub, played by a server on loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOKEN = 'hf_of_a_test'


class Hub(http.server.BaseHTTPRequestHandler):
    """What downloads and uploads need; `files` has bytes by repository, revision, name."""

    files: dict
    asked: list  # of downloads
    stored: dict  # large files by digest

    def commit(self, repository, revision):
        """The name of the commit that a revision is at."""
        held = {k[2]: v for k, v in self.files.items() if k[:2] == (repository, revision)}
        return hashlib.sha1(repr((repository, sorted(held.items()))).encode()).hexdigest()

    def do_HEAD(self):
        repository, _, rest = self.path[1:].partition('/resolve/')
        revision, _, name = rest.partition('/')
        self.asked.append((repository, revision, name))
        known = {key[:2] for key in self.files}
        for branch in [key[1] for key in known if key[0] == repository]:
            revision = branch if self.commit(repository, branch) == revision else revision
        error = (
            ('GatedRepo', 403) if repository == 'timm/gated'
            else ('RepoNotFound', 401) if repository not in {key[0] for key in known}
            else ('RevisionNotFound', 404) if (repository, revision) not in known
            else ('EntryNotFound', 404) if (repository, revision, name) not in self.files
            else None
        )  # fmt: skip
        data = b'' if error else self.files[repository, revision, name]
        self.send_response(error[1] if error else 200)
        if error:
            self.send_header('X-Error-Code', error[0])
        self.send_header('X-Repo-Commit', self.commit(repository, revision))
        self.send_header('ETag', f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        return data

    def do_GET(self):
        data = self.do_HEAD()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers['Content-Length']))
        oid = self.path.rpartition('/')[2]
        self.stored[oid] = data
        self.answer({}, 200 if hashlib.sha256(data).hexdigest() == oid else 400)

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        here = f'http://{self.headers["Host"]}'
        lines = [json.loads(line) for line in body.splitlines()]
        place = self.path.removeprefix('/api/models/').split('/')
        repository = '/'.join(place[:2])
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            self.answer({'error': 'Invalid username or password.'}, 401)
        elif self.path == '/api/repos/create':
            name = f'{lines[0]["organization"]}/{lines[0]["name"]}'
            there = any(key[0] == name for key in self.files)
            self.files.setdefault((name, 'main', '.gitattributes'), b'')
            self.answer({'url': f'{here}/{name}'}, 409 if there else 200)
        elif 'preupload' in place:
            modes = [
                {
                    'path': file['path'],
                    'uploadMode': 'lfs' if file['path'].endswith('.safetensors') else 'regular',
                    'shouldIgnore': False,
                }
                for file in lines[0]['files']
            ]
            self.answer({'files': modes})
        elif self.path.endswith('.git/info/lfs/objects/batch'):
            objects = [
                {**one, 'actions': {'upload': {'href': f'{here}/large/{one["oid"]}'}}}
                for one in lines[0]['objects']
            ]
            self.answer({'transfer': 'basic', 'objects': objects})
        elif place[2] == 'commit':
            for value in [line['value'] for line in lines if line['key'] != 'header']:
                data = value.get('content')
                data = self.stored[value['oid']] if data is None else base64.b64decode(data)
                self.files[repository, place[3], value['path']] = data
            oid = self.commit(repository, place[3])
            self.answer({'commitUrl': f'{here}/{repository}/commit/{oid}', 'commitOid': oid})
        else:
            self.answer({}, 404)

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(files):
    """A hub that holds `files`: its address, and what it is asked for."""
    asked: list = []
    handler = type('Hub', (Hub,), {'files': files, 'asked': asked, 'stored': {}})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_address[1]}', asked
    finally:
        server.shutdown()
        server.server_close()


def run(script, tmp_path, endpoint, *arguments, **env):
    """The output of a Python script for which the hub is at `endpoint`; caches in `tmp_path`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith('HF_')} | {
        **{
            'HF_ENDPOINT': endpoint,
            'HF_HUB_CACHE': str(tmp_path / 'hub'),
            'HF_HOME': str(tmp_path),
            'XDG_CACHE_HOME': str(tmp_path / 'cache'),
        },
        **{'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'NO_PROXY': '127.0.0.1'},
        **env,
    }
    done = subprocess.run(
        [sys.executable, '-c', script, *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
