"""The one decoder: encoded bytes of a checked image -> upright uint8 RGB.

What comes out, whatever went in (`tests/unit/vision/test_policy.py` is this table as a test):

================================  =================================================================
orientation                       EXIF of JPEG, PNG (`eXIf`) and WebP and TIFF's tag are applied;
                                  XMP and text chunks (ImageMagick's) are not
gray, palette, 1 bit              three channels
alpha                             dropped: the stored colours, also under full transparency
16 bits a sample                  the high byte (`v >> 8`)
CMYK, YCCK (JPEG)                 converted, as Adobe stores it (inverted), without ICC profiles
ICC profiles, gamma               not applied
animation (GIF, WebP)             first frame; of several pages or pictures (TIFF, MPO) the first
animation (APNG)                  the picture for decoders that know no animations
file name, content-type           not looked at
cut off                           refused, also by its last byte; bytes behind the end do not matter
12 bits, lossless JPEG, float     refused by `check` as image.type
================================  =================================================================

OpenCV has a limit of its own, `OPENCV_IO_MAX_IMAGE_PIXELS` (2^30), read from the environment when
it is imported: whoever spawns the engine sets it.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.errors import RecordFault
from worker.protocol.messages import Buffer
from worker.types import Reason
from worker.vision.containers import Header, still_png

_OUT_OF_MEMORY = -4
"""`StsNoMem` of OpenCV: the machine's fault, not the picture's."""

_PNG_GRAY_8 = b"\x08\x00"
_PNG_DEPTH_AND_COLOUR = slice(24, 26)

ImageHwc = NDArray[np.uint8]
"""Height x width x 3, RGB, upright; where gray is kept also height x width."""


def prepare_process() -> None:
    """Make OpenCV a good citizen of an engine: no threads of its own, no words on stderr."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: Buffer, header: Header, *, keep_gray: bool = False) -> ImageHwc:
    """Decode an image that `check` let through; `header` is its answer.

    With `keep_gray` a PNG of 8-bit gray comes as one channel, the same as each of the three.

    Raises RecordFault and nothing else, whatever the bytes are: image.corrupt, or
    image.too-many-pixels where OpenCV's own limit is below that of `check`.
    """
    if header.animated:
        data = still_png(data)
    as_gray = keep_gray and header.format == "PNG" and data[_PNG_DEPTH_AND_COLOUR] == _PNG_GRAY_8
    flag = cv2.IMREAD_GRAYSCALE if as_gray else cv2.IMREAD_COLOR_RGB
    try:
        image_hwc = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        if error.code == _OUT_OF_MEMORY:
            raise MemoryError(f"{header.format}: OpenCV: {error.err}") from error
        limited = "CV_IO_MAX_IMAGE" in error.err
        reason = Reason.IMAGE_TOO_MANY_PIXELS if limited else Reason.IMAGE_CORRUPT
        raise RecordFault(reason, f"{header.format}: OpenCV: {error.err}") from error
    if image_hwc is None:
        raise RecordFault(Reason.IMAGE_CORRUPT, f"{header.format}: the decoder refuses its data")
    height_px, width_px = image_hwc.shape[:2]
    stored = (header.width_px, header.height_px)
    if stored not in ((width_px, height_px), (height_px, width_px)):
        raise RecordFault(
            Reason.IMAGE_CORRUPT,
            f"{header.format}: its header says {header.width_px} x {header.height_px} pixels, "
            f"its data {width_px} x {height_px}",
        )
    return image_hwc.astype(np.uint8, copy=False)
