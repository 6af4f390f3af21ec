"""Videos: frames by number, folders of frames, and everything that is refused before or while it is decoded."""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest
from PIL import Image

from vistune.errors import VideoError
from vistune.media import ImageLimits
from vistune.types import Conversation, ImagePart, TextPart, VideoPart
from vistune.video import VideoFacts, VideoLimits, describe_video, frame_files, frame_numbers, read_frames, with_frames


def shade(number: int) -> int:
    """The grey of a frame in the videos of these tests."""
    return 20 + 7 * number


def write_video(path: Path, frames: int = 30, *, fps: int = 10, size: tuple[int, int] = (64, 48), rotation: int = 0) -> Path:
    """Grey frames, each a little lighter than the one before; with B-frames, so that the order in the file is not that of showing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", "g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            picture = Image.new("RGB", size, (shade(number),) * 3)
            picture.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 4))  # red at the top left
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "grey.mp4")


def grey(image: Image.Image) -> int:
    pixel = image.getpixel((image.width - 4, image.height - 4))
    assert isinstance(pixel, tuple)
    return pixel[1]


def test_frames_are_counted_without_being_decoded(video: Path):
    assert describe_video(video) == VideoFacts(30, 10.0, 64, 48)
    assert describe_video(video.read_bytes()) == VideoFacts(30, 10.0, 64, 48)


def test_frames_come_by_their_number_in_order_of_presentation_and_as_often_as_asked(video: Path):
    numbers = [29, 0, 13, 13, 7]
    images = read_frames(video, numbers)
    assert [round((grey(image) - 20) / 7) for image in images] == numbers
    assert {(image.mode, image.size) for image in images} == {("RGB", (64, 48))}


def test_a_video_taken_sideways_is_turned_upright(tmp_path: Path):
    (image,) = read_frames(write_video(tmp_path / "turned.mp4", 3, rotation=90), [1])
    assert image.size == (48, 64)
    red = image.getpixel((2, 60))  # the top left corner, turned counterclockwise, is at the bottom left
    assert isinstance(red, tuple)
    assert red[0] > 200 > 100 > red[1]


def test_a_gif_is_a_video_too(tmp_path: Path):
    pictures = [Image.new("L", (32, 24), value) for value in (10, 90, 170, 250)]
    pictures[0].save(tmp_path / "four.gif", save_all=True, append_images=pictures[1:], duration=100)
    assert describe_video(tmp_path / "four.gif") == VideoFacts(4, 25.0, 32, 24)  # 25 a second, whatever its pauses are
    assert [grey(image) for image in read_frames(tmp_path / "four.gif", [1, 3])] == [90, 250]


def test_a_conversation_gets_the_middle_frames_in_the_place_of_its_video(video: Path):
    asked = Conversation(()).then("user", "Watch: ", VideoPart(video, frames=3, seconds=(1.0, 2.2)), "\nWhat?")
    shown = with_frames(asked).messages[0].parts
    assert [type(part) for part in shown] == [TextPart, ImagePart, TextPart, ImagePart, TextPart, ImagePart, TextPart]
    assert "".join(part.text for part in shown if isinstance(part, TextPart)) == "Watch: \n\n\nWhat?"
    images = [Image.open(io.BytesIO(part.source)) for part in shown if isinstance(part, ImagePart) and isinstance(part.source, bytes)]
    assert [round((grey(image) - 20) / 7) for image in images] == [12, 16, 20]  # 10 to 22 in three parts: 10 + 2, 14 + 2, 18 + 2


def test_a_conversation_without_a_video_stays_the_same_object():
    asked = Conversation(()).then("user", "What?")
    assert with_frames(asked) is asked


def test_frames_in_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path):
    for name in ("10.jpg", "2.jpg", "1.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in frame_files(tmp_path)] == ["1.png", "2.jpg", "10.jpg"]


@pytest.mark.parametrize(("n", "seconds", "fps"), [(0, None, 1.0), (1, (float("nan"), 1.0), 1.0), (1, None, float("inf"))])
def test_times_that_name_no_frame_are_refused(n: int, seconds: tuple[float, float] | None, fps: float):
    with pytest.raises(VideoError):
        frame_numbers(n, seconds, fps, 10)


@pytest.mark.parametrize(("numbers", "says"), [([30], "no frame 30"), ([-1], "no frame -1"), ([], "0 frames"), ([0] * 129, "129 frames")])
def test_frames_that_are_not_there_or_too_many_are_refused(video: Path, numbers: list[int], says: str):
    with pytest.raises(VideoError, match=says) as caught:
        read_frames(video, numbers)
    assert caught.value.reason == "frames"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (VideoLimits(file_bytes=100), "bytes"),
        (VideoLimits(packets=29), "packets"),
        (VideoLimits(image=ImageLimits(pixels=64 * 48 - 1)), "pixels"),
        (VideoLimits(image=ImageLimits(side=63)), "side"),
    ],
)
def test_limits_are_checked_before_a_frame_is_decoded(video: Path, limits: VideoLimits, reason: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vistune.video._picture", lambda *_: pytest.fail("a frame was made"))
    with pytest.raises(VideoError) as caught:
        describe_video(video, limits=limits)
    assert caught.value.reason == reason
    assert "grey.mp4" in str(caught.value)


def test_sources_that_are_no_readable_file_say_what_they_are(tmp_path: Path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("no video " * 100)
    cases = {"missing": tmp_path / "none.mp4", "not_a_file": tmp_path, "empty": tmp_path / "empty.mp4", "format": tmp_path / "words.mp4"}
    for reason, path in cases.items():
        with pytest.raises(VideoError) as caught:
            describe_video(path)
        assert caught.value.reason == reason
    with pytest.raises(VideoError) as caught:
        describe_video("https://example.org/video.mp4")
    assert caught.value.reason == "url"


def test_a_list_of_other_files_is_not_followed(tmp_path: Path, video: Path):
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{video}'\n")
    (tmp_path / "live.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{video}\n#EXT-X-ENDLIST\n")
    for name in ("concat.mp4", "live.m3u8"):
        with pytest.raises(VideoError):
            describe_video(tmp_path / name)


def test_only_formats_that_videos_come_in_are_opened(tmp_path: Path):
    (tmp_path / "raw.y4m").write_bytes(b"YUV4MPEG2 W8 H6 F10:1 C420jpeg\n" + (b"FRAME\n" + bytes(72)) * 3)
    with pytest.raises(VideoError, match=r"raw\.y4m"):
        describe_video(tmp_path / "raw.y4m")


def test_pictures_coded_in_an_unknown_way_are_refused(tmp_path: Path, video: Path):
    (tmp_path / "unknown.mp4").write_bytes(video.read_bytes().replace(b"avc1", b"zzz9"))
    with pytest.raises(VideoError) as caught:
        describe_video(tmp_path / "unknown.mp4")
    assert caught.value.reason in ("format", "no_video")


def test_a_file_cut_in_half_is_broken_or_ends_early(tmp_path: Path, video: Path):
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(VideoError):
        read_frames(tmp_path / "half.mp4", [29])
