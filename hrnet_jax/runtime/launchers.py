"""What launchers of many processes put into the environment, and whether JAX can use it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from hrnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher whose processes `jax.distributed.initialize()` joins.

    Attributes:
        name: for messages.
        size, rank: variables with the number of processes, and with that of this one.
        others: variables that JAX needs, too.
    """

    name: str
    size: str
    rank: str
    others: tuple[str, ...]

    def several(self, environment: Mapping[str, str]) -> bool:
        """Whether it has started more than one; what is empty or no number says nothing."""
        size = environment.get(self.size, '')
        return size.isdecimal() and int(size) > 1


LAUNCHERS = (
    Launcher(
        'Slurm',
        'SLURM_STEP_NUM_TASKS',
        'SLURM_PROCID',
        ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    ),
    # Of Open MPI 4; 5 does not set the last one.
    Launcher(
        'Open MPI',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_RANK',
        ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_MCA_orte_hnp_uri'),
    ),
)
_TPU_HOSTS = 'TPU_WORKER_HOSTNAMES'


def found(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several processes that JAX can join.

    Raises:
        UserError: if a launcher says that there are several, and JAX cannot join them.
    """
    started = [launcher for launcher in LAUNCHERS if launcher.several(environment)]
    lacking = [
        [name for name in (launcher.rank, *launcher.others) if not environment.get(name)]
        for launcher in started
    ]
    if started and all(lacking):
        launcher, missing = started[0], lacking[0]
        rank = environment.get(launcher.rank) or 'ID'
        size = environment[launcher.size]
        raise UserError(
            f'{launcher.name} says by {launcher.size} that there are {size} processes, but JAX '
            f'cannot join them without {", ".join(missing)}: add --coordinator HOST:PORT '
            f'--num-processes {size} --process-id {rank}; for one process alone, unset '
            f'{launcher.size}'
        )
    return bool(started) or ',' in environment.get(_TPU_HOSTS, '')
