"""What a model costs: parameters and multiply-adds.

python -m hrnet_jax.summary --arch w18 --depth 2: the same by module.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from hrnet_jax.backbone import image_hw
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.inference.folded_blocks import Form
from hrnet_jax.models import flat, layers_of, variable_shapes


@dataclasses.dataclass(frozen=True)
class Row:
    """One module of a network.

    Attributes:
        name: its name in PyTorch, after `stem` or `head`: 'stage3.1', 'head.classifier'.
        outputs: the shapes (H, W, C), or (classes,), of what leaves it for one image.
        parameters, multiply_adds: as the functions of these names count them.
    """

    name: str
    outputs: tuple[tuple[int, ...], ...]
    parameters: int
    multiply_adds: int


def parameters(model: Classifier) -> int:
    """Number of parameters, running statistics not counted."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model)['params']))


def multiply_adds(model: Classifier, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-adds of the convolutions and matrix products for one image; computes nothing.

    The official GFLOPs are this / 1024^3. timm's GMACs are this / 10^9, with two more for each
    value that BatchNorm takes and one for each that upsampling makes: of w18 4.32, not 4.28.
    """
    jaxpr = jax.make_jaxpr(model.apply)(variable_shapes(model), _image(model, image_size))
    return _count(jaxpr.jaxpr.eqns)


def table(
    model: Classifier, image_size: int | tuple[int, int] = 224, depth: int = 2
) -> tuple[Row, ...]:
    """The model by module, in the order of computation; computes nothing.

    The sums over the rows are `parameters` and `multiply_adds`. A norm is counted with its
    convolution; operations outside of all modules (fusion, pooling) have no row.

    Args:
        model: not one of `hrnet_jax.fold`.
        image_size: an edge, or (height, width).
        depth: parts of the names: 1 for stages, 2 for their modules, at most 7 for convolutions.

    Raises:
        UserError: for a folded model, a depth below 1, or images that do not fit.
    """
    if model.folded:
        raise UserError('give the model as it was before it was folded')
    if depth < 1:
        raise UserError(f'depth must be at least 1, not {depth}')
    # Folded, for a third of the equations. Not jitted: equal modules would share the equations of
    # the first, and its name.
    plain = model.clone(blocks=Form(), remat=False)

    def forward(variables: Any, images: Any) -> Any:
        with jax.disable_jit():
            return plain.apply(variables, images)

    jaxpr = jax.make_jaxpr(forward)(variable_shapes(plain), _image(model, image_size)).jaxpr
    owners: list[str] = []
    users: dict[Any, set[str]] = {var: {''} for var in jaxpr.outvars}
    for eqn in jaxpr.eqns:
        # 'Classifier/backbone/stage2_0/stage2_0._fuse/fuse_layers_0_1_0': without class and method
        path = [part for part in str(eqn.source_info.name_stack).split('/')[1:] if '.' not in part]
        # The ReLU after a convolution of the backbone is the convolution's.
        owners.append(_name(path, depth) or owners[-1])
        for var in eqn.invars:
            if not isinstance(var, core.Literal):
                users.setdefault(var, set()).add(owners[-1])

    shapes = variable_shapes(model)
    norms = {(*path[:-1], of.norm): path[-1] for path, of in layers_of(model).items() if of.norm}
    sizes: collections.Counter[str] = collections.Counter()
    for (*path, layer, _), leaf in flat(shapes['params']).items():
        layer = norms.get((*path, layer), layer)  # a norm's convolution
        sizes[_name([*path, layer], depth)] += leaf.size
    # A part that is not asked for here, such as a second stage, has parameters, too.
    rows = {name: Row(name, (), sizes[name], 0) for name in (*owners, *sizes)}
    for name, eqn in zip(owners, jaxpr.eqns, strict=True):
        leaving = [v.aval.shape[1:] for v in eqn.outvars if users.get(v, {name}) != {name}]
        rows[name] = dataclasses.replace(
            rows[name],
            outputs=(*rows[name].outputs, *leaving),
            multiply_adds=rows[name].multiply_adds + _count([eqn]),
        )
    return tuple(row for row in rows.values() if row.parameters or row.multiply_adds)


def render(rows: Sequence[Row]) -> str:
    """The rows as aligned text, with their shares of the multiply-adds and a line of totals."""
    sums = [sum(getattr(row, what) for row in rows) for what in ('parameters', 'multiply_adds')]
    lines = [('module', 'output', 'parameters', 'multiply-adds', 'share')]
    for row in (*rows, Row('total', (), *sums)):
        shapes = ', '.join(' x '.join(map(str, shape)) for shape in row.outputs)
        if len(row.outputs) > 4:
            shapes = f'{len(row.outputs)} maps'
        share = f'{100 * row.multiply_adds / max(sums[1], 1):.1f} %'
        lines.append((row.name, shapes, f'{row.parameters:,}', f'{row.multiply_adds:,}', share))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        '  '.join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = '-' * len(text[0])
    return '\n'.join((text[0], rule, *text[1:-1], rule, text[-1]))


def _image(model: Classifier, size: int | tuple[int, int]) -> jax.ShapeDtypeStruct:
    channels = getattr(model, 'in_channels', 3)
    return jax.ShapeDtypeStruct((1, *image_hw(size), channels), np.float32)


def _name(path: Sequence[str], depth: int) -> str:
    """Of ('backbone', 'stage2_0', 'branches_0_1', 'conv2') `depth` parts of PyTorch's name,
    stage2.0.branches.0.1.conv2; '' for the backbone itself."""
    if path[:1] == ['backbone']:
        path = path[1:]
        if path and path[0].startswith('conv'):
            path = ['stem', *path]
    return '.'.join(re.sub(r'_(?=\d)', '.', '.'.join(path)).split('.')[:depth])


def _count(equations: Sequence[Any]) -> int:
    total = 0
    for equation in equations:
        kind, params = equation.primitive.name, equation.params
        if kind in ('conv_general_dilated', 'dot_general'):
            left, right = (v.aval.shape for v in equation.invars)
            if kind == 'dot_general':
                summed = math.prod(left[axis] for axis in params['dimension_numbers'][0][0])
            else:
                summed = math.prod(right) // right[params['dimension_numbers'].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * summed
        for inner in jax.tree.leaves(params, is_leaf=lambda p: hasattr(p, 'eqns')):
            if hasattr(inner, 'eqns'):  # of a scan as often as it runs
                total += _count(inner.eqns) * params.get('length', 1)
    return total
