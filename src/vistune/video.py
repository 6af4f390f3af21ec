"""The one way in for videos: from a file to upright RGB frames by their numbers, and from a folder of frames to its files.

    file ─packets─► how many frames, how fast ─frame_numbers─► which ─decode─► RGB pictures

A frame's number is its place in the order of presentation, from 0, and there are as many as the stream has packets: decord, with which most
video benchmarks were made, counts so. Limits are checked on what headers and packets say, before a frame is decoded, and again on every
frame, whose size may change on the way.

FFmpeg's lists of other files and addresses (HLS, concat) are not opened, and the network is never asked.

A `VideoError` carries one of these reasons:

    missing not_a_file unreadable empty url        the source
    format broken no_video rate                    the file
    bytes packets frames pixels side min_side aspect padded
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from vistune.errors import ImageError, VideoError
from vistune.media import DEFAULT_LIMITS, ImageLimits, check_size
from vistune.types import Conversation, ImagePart, ImageSource, Message, Part, TextPart, VideoPart

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,flv,ogg,asf"
WHOLE_VIDEO = (-100_000.0, 100_000.0)
"""Seconds that hold any video; what the notebook of MVBench takes where an item has no start and end."""

GIF_FPS = 25.0


@dataclass(frozen=True)
class VideoLimits:
    """What is accepted. Each may be changed, none can be switched off. `image` is for each frame."""

    file_bytes: int = 4 * 2**30
    packets: int = 300_000
    """Two hours and three quarters at 30 frames a second."""
    frames: int = 128
    """Frames taken of one video; each may take what one picture takes."""
    image: ImageLimits = DEFAULT_LIMITS


DEFAULT_VIDEO_LIMITS = VideoLimits()


@dataclass(frozen=True)
class VideoFacts:
    """What a video file says of itself: how many frames, frames per second on average, and the size of the stored frames."""

    frames: int
    fps: float
    width: int
    height: int


def describe_video(source: ImageSource, *, limits: VideoLimits = DEFAULT_VIDEO_LIMITS) -> VideoFacts:
    """Counts a video's frames without decoding any. Raises VideoError: missing, broken, or over a limit."""
    with _opened(source, limits) as (container, stream):
        count = 0
        for packet in container.demux(stream):
            count += bool(packet.size)  # the last one is empty: it only flushes a decoder
            if count > limits.packets:
                raise VideoError("packets", f"more than {limits.packets:,} frames, which is the limit; cut a piece out of it")
        # a GIF has a pause after each picture and no rate; the notebook of MVBench takes all for the same
        rate = GIF_FPS if container.format.name == "gif" else stream.average_rate
        if not rate:
            raise VideoError("rate", "it does not say how many frames it has per second; convert it")
        if not count:
            raise VideoError("no_video", "its stream of pictures is empty; get a complete copy of it")
        return VideoFacts(count, float(rate), stream.codec_context.width, stream.codec_context.height)


def read_frames(source: ImageSource, numbers: Sequence[int], *, limits: VideoLimits = DEFAULT_VIDEO_LIMITS) -> list[Image.Image]:
    """The frames of these numbers, upright and in RGB, in the order and as often as they are asked for.

    Raises:
        VideoError: missing, broken, over a limit, or without a frame of such a number.
    """
    if not 1 <= len(numbers) <= limits.frames:
        raise VideoError("frames", f"{len(numbers)} frames were asked for; from 1 to {limits.frames} can be taken at once")
    last = max(numbers)
    if min(numbers) < 0 or last >= limits.packets:
        raise VideoError("frames", f"there is no frame {min(numbers) if min(numbers) < 0 else last}; they are counted from 0")
    found: dict[int, Image.Image] = {}
    with _opened(source, limits) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                found[number] = _picture(frame, limits)
            if number >= last:
                break
        else:
            raise VideoError("frames", f"there is no frame {last}, for it ended before; they are counted from 0")
    return [found[number] for number in numbers]


