"""Detectors: HRNet, its pyramid HRFPN, and FCOS or Faster R-CNN on that."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp

from hrnet_jax.archs import at_least_one
from hrnet_jax.backbone import FeatureInfo, HRNet
from hrnet_jax.errors import UserError
from hrnet_jax.heads import detections, regions
from hrnet_jax.heads.faster_rcnn import BoxHead, RPNHead
from hrnet_jax.heads.fcos import FCOSHead
from hrnet_jax.heads.hrfpn import WithPyramid
from hrnet_jax.layers import Array, at_least_float32

Head = Literal['fcos', 'faster_rcnn']
STRIDES = {'fcos': (8, 16, 32, 64, 128), 'faster_rcnn': (4, 8, 16, 32, 64)}
Maps = dict[str, tuple[Array, ...]]


class Detector(WithPyramid):
    """HRNet for detection: `backbone`, `neck`, then `bbox_head`, with `rpn_head` before it.

    Attributes beside those of `WithPyramid`:
        num_classes: how many kinds of objects there are.
        head: 'fcos' or 'faster_rcnn'; with 'fcos', `channels` are a multiple of 32.
        threshold: `detect` leaves out boxes whose probability of their class is not above it.
        iou: boxes of a class that overlap by more with a better one are suppressed.
        most: detections an image, at most.
        transform, class_names: filled in by `hrnet_jax.load`, as of a `Classifier`.
    """

    num_classes: int = 80
    head: Head = 'fcos'
    threshold: float = 0.05
    iou: float = 0.5
    most: int = 100
    task: str = 'detection'
    transform: Any = dataclasses.field(default=None, compare=False, repr=False)
    class_names: tuple[str, ...] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise UserError(f'head must be one of {", ".join(get_args(Head))}, not {self.head!r}')
        for name in ('num_classes', 'most'):
            object.__setattr__(self, name, at_least_one(name, getattr(self, name)))
        if self.head == 'fcos' and self.channels % 32:
            raise UserError(f'channels of fcos are a multiple of 32, not {self.channels}')
        for name in ('threshold', 'iou'):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f'{name} must be from 0 to 1, not {getattr(self, name)!r}')
        super().__post_init__()

    @property
    def strides(self) -> tuple[int, ...]:
        return STRIDES[self.head]

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that `features` returns."""
        return HRNet(self.arch, parent=None).feature_info

    def setup(self) -> None:
        super().setup()
        if self.head == 'fcos':
            self.bbox_head: Any = FCOSHead(self.num_classes, self.opts)
        else:
            self.rpn_head = RPNHead(self.opts)
            self.bbox_head = BoxHead(self.num_classes, self.opts)

    def __call__(self, images: Array, train: bool = False, sizes: Array | None = None) -> Maps:
        """(N, H, W, in_channels) normalised images -> what the heads say of each level, float32.

        Of 'fcos': classes, logits (N, h, w, num_classes); distances from the middle of a place to
        the left, upper, right and lower edge of its box (N, h, w, 4), in pixels; centerness, logits
        (N, h, w, 1). Of 'faster_rcnn': pyramid (N, h, w, channels); objectness, logits (N, h, w, 3)
        of the anchors; deltas (N, h, w, 12), four an anchor.

        Args:
            train: see `Classifier`.
            sizes: (N, 2), height and width of what is in each image, from the upper left corner;
                the rest counts as zeros, whatever is there.
        """
        if sizes is not None:
            images = blank(images, sizes)
        levels = self.pyramid(images, train)
        if self.head == 'fcos':
            of_levels = (self.bbox_head(x, i) for i, x in enumerate(levels))
            names: tuple[str, ...] = ('classes', 'distances', 'centerness')
        else:
            of_levels = ((x, *self.rpn_head(x)) for x in levels)
            names = ('pyramid', 'objectness', 'deltas')
            if self.is_initializing():
                self.classify(levels, jnp.zeros((len(images), 1, 4), images.dtype))
        return dict(zip(names, zip(*of_levels, strict=True), strict=True))

    def classify(
        self, pyramid: Sequence[Array], boxes: Array, train: bool = False
    ) -> tuple[Array, Array]:
        """Of 'faster_rcnn': what is in boxes (N, R, 4), and how they should move; in training, too.

        Returns:
            Logits (N, R, num_classes + 1), of the background last, and deltas
            (N, R, num_classes, 4), which are multiplied by `detections.STDS`.
        """
        if self.head != 'faster_rcnn':
            raise UserError(f'{self.head} has no second stage to classify boxes with')
        dtype = at_least_float32(self.dtype, self.param_dtype)
        return self.bbox_head(regions.roi_align(pyramid, boxes.astype(dtype)))

    def detect(self, images: Array, sizes: Array) -> dict[str, Array]:
        """The objects in images, best first.

        Args:
            images: as for the call.
            sizes: likewise.

        Returns:
            boxes, float32 (N, most, 4), x1 y1 x2 y2 in the images; scores, float32 (N, most);
            labels, int32 (N, most); valid, bool (N, most): which of them there are. The scores are
            NaN where the heads give no numbers.
        """
        maps, threshold = self(images, sizes=sizes), self.threshold
        if self.head == 'fcos':
            found = detections.of_places(maps, self.strides, sizes, threshold)
        else:
            proposed = detections.proposals(maps, self.strides, sizes)
            logits, deltas = self.classify(maps['pyramid'], proposed['boxes'])
            found = detections.of_regions(proposed, logits, deltas, sizes, threshold)
            maps = {**maps, 'regions': (logits, deltas)}
        best = detections.best(found, self.iou, self.most)
        numbers = [  # a distance may be infinite: then the edge is the image's
            jnp.all(
                ~jnp.isnan(x) if name == 'distances' else jnp.isfinite(x), tuple(range(1, x.ndim))
            )
            for name, xs in maps.items()
            for x in xs
        ]
        finite = jnp.all(jnp.stack(numbers), 0)[:, None]
        return {**best, 'scores': jnp.where(finite, best['scores'], jnp.nan)}


def blank(images: Array, sizes: Array) -> Array:
    """(N, H, W, C) with zeros beyond these heights and widths, (N, 2)."""
    inside = [
        jnp.arange(whole)[None] < sizes[:, axis, None]
        for axis, whole in enumerate(images.shape[1:3])
    ]
    keep = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(keep, images, jnp.zeros_like(images))
