"""Rule-made state dicts of networks for segmentation, and for pose."""

from __future__ import annotations

import jax
import numpy as np
import torch
from rules import weight

from convert import to_torch
from hrnet_jax.models import variable_shapes
from hrnet_jax.tasks import create_model

OCR = {'ocr_channels': 12, 'key_channels': 8}


def names(layout, head, arch='tiny', classes=5, task='segmentation', **options):
    """Entries of a state dict -> their shapes."""
    model = create_model(arch, classes, task=task, head=head, **options)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variable_shapes(model))
    return {k: v.shape for k, v in to_torch(zeros, arch, layout).items()}


def made(layout, head, **options):
    """A small one."""
    options = (OCR if head == 'ocr' else {}) | options
    return {k: weight(k, shape) for k, shape in names(layout, head, **options).items()}


def save(path, state, **beside):
    """As a training script saves it: under 'state_dict', if anything lies beside it."""
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
    torch.save({'state_dict': tensors, **beside} if beside else tensors, path)
    return path
