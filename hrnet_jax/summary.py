"""What a model costs: parameters and multiply-adds."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from hrnet_jax.heads.classification import Classifier
from hrnet_jax.models import variable_shapes


def parameters(model: Classifier) -> int:
    """Number of parameters, running statistics not counted."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model)['params']))


def multiply_adds(model: Classifier, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-adds of the convolutions and matrix products for one image; computes nothing.

    timm's GMACs are this / 10^9, the official GFLOPs this / 1024^3.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = jax.ShapeDtypeStruct((1, height, width, model.in_channels), np.float32)
    jaxpr = jax.make_jaxpr(model.apply)(variable_shapes(model), images)
    return _count(jaxpr.jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval.shape
        shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, 'shape')]
        if equation.primitive.name == 'conv_general_dilated':
            features = equation.params['dimension_numbers'].rhs_spec[0]
            total += math.prod(out) * math.prod(shapes[1]) // shapes[1][features]
        elif equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            total += math.prod(out) * math.prod(shapes[0][axis] for axis in contracted)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, 'jaxpr')):
            if hasattr(inner, 'jaxpr'):
                total += _count(inner.jaxpr)
    return total
