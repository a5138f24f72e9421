"""An evaluation set read in a process of its own, while this one imports JAX and loads the model.

TensorFlow takes as long to import as the model takes to load. Two threads would share Python's
lock, so a second process does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np

from hrnet_jax.data import classes, evaluation, protocol, sources
from hrnet_jax.errors import Unavailable, UserError
from hrnet_jax.runtime import cli


class Opener(Protocol):
    """What a task knows of data sets."""

    @property
    def outputs(self) -> str: ...
    @property
    def open_dataset(self) -> Callable[..., sources.Source]: ...
    def context(self, source: sources.Source, data_dir: str | None) -> dict[str, Any]: ...
    def num_outputs(self, source: sources.Facts) -> int | None: ...
    def renumbered(self, source: sources.Source, names: Sequence[str]) -> sources.Source: ...
    def batches(
        self, source: Any, transform: Any, share: evaluation.Share
    ) -> evaluation.Batches: ...


class Default:
    """Images with a class, and nothing beside."""

    outputs = 'classes'
    open_dataset = staticmethod(evaluation.open_dataset)
    renumbered = staticmethod(classes.renumbered)
    batches = staticmethod(evaluation.shared)

    def num_outputs(self, source: sources.Facts) -> int | None:
        return source.num_classes

    def context(self, source: sources.Source, data_dir: str | None) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be read.

    Attributes:
        name, split, data_dir: of `evaluation.open_dataset`.
        num_classes: of the model; a set with another number is refused; None for any.
        class_names: of the model, by which the data set's classes are found; None: it has none.
        order: names of the data set's classes in the order that the user says; None: their own.
        restrict: only the classes of the data set compete.
        transform: of the checkpoint, with the user's changes.
        share: what this process reads.
        opener: what opens the set; a task (`tasks.base.Task`), which is found there by its module.
        options: what it takes beside, such as the file of a detector's boxes.
    """

    name: str
    split: str | None
    data_dir: str | None
    num_classes: int | None
    transform: protocol.Protocol
    share: evaluation.Share
    class_names: Sequence[str] | None = None
    order: Sequence[str] | None = None
    restrict: bool = False
    opener: Opener = Default()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A data set that the other process has opened.

    Attributes:
        facts: what is known of it.
        context: what the metric must know, of the request's opener.
        total: how many examples are read, by all processes.
        steps: how many batches each process gets.
    """

    facts: sources.Facts
    context: dict[str, Any]
    total: int
    steps: int


class Reader:
    """The other process: it ends with its last batch, or with this one.

    Started here, it imports TensorFlow until `read` says what for. It knows the data sets of
    `sources.DATASETS` and of tfds, none that a script has added.

    Args:
        tensorflow: False: it is imported only where the data needs it.
    """

    def __init__(self, tensorflow: bool = True) -> None:
        # `multiprocessing` would import the command there, and JAX with it. Standard output is not
        # used, because libraries print to it.
        results, theirs = os.pipe()
        paths = [path for path in sys.path if isinstance(path, str)]
        code = f'import sys; sys.path[:] = {paths}; import {__name__} as r; '
        code += f'r.main({theirs}, {tensorflow})'
        self._process = subprocess.Popen(
            [sys.executable, '-c', code],
            stdin=subprocess.PIPE,
            stdout=sys.__stderr__,
            pass_fds=(theirs,),
            process_group=0,  # Ctrl-C is this process's to answer
            env=os.environ | {'CUDA_VISIBLE_DEVICES': '-1'},  # GPUs are for JAX
        )
        os.close(theirs)
        self._received = os.fdopen(results, 'rb')
        self._finalizer = weakref.finalize(self, _end, self._process, self._received)

    def read(self, request: Request) -> None:
        """Has it open the data set and decode images; to be called once."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError), self._process.stdin as requests:
            pickle.dump(request, requests)

    def opened(self) -> Opened:
        """Waits until the data set is open; to be called once, after `read`.

        Raises:
            UserError: of `evaluation.open_dataset`, or for another number of classes than the
                model's.
            Unavailable: if the other process was killed.
            RuntimeError: if it failed otherwise.
        """
        return self._receive()

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Those of `evaluation.batches`; once, after `opened`.

        Raises:
            UserError: of `evaluation.batches`.
            Unavailable, RuntimeError: as `opened`.
        """
        while (batch := self._receive()) is not None:
            yield batch

    def _receive(self) -> Any:
        try:
            received = pickle.load(self._received)
        except (EOFError, pickle.UnpicklingError):  # the latter in the middle of a batch
            code = self._process.wait()
            message = f'the process that reads the data set ended with code {code}'
            if code == -signal.SIGKILL:
                raise Unavailable(f'{message}: killed, perhaps for memory') from None
            raise RuntimeError(message) from None
        if isinstance(received, Exception):
            raise received
        return received


def _end(process: subprocess.Popen[bytes], results: BinaryIO) -> None:
    results.close()
    with process:
        process.kill()


def main(descriptor: int, tensorflow: bool) -> None:
    """What the other process does: it writes an `Opened`, the batches, None; or an exception."""
    cli.prepare()
    results = os.fdopen(descriptor, 'wb')

    def send(part: Any) -> None:
        try:
            pickle.dump(part, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
        except BrokenPipeError:  # the first process has ended
            os._exit(1)  # without another attempt to write

    try:
        if tensorflow:
            with contextlib.suppress(ImportError):  # said where it is needed
                sources.tensorflow()  # takes longest
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:  # the first process has ended without one
            return
        for part in parts(request):
            send(part)
    except ImportError as error:
        send(evaluation.missing(error))
    except Exception as error:
        known = isinstance(error, UserError)
        send(error if known else RuntimeError(traceback.format_exc()))


def parts(request: Request) -> Iterator[Any]:
    """An `Opened`, the batches, None."""
    opener = request.opener
    with sources.readable(request.name):
        place = (request.name, request.split, request.data_dir)
        source = opener.open_dataset(*place, **request.options)
    if request.order is not None:
        source = opener.renumbered(source, request.order)
    source = classes.of_checkpoint(
        source,
        {'num_classes': request.num_classes, 'class_names': request.class_names},
        request.order is not None,
        opener.renumbered,
    )
    count = None if source.num_classes is None else opener.num_outputs(source)
    if None not in (count, request.num_classes) and count != request.num_classes:
        numbers = f'{count} {opener.outputs}, the checkpoint {request.num_classes}'
        hint = 'train.py --init makes a checkpoint for other data'
        raise UserError('; '.join((f'{request.name} has {numbers}', *source.notes, hint)))
    source = evaluation.competing(source, request.restrict)
    total = min(request.share.limit or source.num_examples, source.num_examples)
    context = opener.context(source, request.data_dir)
    batches = opener.batches(source, request.transform, request.share)
    facts = source.noted(*batches.notes).facts
    yield Opened(facts=facts, context=context, total=total, steps=batches.steps)
    yield from batches
    yield None
