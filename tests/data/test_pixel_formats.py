"""Colours come out as they were put in, from every pixel format, matrix and range.

The pictures are put together plane by plane from the equations of the standards, so that no
converter checks itself.
"""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from raw_videos import number_of, numbered_frames, write_video

from cosmos_hydra.config import Fit
from cosmos_hydra.data.video import decode, fit_frames, probe

# one band of the picture each
COLOURS = ((200, 40, 60), (30, 160, 70), (50, 60, 210), (128, 128, 128), (250, 250, 250))
BAND, WIDTH = 32, 96
FLAT = np.array(COLOURS, np.float64).repeat(BAND, axis=0)[:, None].repeat(WIDTH, axis=1)
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
# what FFmpeg calls them: AVCOL_SPC_BT709, SMPTE170M, BT2020_NCL; AVCOL_RANGE_MPEG, JPEG
MATRIX_TAG = {"bt709": 1, "bt601": 6, "bt2020": 9}
RANGE_TAG = {"limited": 1, "full": 2}
X265 = {"x265-params": "log-level=none:qp=8"}
SVT = {"svtav1-params": "enable-overlays=0", "crf": "8", "preset": "10"}
VP9 = {"crf": "4", "b": "0", "deadline": "realtime", "cpu-used": "8"}


def yuv_planes(rgb: np.ndarray, bits: int, matrix: str, is_full: bool) -> list[np.ndarray]:
    """Return Y, Cb, Cr of 4:4:4 in code values (ITU-T H.273, equations 25 to 39)."""
    red, green, blue = np.moveaxis(rgb / 255, -1, 0)
    k_red, k_blue = LUMA[matrix]
    luma = k_red * red + (1 - k_red - k_blue) * green + k_blue * blue
    chroma = [(blue - luma) / (2 - 2 * k_blue), (red - luma) / (2 - 2 * k_red)]
    step = 1 << (bits - 8)
    if is_full:
        top = (1 << bits) - 1
        return [np.round(top * luma), *(np.round(top * part + 128 * step) for part in chroma)]
    return [
        np.round((219 * luma + 16) * step),
        *(np.round((224 * part + 128) * step) for part in chroma),
    ]


def raw_frame(pix_fmt: str, rgb: np.ndarray, matrix: str, is_full: bool) -> av.VideoFrame:
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], pix_fmt)
    bits = frame.format.components[0].bits
    if "yuv" in pix_fmt:
        planes = yuv_planes(rgb, bits, matrix, is_full)
    elif pix_fmt.startswith("gray"):
        planes = yuv_planes(rgb, bits, matrix, is_full)[:1]
    elif pix_fmt.startswith("gbr"):
        planes = [rgb[..., channel] * ((1 << bits) - 1) / 255 for channel in (1, 2, 0)]
    else:
        planes = [rgb.reshape(rgb.shape[0], -1)]
    if len(frame.planes) > len(planes):  # alpha, half transparent
        planes.append(np.full(rgb.shape[:2], 1 << (bits - 1)))
    for plane, values in zip(frame.planes, planes, strict=True):
        bytes_per_value = 1 if bits == 8 else 2
        packed = pix_fmt == "rgb24"
        down, across = rgb.shape[0] // plane.height, 1 if packed else rgb.shape[1] // plane.width
        small = values[:: max(down, 1), :: max(across, 1)][: plane.height]
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        content = np.ascontiguousarray(small.astype(f"<u{bytes_per_value}")).view(np.uint8)
        rows[:, : content.shape[1]] = content
        plane.update(rows.tobytes())
    return frame


