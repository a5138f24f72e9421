"""The losses of FCOS and Faster R-CNN in plain PyTorch, box by box, as mmdetection has them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

REACH = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, np.inf))


def overlaps(a, b):
    """IoU (A, B)."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-300)


def parts_inside(boxes, crowds):
    """(A,): the largest part of each box that lies in a crowd."""
    if not len(crowds):
        return torch.zeros(len(boxes))
    size = torch.minimum(boxes[:, None, 2:], crowds[:, 2:]) - torch.maximum(
        boxes[:, None, :2], crowds[:, :2]
    )
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return (size.clamp(min=0).prod(-1) / area[:, None]).max(1).values


def fcos(classes, distances, centerness, strides, truth):
    """Levels of NCHW; truth: for each image its boxes, their labels, its crowds, and
    where the boxes are in the batch."""
    focal, far, off, number, central = 0.0, 0.0, 0.0, 0, 0.0
    for n, (boxes, labels, crowds, _) in enumerate(truth):
        for level, stride in enumerate(strides):
            for y in range(classes[level].shape[2]):
                for x in range(classes[level].shape[3]):
                    px, py = (x + 0.5) * stride, (y + 0.5) * stride
                    best = None
                    for box, label in zip(boxes.tolist(), labels, strict=True):
                        edges = (px - box[0], py - box[1], box[2] - px, box[3] - py)
                        area = (box[2] - box[0]) * (box[3] - box[1])
                        low, high = REACH[level]
                        inside = min(edges) > 0 and low <= max(edges) <= high
                        if inside and (best is None or area < best[0]):
                            best = area, edges, label
                    here = (n, slice(None), y, x)
                    logits = classes[level][here]
                    crowded = any(c[0] < px < c[2] and c[1] < py < c[3] for c in crowds.tolist())
                    if best is None and crowded:
                        continue
                    wanted = torch.zeros_like(logits)
                    if best:
                        wanted[best[2]] = 1
                    p = torch.sigmoid(logits)
                    right = torch.where(wanted > 0, p, 1 - p)
                    alpha = torch.where(wanted > 0, 0.25, 0.75)
                    focal = focal - (alpha * (1 - right) ** 2 * torch.log(right)).sum()
                    if not best:
                        continue
                    left, top, to_right, down = best[1]
                    ratio = min(left, to_right) / max(left, to_right)
                    ratio *= min(top, down) / max(top, down)
                    target = ratio**0.5
                    place = torch.tensor([px, py, px, py], dtype=logits.dtype)
                    signs = torch.tensor([-1.0, -1, 1, 1], dtype=logits.dtype)
                    found = place + signs * distances[level][here]
                    true = place + signs * torch.tensor(best[1], dtype=logits.dtype)
                    iou = overlaps(found[None], true[None])[0, 0].clamp(min=1e-6)
                    far = far - torch.log(iou) * target
                    off = off + F.binary_cross_entropy_with_logits(
                        centerness[level][here][0], torch.tensor(target, dtype=logits.dtype)
                    )
                    number, central = number + 1, central + target
    return focal / max(number, 1) + far / max(central, 1e-6) + off / max(number, 1), number


def anchors_of(shapes, strides):
    found = []
    for (h, w), s in zip(shapes, strides, strict=True):
        for y in range(h):
            for x in range(w):
                for r in (0.5, 1, 2):
                    half = 4 * s / r**0.5, 4 * s * r**0.5
                    found.append(
                        (x * s - half[0], y * s - half[1], x * s + half[0], y * s + half[1])
                    )
    return torch.tensor(np.array(found, np.float32)).double()


def assigned(boxes, truth, from_on, below, least):
    """Number of the object of each box, -1 of none, -2 of what does not count."""
    objects, _, crowds, _ = truth
    number = torch.full((len(boxes),), -2)
    if len(objects):
        overlap = overlaps(boxes, objects)
        most, row = overlap.max(1)
        number[most < below] = -1
        number[most >= from_on] = row[most >= from_on]
        for i in range(len(objects) if least is not None else 0):
            if overlap[:, i].max() >= least:
                number[overlap[:, i] >= (1 - 1e-15) * overlap[:, i].max()] = i
    else:
        number[:] = -1
    number[(parts_inside(boxes, crowds) > 0.5) & (number == -1)] = -2
    return number


def drawn(number, noise, count, share):
    """The boxes with the least noise: objects, then others."""
    objects = torch.nonzero(number >= 0)[:, 0]
    objects = objects[noise[objects].argsort()[: int(count * share)]]
    others = torch.nonzero(number == -1)[:, 0]
    return objects, others[noise[others].argsort()[: count - len(objects)]]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def deltas_of(boxes, targets, stds=(1, 1, 1, 1)):
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    moved = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / size
    return torch.cat([moved, torch.log(wanted / size)], 1) / tensor(stds)


def moved(boxes, deltas):
    size, middle = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    limit = np.log(1000 / 16)
    middle, size = middle + deltas[:, :2] * size, size * deltas[:, 2:].clamp(-limit, limit).exp()
    return torch.cat([middle - size / 2, middle + size / 2], 1)


