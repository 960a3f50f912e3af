"""Every third-party picture and what becomes of it; and what real models say of real pictures."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
import pytest
from numpy.typing import NDArray

from worker.errors import RecordFault
from worker.models.manifest import (
    Cast,
    CenterCrop,
    ChannelSwap,
    ClassificationHead,
    Color,
    Normalize,
    Resize,
    Step,
)
from worker.types import Reason
from worker.vision.decode import decode, prepare_process
from worker.vision.heads.classification import compile_head
from worker.vision.sniff import check
from worker.vision.transforms import compile_steps

pytestmark = pytest.mark.assets

MAX_BYTES = 33_554_432
MAX_PIXELS = 50_000_000

TYPE, CORRUPT, PIXELS = Reason.IMAGE_TYPE, Reason.IMAGE_CORRUPT, Reason.IMAGE_TOO_MANY_PIXELS

OUTCOMES: dict[str, tuple[int, int] | Reason] = {
    "corrupt/decompression_bomb.gif": CORRUPT,
    "corrupt/lfs_pointer_named.jpg": TYPE,
    "corrupt/libpng_bad_iCCP.png": CORRUPT,
    "corrupt/libpng_badadler.png": CORRUPT,
    "corrupt/libpng_badcrc.png": CORRUPT,
    "corrupt/libpng_empty_ancillary_chunks.png": CORRUPT,
    "corrupt/libpng_huge_IDAT.png": CORRUPT,
    "corrupt/libpng_huge_iCCP_chunk.png": CORRUPT,
    "corrupt/libpng_huge_zTXt_chunk.png": CORRUPT,
    "corrupt/png_decompression_dos.png": (1, 1),
    "corrupt/truncated_end_chunk.png": CORRUPT,
    "corrupt/truncated_image.png": CORRUPT,
    "corrupt/truncated_jpeg.jpg": CORRUPT,
    "corrupt/unknown_compression_method.png": (57, 57),
    "exif_orientation/cat_webp_3.webp": (640, 398),
    "exif_orientation/cat_webp_8.webp": (398, 640),
    "exif_orientation/hopper_2.jpg": (128, 128),
    "exif_orientation/hopper_3.jpg": (128, 128),
    "exif_orientation/hopper_6.jpg": (128, 128),
    "exif_orientation/hopper_7.jpg": (128, 128),
    "exif_orientation/hopper_8.jpg": (128, 128),
    "faces/1.jpg": (720, 478),
    "faces/kid8.jpg": (640, 512),
    "faces/obama.jpg": (1314, 1752),
    "formats/exif_imagemagick_orientation.png": (512, 512),
    "formats/flower.jpg": (480, 360),
    "formats/flower2.jpg": (300, 225),
    "formats/hopper.jpg": (128, 128),
    "formats/hopper.webp": (128, 128),
    "formats/hopper_16bit_qtables.jpg": (128, 128),
    "formats/hopper_gray.jpg": (128, 128),
    "formats/icc_profile_big.jpg": (425, 250),
    "formats/iss634.webp": (245, 245),
    "formats/jpeg_ff00_header.jpg": (300, 225),
    "formats/junk_jpeg_header.jpg": (1024, 768),
    "formats/ljt_testimgari.jpg": (227, 149),
    "formats/ljt_testorig.jpg": (227, 149),
    "formats/orientation_rectangle.jpg": (1, 2),
    "formats/pil123p.png": (162, 150),
    "formats/pil123rgba.png": (162, 150),
    "formats/pil_sample_rgb.jpg": (100, 100),
    "formats/sugarshack.mpo": (640, 480),
    "formats/transparent.png": (200, 150),
    "formats/uncompressed_la.png": (128, 128),
    "photos/EgyptianCat.png": (512, 512),
    "photos/australia.jpg": (1300, 876),
    "photos/bald_eagle.jpeg": (800, 600),
    "photos/camel_lossless_alpha.webp": (640, 426),
    "photos/cat.jpg": (1000, 1000),
    "photos/cat_lossy.webp": (640, 299),
    "photos/daisy.jpg": (320, 232),
    "photos/dog.jpg": (1080, 1080),
    "photos/fish_224.png": (224, 224),
    "photos/horse-cart.jpg": (1024, 768),
    "photos/horse.png": (1600, 852),
    "photos/hummingbird.jpg": (450, 450),
    "photos/kimono.jpg": (1828, 1264),
    "photos/kitten_224_rgba.png": (224, 224),
    "photos/large_2432x3648.jpg": (2432, 3648),
    "photos/pelican.jpeg": (500, 375),
    "photos/pineapple_png_named.jpg": (744, 850),
    "photos/rose.jpg": (320, 241),
    "photos/satya.jpg": (458, 424),
    "photos/test_colors_2560x1600.jpg": (2560, 1600),
    "photos/test_object_detection_0.jpg": (768, 512),
    "photos/test_object_detection_1.jpg": (600, 400),
    "photos/tulip.jpg": (500, 333),
    "pngsuite/basn0g01.png": (32, 32),
    "pngsuite/basn0g08.png": (32, 32),
    "pngsuite/basn0g16.png": (32, 32),
    "pngsuite/basn2c08.png": (32, 32),
    "pngsuite/basn2c16.png": (32, 32),
    "pngsuite/basn4a08.png": (32, 32),
    "pngsuite/basn4a16.png": (32, 32),
    "pngsuite/basn6a16.png": (32, 32),
    "pngsuite/ftbwn0g16.png": (32, 32),
    "pngsuite/ibasn2c16.png": (32, 32),
    "synthetic/bitflips.jpg": (450, 450),
    "synthetic/bomb_16000x16000_rgb8.png": PIXELS,
    "synthetic/bomb_60000x60000_gray1.png": PIXELS,
    "synthetic/dog_16bit_gray.png": (400, 400),
    "synthetic/dog_16bit_rgb.png": (400, 400),
    "synthetic/dog_444_q100.jpg": (640, 640),
    "synthetic/dog_eXIf6.png": (300, 300),
    "synthetic/dog_gray.jpg": (1080, 1080),
    "synthetic/dog_palette.png": (300, 300),
    "synthetic/dog_progressive_exif8.jpg": (1080, 1080),
    "synthetic/html_error_page.jpg": TYPE,
    "synthetic/ihdr_only_65535x65535.png": PIXELS,
    "synthetic/pixel_1x1.jpg": (1, 1),
    "synthetic/sof_65500x65500_no_scan.jpg": PIXELS,
    "synthetic/soi_eoi_only.jpg": CORRUPT,
    "synthetic/strip_1x8000.jpg": (1, 8000),
    "synthetic/strip_20000x2.png": (20000, 2),
    "synthetic/trailing_garbage.jpg": (450, 450),
    "synthetic/truncated_half.jpg": CORRUPT,
    "synthetic/truncated_header.jpg": CORRUPT,
}
"""File -> width and height of the upright picture, or why it is refused."""
DARKER_THAN_PILLOW = {
    "pngsuite/basn0g16.png",
    "pngsuite/ftbwn0g16.png",
    "synthetic/dog_16bit_gray.png",
}
"""16 bits of gray: Pillow clips them to white, we take the high byte."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    prepare_process()


