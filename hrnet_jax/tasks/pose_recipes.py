"""The recipes of pose."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from hrnet_jax.data.crops import Size
from hrnet_jax.data.topdown import Codec, TopDown
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.recipe import Recipe, Schedule, setting


@dataclasses.dataclass(frozen=True)
class PoseRecipe(Recipe):
    """For keypoints of people in boxes, as mmpose trains: its augmentation, and Adam."""

    task: ClassVar[str] = 'pose'
    unused: ClassVar[tuple[str, ...]] = ('class_names',)

    head: Literal['finest', 'joined'] = setting(
        'finest', 'heatmaps of the finest map, or of all four (HRNetV2: faces, hands)'
    )
    frozen_norm: bool = setting(False, 'BatchNorm keeps and uses the statistics of --init')

    input_size: Size = setting((256, 192), 'height and width of a crop')
    padding: float = setting(1.25, 'factor on the box of a person')
    codec: Codec = setting(
        'quarter', 'how heatmaps and keypoints belong together: quarter, official, dark, udp'
    )
    sigma: float = setting(2.0, 'of the peaks, in pixels of the heatmap; 3 for 384 x 288')
    loss_weight: float = setting(1.0, 'factor on the mean of the squares; official: 0.5')

    flip: float = setting(0.5, 'probability of a horizontal flip')
    half_body: float = setting(0.3, 'how often a crop shows half of the body')
    half_body_least: int = setting(9, 'keypoints that must be marked for that')
    half_body_upper: float = setting(0.7, 'how often that half is the upper one')
    shift: float = setting(0.16, 'largest way that a crop is moved, in parts of the box')
    shift_share: float = setting(0.3, 'how often it is moved')
    scale: float = setting(0.5, 'largest change of its size, as a part of it')
    rotation: float = setting(80.0, 'degrees that it is turned: noise times this')
    rotation_share: float = setting(0.6, 'how often it is turned')
    noise: Literal['truncated', 'clipped'] = setting(
        'truncated', 'random numbers beyond the limit: drawn again (mmpose) or cut off (official)'
    )
    eval_flip: bool = setting(True, 'evaluation: average with the mirror image', True)

    optimizer: Literal['sgd', 'adam', 'adamw'] = 'adam'
    learning_rate: float = 5e-4
    weight_decay: float = 0.0

    def check(self) -> None:
        if not 0 <= self.scale < 1:
            raise UserError(f'scale must be from 0 to below 1, not {self.scale}')

    @property
    def size(self) -> Size:
        return self.input_size

    @property
    def transform(self) -> TopDown:
        """With the keypoints of COCO: `Task.transform` puts those of the data in their place."""
        fields = {name: getattr(self, name) for name in ('codec', 'sigma', 'input_size', 'padding')}
        return TopDown(**fields, flip=self.eval_flip).override(**self.pixels)


@dataclasses.dataclass(frozen=True)
class CocoPose(PoseRecipe):
    """As mmpose trains on COCO: 210 epochs of batches of 512 people.

    Source: mmpose 1.3.2, configs/body_2d_keypoint/topdown_heatmap/coco,
    td-hm_hrnet-w32_8xb64-210e_coco-256x192.py, and its neighbours for other widths, sizes and
    codecs: Adam 5e-4, 500 steps of warm-up, a tenth from epochs 170 and 200 on, statistics of
    BatchNorm over 64 crops. 384 x 288: --input-size 384 288 --sigma 3; UDP: --codec udp.

        python train.py --recipe coco_pose --init converted/w32 --data-dir coco \\
            --workdir runs/coco_pose

    Expect (published, AP on val2017 with the boxes of a detector): w32 0.749, w48 0.756; of UDP
    0.762 and 0.768. The run itself evaluates with the annotated boxes, which gives some 0.02
    more. Not yet run to the end by us.
    """

    required: ClassVar[tuple[str, ...]] = ()

    dataset: str = setting('coco', 'coco, coco_wholebody, crowdpose, aic, or folder:PATH')
    epochs: float = 210
    batch_size: int = 512
    base_batch: int = 512
    bn_group_size: int | None = 64
    milestones: tuple[float, ...] = (170, 200)
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    eval_every: float = 10


@dataclasses.dataclass(frozen=True)
class OfficialPose(PoseRecipe):
    """As the authors of HRNet train on COCO: 210 epochs of batches of 128 people.

    Source: the official HRNet-Human-Pose-Estimation, experiments/coco/hrnet and
    lib/dataset/JointsDataset.py: Adam 1e-3 without weight decay, a tenth from epochs 170 and 200
    on; scale 1 +- 0.35, rotation 45 degrees, half bodies, no shift; half of the mean of squares.

        python train.py --recipe official_pose --init converted/w32 --data-dir coco \\
            --workdir runs/official_pose

    Expect (published, AP on val2017 with the boxes of a detector): w32 0.744, w48 0.751; at 384 x
    288 (--sigma 3) 0.758 and 0.763. The run itself evaluates with the annotated
    boxes, which gives some 0.02 more. Not yet run to the end by us.
    """

    required: ClassVar[tuple[str, ...]] = ()

    dataset: str = setting('coco', 'coco, coco_wholebody, crowdpose, aic, or folder:PATH')
    codec: Codec = 'official'
    loss_weight: float = 0.5
    epochs: float = 210
    batch_size: int = 128
    base_batch: int = 128
    learning_rate: float = 1e-3
    milestones: tuple[float, ...] = (170, 200)
    half_body_upper: float = 0.6915  # how often a normal number is below 0.5
    shift: float = 0.0
    scale: float = 0.35
    rotation: float = 45.0
    noise: Literal['truncated', 'clipped'] = 'clipped'
    eval_every: float = 10


@dataclasses.dataclass(frozen=True)
class OwnPose(PoseRecipe):
    """Keypoints of your own, in the form of COCO, from a converted checkpoint or from nothing.

        python train.py --recipe pose --init converted/w32 \\
            --dataset folder:cats --split train --eval-split val --workdir runs/cats

    `cats/train.json` and `cats/val.json` have boxes and keypoints, and `cats/images` the images
    (docs/pose.md). Names, skeleton, and which keypoints are left and right, are those of the file;
    any number of keypoints will do. --init takes a classifier or a pose network; without it --arch
    says which network, and more epochs are needed. The values are ours. Run by us on small sets
    only.
    """

    epochs: float = 100
    batch_size: int = 32
    base_batch: int = 32
    schedule: Schedule = 'cosine'
    warmup_epochs: float = 1
    rotation: float = 45.0
    eval_every: float = 5


RECIPES: dict[str, type[PoseRecipe]] = {
    'coco_pose': CocoPose,
    'official_pose': OfficialPose,
    'pose': OwnPose,
}