def write_raw(
    path: Path,
    codec: str,
    pix_fmt: str,
    options: dict[str, str],
    matrix: str = "bt601",
    colour_range: str = "limited",
    is_tagged: bool = True,
    rgb: np.ndarray = FLAT,
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, _ = rgb.shape
        stream.pix_fmt, stream.options = pix_fmt, options
        if is_tagged:
            stream.codec_context.colorspace = MATRIX_TAG[matrix]
            stream.codec_context.color_range = RANGE_TAG[colour_range]
        for index in range(3):
            frame = raw_frame(pix_fmt, rgb, matrix, colour_range == "full")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            if is_tagged:
                frame.colorspace = MATRIX_TAG[matrix]
                frame.color_range = RANGE_TAG[colour_range]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def worst_colour(path: Path, is_grey: bool = False) -> float:
    """Return the largest error of any colour, in the middle of its band."""
    picture = decode(path, [1]).numpy().astype(float)[0]
    wanted = np.array(COLOURS, float)
    if is_grey:
        wanted = (wanted @ [0.299, 0.587, 0.114])[:, None].repeat(3, axis=1)
    found = picture.reshape(len(COLOURS), BAND, WIDTH, 3)[:, 8:-8, 16:-16].mean((1, 2))
    return float(np.abs(found - wanted).max())


FORMATS = {
    "h264": ("mp4", "libx264", "yuv420p", {"qp": "8"}),
    "h264_422": ("mp4", "libx264", "yuv422p", {"qp": "8"}),
    "h264_444": ("mp4", "libx264", "yuv444p", {"qp": "8"}),
    "h264_10_bit": ("mkv", "libx264", "yuv420p10le", {"qp": "8"}),
    "h264_grey": ("mkv", "libx264", "gray", {"qp": "8"}),
    "h264_rgb": ("mkv", "libx264rgb", "rgb24", {"qp": "8"}),
    "hevc_10_bit": ("mp4", "libx265", "yuv420p10le", X265),
    "hevc_12_bit_444": ("mp4", "libx265", "yuv444p12le", X265),
    "hevc_gbr": ("mp4", "libx265", "gbrp", X265),
    "av1": ("mp4", "libsvtav1", "yuv420p", SVT),
    "av1_10_bit": ("webm", "libsvtav1", "yuv420p10le", SVT),
    "vp9_444": ("webm", "libvpx-vp9", "yuv444p", VP9),
    "vp9_alpha": ("webm", "libvpx-vp9", "yuva420p", VP9),
    "prores": ("mov", "prores_ks", "yuv422p10le", {"profile": "hq"}),
    "prores_alpha": ("mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
    "mjpeg": ("avi", "mjpeg", "yuvj420p", {"q": "2"}),
    "ffv1_16_bit": ("mkv", "ffv1", "gbrp16le", {}),
    "ffv1_grey_16_bit": ("mkv", "ffv1", "gray16le", {}),
    "png": ("mov", "png", "rgb24", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_colours_of_every_pixel_format_are_right(name: str, tmp_path: Path) -> None:
    suffix, codec, pix_fmt, options = FORMATS[name]
    path = tmp_path / f"{name}.{suffix}"
    is_full = name == "mjpeg" or "16" in pix_fmt or pix_fmt in ("rgb24", "gbrp")
    write_raw(
        path,
        codec,
        pix_fmt,
        options,
        colour_range="full" if is_full else "limited",
        is_tagged=not is_full,
    )
    assert worst_colour(path, is_grey="gr" in pix_fmt and "gbr" not in pix_fmt) < 6


@pytest.mark.parametrize("matrix", MATRIX_TAG)
@pytest.mark.parametrize("colour_range", RANGE_TAG)
def test_the_matrix_and_the_range_that_a_file_states_are_used(
    matrix: str, colour_range: str, tmp_path: Path
) -> None:
    path = tmp_path / "stated.mp4"
    write_raw(path, "libx264", "yuv420p", {"qp": "8"}, matrix, colour_range)
    assert worst_colour(path) < 6


def test_a_file_that_states_nothing_is_bt601_limited(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    write_raw(path, "libx264", "yuv420p", {"qp": "8"}, is_tagged=False)
    assert worst_colour(path) < 6
    write_raw(path, "libx264", "yuv420p", {"qp": "8"}, "bt709", "full", is_tagged=False)
    assert worst_colour(path) > 12


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv444p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mkv", "ffv1", "yuv420p"),
        ("mkv", "ffv1", "yuv410p"),
    ],
)
def test_pictures_of_odd_width_and_height_are_whole(
    suffix: str, codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    path = tmp_path / f"odd.{suffix}"
    # left a quarter red, below a quarter blue: the corners tell a picture that slips
    picture = np.full((241, 321, 3), 255, np.uint8)
    picture[:, :80], picture[-60:] = (200, 40, 60), (50, 60, 210)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 241, 321, pix_fmt
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info = probe(path)
    assert (info.height, info.width) == (241, 321)
    found = decode(path, [0]).numpy()[0].astype(int)
    sharp = np.ones((241, 321), bool)
    sharp[-68:-52], sharp[:, 72:88] = False, False
    assert np.abs(found - picture)[sharp].max() < 40
    assert np.abs(found - picture)[sharp].mean() < 3


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a, b, c, d of the display matrix into the track header of an MP4."""
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    place = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    turned = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(content[:place] + turned + content[place + len(turned) :])


MATRICES = {
    "upright": ((1, 0, 0, 1), lambda picture: picture),
    "clockwise": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "upside_down": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    "transversed": ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_pictures_are_turned_and_mirrored_as_the_file_says(name: str, tmp_path: Path) -> None:
    matrix, turn = MATRICES[name]
    path = tmp_path / "turned.mp4"
    write_video(path, numbered_frames(6))
    as_stored = decode(path, [5]).numpy()[0]
    assert number_of(as_stored) == 5
    set_display_matrix(path, matrix)
    expected = turn(as_stored)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.array_equal(decode(path, [5]).numpy()[0], expected)


@pytest.mark.parametrize("is_turned", [False, True])
def test_pixels_that_are_not_square_keep_the_aspect_ratio_of_what_is_shown(
    is_turned: bool, tmp_path: Path
) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if is_turned:
        content = path.read_bytes()
        identity = struct.pack(">5i", 1 << 17, 0, 0, 0, 1 << 16)
        plain = struct.pack(">5i", 1 << 16, 0, 0, 0, 1 << 16)
        path.write_bytes(content.replace(identity, plain, 1))
        set_display_matrix(path, (0, 1, -1, 0))
    info = probe(path)
    assert (info.height, info.width) == (64, 64)
    assert info.pixel_aspect == (0.5 if is_turned else 2.0)
    frames_FHWC = decode(path, [0])
    _, box = fit_frames(frames_FHWC, 64, 64, Fit.pad, info.pixel_aspect)
    assert (box.height, box.width) == ((64, 32) if is_turned else (32, 64))
    cropped_CFHW, _ = fit_frames(frames_FHWC, 32, 64, Fit.crop, info.pixel_aspect)
    assert cropped_CFHW.shape == (3, 1, 32, 64)


def test_interlaced_pictures_come_back_woven(tmp_path: Path) -> None:
    path = tmp_path / "interlaced.mkv"
    write_video(path, numbered_frames(12), options={"x264-params": "tff=1", "flags": "+ildct+ilme"})
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert [number_of(picture) for picture in decode(path, [3, 11, 0])] == [3, 11, 0]
