"""Image files as PIL sees them: of formats that are pictures, and not too large."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

# Pixels above which a file is refused, which PIL does, too: few bytes may claim terabytes.
LARGEST = 178_956_970
# PIL would start Ghostscript for EPS, and reads others that no data set has.
_FORMATS = (
    'JPEG', 'MPO', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF', 'TGA',
    'ICO',
)  # fmt: skip


def opened(file: Any) -> Image.Image:
    """PIL's image of a path or a binary file, not decoded yet; raises whatever PIL raises."""
    from PIL import Image

    return Image.open(file, formats=_known())


@functools.cache
def _known() -> tuple[str, ...]:
    """Those that this release of PIL has, or a plug-in that was imported before."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
