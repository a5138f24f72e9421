"""Two CPU devices; promotion of types and of ranks is an error."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
# The older Keras is not installed, so TensorFlow imports none: a third of the time of its import.
os.environ['TF_USE_LEGACY_KERAS'] = '1'
# Compiled in a sixth of the time; `steps.AS_FOR_USERS` undoes it in one program.
QUICK = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
)
if 'PYTEST_XDIST_WORKER' not in os.environ:
    # Programs are compiled once for all workers and all commands that tests start. The folder is
    # new for each run: nothing is left in the user's folders, and no run depends on another.
    PROGRAMS = tempfile.mkdtemp(prefix='hrnet_jax_programs_')
    atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)
    os.environ |= {
        'JAX_COMPILATION_CACHE_DIR': PROGRAMS,
        'JAX_ENABLE_COMPILATION_CACHE': 'true',
        'JAX_COMPILATION_CACHE_MAX_SIZE': str(8 * 2**30),  # with a limit, JAX locks the folder
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
    }
    # XLA ends a process for a flag that its release does not know.
    flags = {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {QUICK}'.strip()}
    probe = [sys.executable, '-c', 'import jax; jax.devices()']
    if not subprocess.run(probe, env=os.environ | flags, capture_output=True).returncode:
        os.environ |= flags
# JAX would record the lines that each operation comes from: a tenth of the time to compile it.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '0'
gc.set_threshold(100_000, 50, 50)  # as all commands do
# PyTorch's threads of two workers wait for each other: a step took 25 times as long with two.
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import filelock  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

from hrnet_jax.inference import folding  # noqa: E402

FOLDED = dict(folding.CPU_OPTIONS)
folding.CPU_OPTIONS['xla_backend_optimization_level'] = 0  # compiled in a third of the time

# Files with long tests begin first, so that no worker waits for another at the end.
DEAR = (
    'test_training_runs', 'test_multilabel_runs', 'test_own_task', 'test_docs_code', 'test_parity',
    'test_segmentation_runs', 'test_pose_runs', 'test_pose', 'test_views', 'test_pose_eval',
    'test_segmentation_eval', 'test_eval_processes', 'test_package', 'test_train_data',
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in DEAR)


@pytest.fixture
def command():
    """`runs.call`."""
    import runs

    return runs.call


@pytest.fixture
def refused(command):
    """Runs a command that must fail as a user's mistake does; returns its one line."""

    def call(main, *arguments):
        code, _, err = command(main, *arguments)
        assert code == 2, err
        assert err.count('\n') == 1, err
        assert 'Traceback' not in err
        return err

    return call


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    """What is made once for all workers: (name, make) -> the folder that `make(folder)` made."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent

    def call(name, make):
        folder, whole = base / name, base / f'{name}.whole'
        with filelock.FileLock(base / f'{name}.lock'):
            if not whole.exists():
                make(folder)
                whole.touch()
        return folder

    return call


@pytest.fixture(scope='session')
def digits_data(once):
    """The digit scans as a tfds data set; its data_dir."""
    sys.path.append(str(Path(__file__).parents[1] / 'examples'))
    import digits

    return str(once('digits', lambda folder: digits.prepare(str(folder))))


@pytest.fixture(scope='session')
def setting(once):
    """`evaluated.setting`."""
    import evaluated

    return evaluated.setting(once('setting', evaluated.make_setting))


@pytest.fixture
def standard_promotion():
    """Optax multiplies counters by floats, and float32 targets meet float64 logits here."""
    with jax.numpy_dtype_promotion('standard'):
        yield


@pytest.fixture
def folded_as_for_users(monkeypatch):
    """Folded networks are compiled with no other options than a user's."""
    from steps import AS_FOR_USERS

    monkeypatch.setattr(folding, 'CPU_OPTIONS', AS_FOR_USERS | FOLDED)
    folding._options_of_cpu.cache_clear()
    yield
    folding._options_of_cpu.cache_clear()


@pytest.fixture(scope='module')
def tiny():
    """A small classifier of ten classes, and fresh variables."""
    from hrnet_jax.initialisation import init
    from hrnet_jax.models import create_model

    model = create_model('tiny', 10)
    return model, init(model, jax.random.key(0))
