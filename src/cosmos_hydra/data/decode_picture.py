"""Turn decoded frames into RGB, upright as they are to be shown.

Every pixel format that FFmpeg knows is converted, to 8 bits, with the matrix and range that the
frame states (BT.601 and limited where it says nothing, as FFmpeg does). Alpha is dropped,
interlaced pictures stay woven, and HDR is not tone-mapped. Pixels that are not square stay as
they are: `pixel_aspect` tells whoever resizes.
"""

from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, VideoReformatter

from cosmos_hydra.data.decode_open import Unreadable


class Converter:
    """Make pictures of frames that look like the first one of their file."""

    def __init__(self, first: Any, sample_aspect: Any) -> None:
        self._stored = first.width, first.height
        self._signs = _signs_of_display_matrix(first)
        self._swaps_axes = self._signs[0] == 0
        self._to_rgb = VideoReformatter()
        width, height = self._stored
        self.height_width = (width, height) if self._swaps_axes else (height, width)
        aspect = float(sample_aspect or 1)
        self.pixel_aspect = 1 / aspect if self._swaps_axes else aspect

    def picture(self, frame: Any) -> np.ndarray:
        """Return a view of a new picture, uint8 [H, W, 3].

        Raises: Unreadable if its size is not that of the first.
        """
        width, height = frame.width, frame.height
        if (width, height) != self._stored:
            before = "{}x{}".format(*self._stored)
            raise Unreadable(f"picture size changes from {before} to {width}x{height}")
        rgb = self._to_rgb.reformat(
            frame, format="rgb24", dst_color_range=ColorRange.JPEG, threads=1
        )
        plane: Any = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        picture_HWC = rows[:, : 3 * width].reshape(height, width, 3)
        a, b, c, d = self._signs
        if self._swaps_axes:
            picture_HWC = picture_HWC.transpose(1, 0, 2)
        return picture_HWC[:: -1 if b + d < 0 else 1, :: -1 if a + c < 0 else 1]


def _signs_of_display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return the signs of a, b, c, d, as of the nearest turn by quarters, mirrored or not.

    Source: FFmpeg libavutil/display.h; shown (x', y') = (a x + c y, b x + d y).
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (int(value) for value in np.frombuffer(data, np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return 0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0
    return -1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1
