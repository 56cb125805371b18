"""Videos: their frames, read one at a time, and written. The extra `video` installs PyAV for it."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import open_path

NEEDS_PYAV = 'reading videos needs another package: pip install "diffseg_jax[video]"'
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv"  # no playlists
SEEKABLE = ("mov", "matroska")  # containers with an index, in which a seek is exact


def reads_videos() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def count_frames(path: str) -> int:
    """The number of frames of a video, from its packets, without decoding them.

    Raises UserError for a file that is no video.
    """
    with _opened(path) as (container, stream):
        return len(_times(container, stream))


def read_frames(path: str, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, image u8[H,W,3], upright) of frames of a video, decoded one after the other.

    numbers  of the frames, from 0, ascending; decoding begins at the last key frame before them
    Ends early where the video is cut. Raises UserError where it is damaged.
    """
    with _opened(path) as (container, stream):
        times = _times(container, stream)
        waiting = [number for number in reversed(numbers) if number < len(times)]
        timed = None not in times
        times = sorted(times) if timed else range(len(times))
        indexed = timed and container.format.name.startswith(SEEKABLE)
        container.seek(times[waiting[-1]] if indexed and waiting else 0, stream=stream)
        for index, frame in enumerate(container.decode(stream)):
            now = frame.pts if timed else index
            if waiting and times[waiting[-1]] <= now:
                turns = round(frame.rotation / 90)
                image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                while waiting and times[waiting[-1]] <= now:
                    yield waiting.pop(), image
            if not waiting:
                return


def frame_rate(path: str) -> Fraction:
    """Frames a second, on average; 25 where it is not known."""
    with _opened(path) as (_, stream):
        return Fraction(stream.average_rate or 25)


def write_video(path: Path, images: Iterable[np.ndarray], rate: Fraction):
    """Writes images u8[H,W,3] as an MP4 that players show: H.264, even sides; never half of it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream(codec, rate=rate.limit_denominator(1000))
            for number, image in enumerate(images):
                height, width = (max(side // 2 * 2, 2) for side in image.shape[:2])
                if not number:
                    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                frame = av.VideoFrame.from_ndarray(image)
                frame = frame.reformat(stream.width, stream.height, "yuv420p")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _opened(path):
    """The container and the first video stream of a file; failures of PyAV are UserErrors."""
    if not reads_videos():
        raise UserError(f"{path} is a video, and {NEEDS_PYAV}.")
    import av

    try:
        with (
            open_path(path).open("rb") as file,
            av.open(file, options={"format_whitelist": CONTAINERS}) as container,
        ):
            if not container.streams.video:
                raise UserError(f"{path} holds no video. Replace or remove the file.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}. Replace or remove the file."
        ) from None


def _times(container, stream) -> list:
    """The time of each frame in the order of the file, in units of the stream; None: unknown."""
    return [
        packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard
    ]
