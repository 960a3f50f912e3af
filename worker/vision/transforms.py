"""A manifest's preprocessing steps, checked one after the other and compiled into one function.

The function takes the upright uint8 RGB image and writes straight into its row of the batch tensor.
It keeps no state: lanes share it. It must not know manifests' text, batches or sessions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.errors import ModelError, RecordFault
from worker.models.manifest import (
    CenterCrop,
    Cast,
    ChannelSwap,
    Color,
    ColorSpace,
    Normalize,
    Resize,
    Step,
)
from worker.types import Reason
from worker.vision.resample import CUBIC, LINEAR, resize_antialiased