def suppressed(boxes, scores, threshold):
    """Numbers of the boxes that stay, best first."""
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not kept or overlaps(boxes[i : i + 1], boxes[kept]).max() <= threshold:
            kept.append(i)
    return kept


def flat(levels, last):
    """Levels of NCHW -> a list of (N, P, last)."""
    return [x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, last)) for x in levels]


def first_stage(objectness, deltas, strides, truth, sizes, noise):
    """Truth as of `fcos`; sizes: (height, width) of the images."""
    shapes = [x.shape[2:] for x in objectness]
    anchors = anchors_of(shapes, strides)
    logits, deltas = (torch.cat(flat(x, k), 1) for x, k in ((objectness, 1), (deltas, 4)))
    total, number = 0.0, 0
    for n, (marked, size) in enumerate(zip(truth, sizes, strict=True)):
        there = []
        for (h, w), s in zip(shapes, strides, strict=True):
            limits = [-(-(-(-edge // 32) * 32) // s) for edge in size]
            there += [y < limits[0] and x < limits[1] for y in range(h) for x in range(w)
                      for _ in range(3)]  # fmt: skip
        inside = torch.tensor(there)
        owner = torch.full((len(anchors),), -2)
        owner[inside] = assigned(anchors[inside], marked, 0.7, 0.3, 0.3)
        objects, others = drawn(owner, noise[n], 256, 0.5)
        for chosen, wanted in ((objects, 1.0), (others, 0.0)):
            x = logits[n, chosen, 0]
            target = torch.full_like(x, wanted)
            total = total + F.binary_cross_entropy_with_logits(x, target, reduction='sum')
        if len(objects):
            wanted = deltas_of(anchors[objects], marked[0][owner[objects]])
            total = total + (deltas[n, objects] - wanted).abs().sum()
        number += max(len(objects), 1) + max(len(others), 1)
    return total / number


def proposals(objectness, deltas, strides, size, n):
    shapes, found, scores = [x.shape[2:] for x in objectness], [], []
    each = zip(shapes, strides, flat(objectness, 1), flat(deltas, 4), strict=True)
    for shape, stride, logits, moves in each:
        anchors = anchors_of([shape], [stride])
        best = logits[n, :, 0].sigmoid().argsort(descending=True, stable=True)[:2000]
        boxes = moved(anchors[best], moves[n, best])
        boxes = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], 1)
        values = logits[n, best, 0].sigmoid()
        real = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        boxes, values = boxes[real], values[real]
        kept = suppressed(boxes, values, 0.7)
        found.append(boxes[kept])
        scores.append(values[kept])
    order = torch.cat(scores).argsort(descending=True, stable=True)[:1000]
    return torch.cat(found)[order]


def region(pyramid, box):
    """(C, 7, 7) of the maps (C, H, W) at strides 4 to 32."""
    width, height = (box[2:] - box[:2]).tolist()
    level = min(max(int(np.floor(np.log2((width * height) ** 0.5 / 56 + 1e-6))), 0), 3)
    x, stride = pyramid[level], 4 * 2**level
    columns, rows = (
        weights(float(box[i]) / stride, float(box[i + 2]) / stride, x.shape[2 - i]) for i in (0, 1)
    )
    return torch.einsum('iy,cyx,jx->cij', rows, x, columns)


def weights(low, high, size):
    """(7, size): how much each pixel counts in each of 7 bins."""
    width, found = (high - low) / 7, np.zeros((7, size))
    count = max(int(np.ceil(width)), 1)
    for i in range(7):
        for j in range(count):
            at = low - 0.5 + i * width + (j + 0.5) * width / count
            if not -1 <= at <= size:
                continue
            at = min(max(at, 0), size - 1)
            first = int(at)
            found[i, first] += (1 - (at - first)) / count
            found[i, min(first + 1, size - 1)] += (at - first) / count
    return torch.from_numpy(found)


def second_stage(classify, pyramid, proposed, truth, noise, room):
    """
    Args:
        classify: (R, C, 7, 7) -> logits and deltas.
        pyramid: levels of NCHW.
        proposed: boxes of each image; noise: of the rows for marked boxes, `room` of them, and of
            the proposals.
    """
    total, number = 0.0, 0
    for n, (boxes, marked) in enumerate(zip(proposed, truth, strict=True)):
        objects, labels, _, rows = marked
        own = noise[n, torch.tensor([*rows, *range(room, room + len(boxes))])]
        boxes = torch.cat([objects, boxes])
        owner = assigned(boxes, marked, 0.5, 0.5, None)
        chosen = torch.cat(drawn(owner, own, 512, 0.25))
        maps = [x[n] for x in pyramid]
        logits, deltas = classify(torch.stack([region(maps, box) for box in boxes[chosen]]))
        for i, k in enumerate(chosen.tolist()):
            label = labels[owner[k]] if owner[k] >= 0 else logits.shape[1] - 1
            total = total - torch.log_softmax(logits[i], 0)[label]
            if owner[k] >= 0:
                target = objects[owner[k]][None]
                wanted = deltas_of(boxes[k : k + 1], target, (0.1, 0.1, 0.2, 0.2))[0]
                total = total + (deltas[i, label] - wanted).abs().sum()
        number += len(chosen)
    return total / number