def frame_numbers(n: int, seconds: tuple[float, float] | Sequence[float] | None, fps: float, last: int, first: int = 0) -> list[int]:
    """The numbers of `n` frames, each at the middle of one of `n` equal parts of a video; the rule of MVBench's notebook (`get_index`).

    Args:
        seconds: start and end; None for the whole video. Where they lie outside it, so do the numbers, as officially.
        fps: frames per second.
        last: number of the last frame; `first` of the first.

    Raises:
        VideoError: no frames are asked for, or a time is not finite.
    """
    if n < 1:
        raise VideoError("frames", f"{n} frames were asked for; at least one is needed")
    try:
        start_seconds, end_seconds = seconds if seconds else WHOLE_VIDEO
        start = max(first, round(start_seconds * fps))
        end = min(round(end_seconds * fps), last)
        step = (end - start) / n
    except (ValueError, OverflowError, TypeError):
        raise VideoError("rate", f"a bound of {seconds} seconds at {fps} frames per second names no frame") from None
    # round() goes to the even neighbour at a half, as numpy's does in the notebook
    return [int(start + step / 2 + round(step * number)) for number in range(n)]


def has_video(conversation: Conversation) -> bool:
    return any(isinstance(part, VideoPart) for message in conversation.messages for part in message.parts)


def with_frames(conversation: Conversation, *, limits: VideoLimits = DEFAULT_VIDEO_LIMITS) -> Conversation:
    """The conversation with the frames that its videos name in their places, as pictures (PNG); the same one where it has no video.

    Raises VideoError.
    """
    if not has_video(conversation):
        return conversation
    return Conversation(tuple(_message_with_frames(message, limits) for message in conversation.messages))


def _message_with_frames(message: Message, limits: VideoLimits) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        parts += _shown(part, limits) if isinstance(part, VideoPart) else [part]
    return replace(message, parts=tuple(parts))


def _shown(part: VideoPart, limits: VideoLimits) -> list[Part]:
    facts = describe_video(part.source, limits=limits)
    numbers = frame_numbers(part.frames, part.seconds, facts.fps, facts.frames - 1)
    shown: list[Part] = []
    for image in read_frames(part.source, numbers, limits=limits):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        shown += [ImagePart(file.getvalue()), TextPart("\n")]
    return shown[:-1]


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder of frames, by the numbers in their names (2.jpg before 10.jpg).

    Raises:
        VideoError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise VideoError("missing", f"{folder} is missing, a folder with the frames of a video")
    found = [path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not found:
        raise VideoError("empty", f"{folder} holds no frames; expected .jpg or .png files")
    return sorted(found, key=lambda path: [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", path.name)])


# From a source to frames ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: ImageSource, limits: VideoLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its stream of pictures, size checked; FFmpeg's errors become ours, with the name of the source in front."""
    import av
    from av.error import FFmpegError, InvalidDataError

    try:
        with _file(source, limits) as file, av.open(file, "r", options=_options(), metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError("no_video", "there are no pictures in it")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("format", "its pictures are coded in a way that is not known here; convert it")
            _check_size(stream.codec_context.width, stream.codec_context.height, limits)
            yield container, stream
    except VideoError as error:
        raise VideoError(error.reason, f"{_name(source)}: {error}.") from error.__cause__
    except InvalidDataError as error:
        raise VideoError("format", f"{_name(source)}: this is no video that can be read, or a broken one ({error.strerror}).") from error
    except (FFmpegError, EOFError) as error:
        raise VideoError("broken", f"{_name(source)}: it cannot be decoded ({error}); get a complete copy of it.") from error


def _options() -> dict[str, str]:
    return {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}


@contextmanager
def _file(source: ImageSource, limits: VideoLimits) -> Iterator[BinaryIO]:
    if isinstance(source, str):
        raise VideoError("url", "videos are read from files; download it and give its path")
    size = len(source) if isinstance(source, bytes) else _size(source)
    if not size:
        raise VideoError("empty", "there are no bytes in it; get a complete copy of it")
    if size > limits.file_bytes:
        raise VideoError("bytes", f"{size:,} bytes; at most {limits.file_bytes:,} are allowed")
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        yield file


def _size(path: Path) -> int:
    try:
        if not path.exists():
            raise VideoError("missing", "there is no such file; check the path")
        if not path.is_file():
            raise VideoError("not_a_file", "it is a folder, pipe or device; a regular file is needed")
        return path.stat().st_size
    except (OSError, ValueError) as error:
        raise VideoError("unreadable", f"it cannot be read ({error})") from error


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, Path) else "The video"


def _picture(frame: VideoFrame, limits: VideoLimits) -> Image.Image:
    _check_size(frame.width, frame.height, limits)
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation % 360 else picture


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    try:
        check_size(width, height, limits.image)
    except ImageError as error:
        raise VideoError(error.reason, f"frames of {error}") from None
