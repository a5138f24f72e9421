"""Conversion of PyTorch HRNet checkpoints to Flax variables and back.

The command is `python -m convert`; see `convert/__main__.py`.
"""

from convert.conversion import from_torch
from convert.writing import to_torch

__all__ = ['from_torch', 'to_torch']