def opened(file: Path, *, keep_gray: bool = False) -> NDArray[np.uint8]:
    data = memoryview(file.read_bytes())
    header = check(data, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    return decode(data, header, keep_gray=keep_gray)


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.glob("*/*") if file.suffix != ".json"}


def test_every_picture_stands_in_the_table(assets: Path) -> None:
    assert files(assets / "images") == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_picture_has_its_outcome(assets: Path, name: str) -> None:
    expected = OUTCOMES[name]
    if isinstance(expected, Reason):
        with pytest.raises(RecordFault) as caught:
            opened(assets / "images" / name)
        assert caught.value.reason is expected
        assert str(caught.value)
        return
    image = opened(assets / "images" / name)
    assert (image.shape[1], image.shape[0]) == expected
    same = opened(assets / "images" / name, keep_gray=True)
    np.testing.assert_array_equal(image, same if same.ndim == 3 else np.dstack([same] * 3))
    facts = json.loads((assets / "images" / "facts.json").read_text())[name]["pil"]
    if "mean_rgb" in facts and name not in DARKER_THAN_PILLOW:
        np.testing.assert_allclose(image.mean(axis=(0, 1)), facts["mean_rgb"], atol=1.0)


def test_all_pictures_together_stay_within_the_memory_of_the_largest(assets: Path) -> None:
    """In a process of its own; VmHWM, as ru_maxrss is inherited from the parent."""
    script = f"""
        import sys
        from pathlib import Path
        from worker.errors import RecordFault
        from worker.vision.decode import decode, prepare_process
        from worker.vision.sniff import check

        def peak_kb():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0])

        prepare_process()
        before_kb, reserved = peak_kb(), 0
        for file in Path(sys.argv[1]).glob("*/*"):
            data = file.read_bytes()
            try:
                header = check(data, max_bytes={MAX_BYTES}, max_pixels={MAX_PIXELS})
                reserved = max(reserved, header.decode_bytes)
                decode(data, header)
            except RecordFault:
                pass
        print(peak_kb() - before_kb, reserved // 1024)
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc: the peak of a process's memory is read there")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(assets / "images")],
        check=True,
        capture_output=True,
        text=True,
    )
    grown_kb, reserved_kb = map(int, done.stdout.split())
    assert grown_kb < reserved_kb


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def said(
    model: onnxruntime.InferenceSession,
    rows: NDArray[np.float32],
    head: ClassificationHead,
    labels: list[str],
) -> list[dict[str, Any]]:
    [output] = model.run([head.output], {model.get_inputs()[0].name: rows})
    [row] = compile_head(head, labels)(output)
    assert isinstance(row, bytes)
    answer: list[dict[str, Any]] = orjson.loads(row)
    return answer


@pytest.mark.parametrize("antialias", [True, False])
def test_squeezenet_says_what_pillow_or_opencv_by_hand_make_it_say(
    assets: Path, *, antialias: bool
) -> None:
    folder = assets / "models" / "squeezenet_fp32_dynbatch_derived"
    steps: list[Step] = [
        CenterCrop(square=True),
        Resize(size=(224, 224), interpolation="linear", antialias=antialias),
        Color(to="bgr"),
        Normalize(),
        ChannelSwap(),
        Cast(to="float32"),
    ]
    labels = [str(index) for index in range(1000)]
    head = ClassificationHead(output="softmaxout_1", activation="none", labels="-", top_k=1000)
    transform = compile_steps(steps, row_shape=(3, 224, 224), row_dtype=np.dtype(np.float32))
    model = session(folder / "model.onnx")
    expected = json.loads((folder / "expected.json").read_text())["images"]
    assert len(expected) >= 20
    for name, reference in expected.items():
        rows = np.empty((1, 3, 224, 224), np.float32)
        transform(opened(assets / name), rows[0])
        scores = {entry["index"]: entry["score"] for entry in said(model, rows, head, labels)}
        wanted = reference["top5"] if antialias else [reference["top1_cv2_linear_no_antialias"]]
        assert max(scores, key=scores.__getitem__) == wanted[0]["index"], name
        for entry in wanted:
            assert scores[entry["index"]] == pytest.approx(entry["score"], abs=1e-4), name


def test_mnist_reads_its_digits(assets: Path) -> None:
    folder = assets / "models" / "mnist8"
    expected = json.loads((folder / "expected.json").read_text())["images"]
    assert len(expected) == 5
    model = session(folder / "model.onnx")
    head = ClassificationHead(
        output="Plus214_Output_0", activation="none", labels="-", top_k=10, threshold=-1e9
    )
    for name, reference in expected.items():
        scale = 1.0 if reference["scale"] == "0..255" else 1 / 255
        steps: list[Step] = [
            Resize(size=(28, 28)),
            Color(to="gray"),
            Normalize(scale=scale),
            ChannelSwap(),
        ]
        rows = np.empty((1, 1, 28, 28), np.float32)
        transform = compile_steps(steps, row_shape=(1, 28, 28), row_dtype=np.dtype(np.float32))
        transform(opened(assets / "models" / name), rows[0])
        answer = said(model, rows, head, [str(digit) for digit in range(10)])
        assert answer[0]["index"] == reference["digit"]
        logits = [entry["score"] for entry in sorted(answer, key=lambda entry: entry["index"])]
        np.testing.assert_allclose(logits, reference["logits"], rtol=1e-4, atol=0.01)
