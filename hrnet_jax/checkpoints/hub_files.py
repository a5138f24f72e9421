"""Files of the Hugging Face hub, with one-line errors."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from hrnet_jax.errors import UserError

PREFIX = 'hf:'
_LOGIN = 'run `hf auth login` first'
_ERRORS = {
    'LocalEntryNotFoundError': 'the hub cannot be reached and the file is not in the cache',
    'GatedRepoError': 'its owner must let you in: ask on the page of the repository, then run '
    '`hf auth login`',
    'RepositoryNotFoundError': f'no such repository; if it is private, {_LOGIN}',
    'RevisionNotFoundError': 'the repository has no such revision',
    'LocalTokenNotFoundError': _LOGIN,
}
_STATUS = {401: _LOGIN, 403: 'your token may not do that; take one that may write'}


class NoFile(UserError):
    """The repository has none of the files; or nobody answers, and the cache has none."""

    offline = False


def download(origin: str, names: tuple[str, ...], offline: bool = False) -> Path:
    """The local copy of the first of these files that the repository has.

    Args:
        origin: `hf:OWNER/REPO[@REVISION]`.
        names: files, the best first.
        offline: look in the cache alone.

    Raises:
        UserError: whose message begins behind `origin`.
    """
    repository, revision = parse(origin)
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise UserError('needs a package that is missing: pip install huggingface_hub') from None
    failure: Exception | None = None
    kinds: list[str] = []
    for name in names:
        try:
            with _quiet():
                return Path(
                    hf_hub_download(repository, name, revision=revision, local_files_only=offline)
                )
        except Exception as error:
            failure, kinds = error, _kinds(error)
            # Where nobody answered to the first name, half a minute of tries is enough.
            offline = offline or 'LocalEntryNotFoundError' in kinds
            if 'EntryNotFoundError' not in kinds:  # the other file may be there, or in the cache
                break
    assert failure is not None
    kind = NoFile if 'EntryNotFoundError' in kinds else UserError
    reason = reason_of(failure)
    if kinds[0] != 'LocalEntryNotFoundError' and kind is NoFile:
        reason = 'the repository has n' + ('either ' if names[1:] else 'o ') + ' nor '.join(names)
    missing = kind(f'cannot be downloaded: {reason}')
    if isinstance(missing, NoFile):
        missing.offline = offline
    raise missing from failure


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub's reports of every try; what came of them is in the exception."""
    logger = logging.getLogger('huggingface_hub')
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def parse(origin: str) -> tuple[str, str | None]:
    """OWNER/REPO and the revision, if one is named, of `hf:OWNER/REPO[@REVISION]`."""
    match = re.fullmatch(PREFIX + r'(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?', origin)
    if not match:
        raise UserError('is no repository: write hf:OWNER/REPO or hf:OWNER/REPO@REVISION')
    return match[1], match[2]


def hint(path: str) -> str:
    """What to add where no such file or folder is there: perhaps a repository was meant."""
    if re.fullmatch(r'\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?', path) and not Path(path).parent.exists():
        return f'; if it is a repository of the Hugging Face hub, write {PREFIX}{path}'
    return ''


def _kinds(error: Exception) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def reason_of(error: Exception) -> str:
    """What a failure of huggingface_hub means, in one line."""
    known = [_ERRORS[kind] for kind in _kinds(error) if kind in _ERRORS]
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if status in _STATUS and not known:
        return _STATUS[status]
    return known[0] if known else ' '.join(f'{type(error).__name__}: {error}'.split())
