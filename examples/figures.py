"""Figures with known joints over photographs: a folder of keypoints in the form of COCO.

    python examples/figures.py --out demo/figures

A figure faces the viewer and moves arms, legs and back at random; its 17 keypoints are those of
COCO. What is around it is a part of scikit-learn's photographs, china.jpg and flower.jpg (licences:
scikit-learn, datasets/images/README.txt). Pictures of `val` have parts of the photographs that no
picture of `train` has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scenes import photographs

from hrnet_jax.data.keypoint_sets import sets
from hrnet_jax.runtime import cli

HEIGHT, WIDTH = 160, 256
COCO = sets()['coco']
COUNTS = {'train': 400, 'val': 60}
FINE = 3  # pixels of a drawing beside one of the picture
LIMBS = (
    *(('shoulder', 'elbow'), ('elbow', 'wrist'), ('hip', 'knee'), ('knee', 'ankle')),
    ('shoulder', 'hip'),
)


def joints(random: np.random.Generator, height: float) -> dict[str, np.ndarray]:
    """Of a figure of about that height, with the middle of the hips at 0, 0."""

    def step(degrees: float, length: float) -> np.ndarray:
        """Downwards; positive angles turn to the right of the picture."""
        angle = np.deg2rad(degrees)
        return np.array([np.sin(angle), np.cos(angle)]) * length * height

    lean = random.uniform(-20, 20)
    up, across = step(lean + 180, 1.0), step(lean + 90, 1.0)
    neck, found = up * 0.3, {}
    nod = neck + step(lean + random.uniform(-15, 15) + 180, 0.13)
    found['nose'] = nod
    for side, name in ((1, 'left'), (-1, 'right')):
        found[f'{name}_eye'] = nod + side * across * 0.03 + up * 0.025
        found[f'{name}_ear'] = nod + side * across * 0.065 + up * 0.01
        arm = side * random.uniform(5, 140)
        thigh = side * random.uniform(-5, 50)
        shoulder, hip = neck + side * across * 0.12, side * across * 0.08
        elbow = shoulder + step(arm, 0.17)
        knee = hip + step(thigh, 0.22)
        found |= {f'{name}_shoulder': shoulder, f'{name}_elbow': elbow}
        found[f'{name}_wrist'] = elbow + step(arm + side * random.uniform(-40, 80), 0.16)
        found |= {f'{name}_hip': hip, f'{name}_knee': knee}
        found[f'{name}_ankle'] = knee + step(thigh - side * random.uniform(0, 50), 0.21)
    return found


def drawn(picture: np.ndarray, at: Mapping[str, np.ndarray], height: float, random) -> np.ndarray:
    """Draws a figure into the picture; returns which pixels it covers, bool (HEIGHT, WIDTH)."""
    canvas = Image.new('RGBA', (WIDTH * FINE, HEIGHT * FINE))
    draw = ImageDraw.Draw(canvas)
    clothes, trousers, skin = (tuple(map(int, random.integers(0, 256, 3))) for _ in range(3))

    def disc(place, radius, fill):
        corners = [tuple((place + sign * radius * height) * FINE) for sign in (-1, 1)]
        draw.ellipse([*corners[0], *corners[1]], fill=fill)

    def line(a, b, width, fill):
        draw.line([*(a * FINE), *(b * FINE)], fill=fill, width=round(width * height * FINE))
        for end in (a, b):
            disc(end, width / 2, fill)

    corners = [at[name] for name in ('left_shoulder', 'right_shoulder', 'right_hip', 'left_hip')]
    draw.polygon([tuple(corner * FINE) for corner in corners], fill=clothes)
    for side in ('left', 'right'):
        for a, b in LIMBS:
            fill = trousers if b in ('knee', 'ankle') else clothes if b == 'hip' else skin
            line(at[f'{side}_{a}'], at[f'{side}_{b}'], 0.06, fill)
    disc(at['nose'], 0.085, skin)
    for side in ('left', 'right'):
        disc(at[f'{side}_ear'], 0.02, clothes)
        disc(at[f'{side}_eye'], 0.014, (255, 255, 255))
        disc(at[f'{side}_eye'], 0.008, (0, 0, 0))
    disc(at['nose'], 0.013, trousers)
    layer = np.asarray(canvas.reduce(FINE), np.float64)
    opaque = layer[..., 3:] / 255
    picture[:] = np.round(picture * (1 - opaque) + layer[..., :3] * opaque)
    return opaque[..., 0] > 0.5


def scene(photo: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """A picture, uint8 (HEIGHT, WIDTH, 3), and its people as COCO describes them."""
    top, left = (
        random.integers(0, n - size + 1)
        for n, size in zip(photo.shape[:2], (HEIGHT, WIDTH), strict=True)
    )
    picture, people = photo[top : top + HEIGHT, left : left + WIDTH].copy(), []
    for middle in (WIDTH / 4, 3 * WIDTH / 4):
        height = random.uniform(90, 140)
        move = np.array([middle + random.uniform(-15, 15), HEIGHT * random.uniform(0.5, 0.55)])
        at = {name: place + move for name, place in joints(random, height).items()}
        rows, columns = np.nonzero(covered := drawn(picture, at, height, random))
        corner = np.array([columns.min(), rows.min()])
        size = np.array([columns.max(), rows.max()]) + 1 - corner
        places = np.array([at[name] for name in COCO.names])
        inside = ((places >= 0) & (places < (WIDTH, HEIGHT))).all(1)
        marked = np.column_stack([np.round(places, 2), 2 * inside]) * inside[:, None]
        people.append(
            {
                'bbox': [*corner.tolist(), *size.tolist()],
                'area': int(covered.sum()),
                'iscrowd': 0,
                'keypoints': marked.ravel().tolist(),
                'num_keypoints': int(inside.sum()),
            }
        )
    return picture, people


def make(folder: Path, counts: Mapping[str, int] = COUNTS) -> None:
    """Writes images/SPLIT and SPLIT.json; so many pictures a split, of two figures each."""
    random, photos = np.random.default_rng(0), photographs()
    middle = photos[0].shape[1] // 2
    parts = {'train': slice(None, middle), 'val': slice(middle, None)}
    skeleton = [[a + 1, b + 1] for a, b in COCO.skeleton]
    category = {'id': 1, 'name': 'person', 'keypoints': COCO.names, 'skeleton': skeleton}
    for split, count in counts.items():
        (folder / 'images' / split).mkdir(parents=True, exist_ok=True)
        images: list[dict] = []
        annotations: list[dict] = []
        for number in range(count):
            photo = photos[number % len(photos)][:, parts[split]]
            picture, people = scene(photo, random)
            name = f'{number:03}.png'
            Image.fromarray(picture).save(folder / 'images' / split / name)
            size = {'width': WIDTH, 'height': HEIGHT}
            images.append({'id': number, 'file_name': name, **size})
            for person in people:
                own = {'id': len(annotations) + 1, 'image_id': number, 'category_id': 1}
                annotations.append(own | person)
        content = {'images': images, 'annotations': annotations, 'categories': [category]}
        (folder / f'{split}.json').write_text(json.dumps(content))


def main() -> None:
    parser = cli.Parser(description='Make pictures of figures, with keypoints as COCO has them.')
    parser.add_argument('--out', required=True, help='the folder to make')
    make(Path(parser.parse_args().out))


if __name__ == '__main__':
    cli.run(main)
