"""Images come in as a person sees them, or are refused with a reason before they cost anything."""

from __future__ import annotations

import io
import random
import re
import tracemalloc
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageFile

import hostile_images
from hostile_images import FAMILIES, Case, good_files, judge, judge_in_child, make, mutated
from image_files import black_png, encode, gif, gif_frame, photo, png, riff, vp8x, webp_picture
from vistune import image_headers, media
from vistune.errors import ImageError, UsageError
from vistune.media import ImageLimits, image_digest, image_size, open_image

REASONS = set(re.findall(r"\w+", str(media.__doc__).split("one of these reasons:")[1]))


def reason(source: Path | bytes | str, **options) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    with pytest.raises(ImageError) as caught_by_size:
        image_size(source, **options)
    assert caught.value.reason == caught_by_size.value.reason
    return caught.value.reason


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hostile_image_gets_its_verdict_twice(family: str, tmp_path: Path):
    cases = make(family, tmp_path)
    first, second = ([judge(case) for case in cases] for _ in range(2))
    assert [verdict for verdict in first if verdict.wrong] == []
    assert first == second
    assert {verdict.detail for verdict in first if verdict.outcome == "refused"} <= REASONS
    assert len(cases) == FAMILIES[family][0]


def test_there_are_five_hundred_hostile_images():
    assert sum(count for count, _ in FAMILIES.values()) == 500


def test_pictures_that_look_alike_to_a_careless_key_have_their_own_digests(tmp_path: Path):
    digests = defaultdict(list)
    for case in make("same bytes, other picture", tmp_path):
        digests[case.twin].append(image_digest(open_image(case.source)))
    for twin, (one, other) in digests.items():
        assert (one == other) == twin.endswith("="), twin


@pytest.mark.parametrize("count", [3000, pytest.param(300_000, marks=pytest.mark.nightly)])
def test_no_mutation_of_a_good_file_escapes_as_another_error(count: int):
    # Found this way: a WebP picture of width 0 beside an alpha plane was an OverflowError.
    generator, files = random.Random(count), list(good_files().values())
    for number in range(count):
        assert judge(Case(str(number), mutated(generator, files), "either")).wrong == ""


def test_a_webp_picture_of_width_0_is_refused():
    name, picture = webp_picture(encode(photo(20, 20), "WEBP"))
    flat = (name, picture[:6] + b"\0\0" + picture[8:])
    assert reason(riff(vp8x(20, 20, 16), (b"ALPH", b"\0" * 401), flat)) == "broken"


def test_a_judge_can_find_fault():
    """The 500 prove nothing if wrong verdicts, sizes or colours pass."""
    black = black_png(4, 4)
    assert judge(Case("", black, "refused")).wrong
    assert judge(Case("", b"junk", "accepted")).wrong
    assert judge(Case("", black, "accepted", size=(4, 5))).wrong
    assert judge(Case("", black, "accepted", pixels=(((0, 0), (0, 0, 1)),))).wrong
    assert judge(Case("", black, "accepted", size=(4, 4), pixels=(((0, 0), (0, 0, 0)),))).wrong == ""


@pytest.mark.parametrize("name", good_files())
def test_the_size_is_known_without_decoding_and_equals_the_picture(name: str, monkeypatch: pytest.MonkeyPatch):
    data = good_files()[name]
    picture = open_image(data)
    monkeypatch.setattr(Image, "open", None)
    assert image_size(data) == picture.size


@pytest.mark.parametrize(
    ("limits", "source", "expected", "said"),
    [
        (ImageLimits(file_bytes=50), black_png(20, 10), "bytes", "at most 50 are allowed"),
        (ImageLimits(pixels=199), black_png(20, 10), "pixels", "20×10 pixels; at most 199"),
        (ImageLimits(side=19), black_png(20, 10), "side", "may be at most 19"),
        (ImageLimits(min_side=11), black_png(20, 10), "min_side", "at least 11"),
        (ImageLimits(aspect=1), black_png(20, 10), "aspect", "at most 1 times the shorter"),
        (ImageLimits(padded_pixels=399), black_png(20, 10), "padded", "at most 399"),
        (ImageLimits(), black_png(65_000, 1), "min_side", "65000×1"),
        (ImageLimits(), black_png(4900, 4900), "pixels", "at most 24,000,000"),
        (ImageLimits(), b"", "empty", "no bytes"),
        (ImageLimits(), b"%PDF-1.7", "format", "not a JPEG, PNG, WebP or GIF"),
        (ImageLimits(), "https://example.org/cat.jpg", "url", "download the picture"),
        (ImageLimits(), "file:///etc/passwd", "url", "given as a path"),
        (ImageLimits(), "cat.jpg", "url", "given as a path"),
        (ImageLimits(), "data:image/png,abc", "data_url", "expected data:image/"),
        (ImageLimits(), "data:image/png;base64,%ff%zz", "data_url", "not valid base64"),
        (ImageLimits(), "data:image/png;base64,QUJD QUJD", "data_url", "its spaces were probably '+'"),
        (ImageLimits(), Path("no such file.png"), "missing", "'no such file.png': there is no such file"),
        (ImageLimits(), Path("/dev/zero"), "not_a_file", "regular file is needed"),
    ],
)
def test_every_refusal_says_what_was_found_and_what_is_allowed(limits: ImageLimits, source: Path | bytes | str, expected: str, said: str):
    assert reason(source, limits=limits) == expected
    with pytest.raises(ImageError, match=re.escape(said)):
        open_image(source, limits=limits)


def test_limits_are_inclusive():
    exact = ImageLimits(pixels=200, side=20, min_side=10, aspect=2, padded_pixels=400)
    assert open_image(black_png(20, 10), limits=exact).size == (20, 10)


def test_a_bomb_is_refused_before_anything_is_allocated():
    bomb = black_png(8000, 8000, 16)
    tracemalloc.start()
    try:
        assert reason(bomb) == "pixels"
        assert tracemalloc.get_traced_memory()[1] < 2**20, "the picture has 128 MB"
    finally:
        tracemalloc.stop()


def test_the_extension_of_a_file_is_ignored(tmp_path: Path):
    (tmp_path / "picture.txt").write_bytes(encode(photo(20, 20), "WEBP"))
    (tmp_path / "text.png").write_bytes(b"<svg/>")
    assert open_image(tmp_path / "picture.txt").size == (20, 20)
    assert reason(tmp_path / "text.png") == "format"


def test_a_root_may_be_a_link_but_nothing_under_it(tmp_path: Path):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "inner" / "a.png").write_bytes(black_png(4, 4))
    (tmp_path / "real" / "b.png").symlink_to("inner/a.png")
    root = tmp_path / "root"
    for path in (Path("inner/a.png"), root / "inner" / "a.png", tmp_path / "real" / "inner" / "a.png"):
        assert open_image(path, root=root).size == (4, 4)
    assert reason(Path("b.png"), root=root) == "outside_root"
    assert reason(Path("inner/../inner/a.png"), root=root) == "outside_root"
    assert reason(tmp_path / "a.png", root=root) == "outside_root"
    assert reason(Path(), root=root) == "not_a_file"
    assert reason(Path("inner"), root=root) == "not_a_file"
    assert open_image(tmp_path / "real" / "b.png").size == (4, 4), "without a root, links are followed"


def test_a_name_cannot_forge_a_line_of_the_message(tmp_path: Path):
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a\nError: all is well \u202e.png")
    assert "\n" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


def test_alpha_is_laid_over_white_alike_in_every_strip(monkeypatch: pytest.MonkeyPatch):
    picture = photo(50, 70)
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    whole = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    monkeypatch.setattr(media, "_STRIP_PIXELS", 333)
    assert open_image(encode(picture, "PNG")).tobytes() == whole.tobytes()


def test_an_opaque_picture_has_exactly_the_decoder_s_pixels():
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(photo(333, 217), kind)
        with Image.open(io.BytesIO(data)) as reference:
            assert open_image(data).tobytes() == reference.convert("RGB").tobytes()


def test_an_srgb_profile_changes_no_pixel():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encode(photo(40, 40), "PNG", icc_profile=profile)).tobytes() == photo(40, 40).tobytes()


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = png([b"".join(value.to_bytes(2, "big") for value in range(start, start + 256)) for start in range(0, 65_536, 256)], 256, 16, 0)
    assert open_image(ramp).getchannel("R").tobytes() == bytes(value >> 8 for value in range(65_536))


def test_later_frames_never_reach_the_decoder():
    header = image_headers.read_header(gif(4, 4, [gif_frame(4, 4, 0), *[gif_frame(4, 4, 1)] * 1000], ((0, 0, 0), (9, 9, 9))))
    assert len(header.drawing) < 100


def test_a_decoder_that_disagrees_with_the_header_is_not_believed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile.ImageFile, "size", property(lambda image: (8, 8)))
    with pytest.raises(ImageError, match="the decoder") as caught:
        open_image(black_png(4, 4))
    assert caught.value.reason == "broken"


def test_too_little_memory_is_said_and_not_a_crash(monkeypatch: pytest.MonkeyPatch):
    def no_memory(image: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    with pytest.raises(ImageError, match="not enough memory") as caught:
        open_image(encode(photo(20, 20), "JPEG"))
    assert caught.value.reason == "memory"


def test_threads_see_the_same_pictures_and_pillow_s_settings_stay():
    settings = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    files = [*good_files().values()] * 4
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda data: image_digest(open_image(data)), files))
    assert digests == digests[: len(files) // 4] * 4
    assert settings == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_a_digest_is_taken_of_rgb_only_and_knows_the_size():
    image = photo(30, 20)
    assert image_digest(image) != image_digest(Image.frombytes("RGB", (20, 30), image.tobytes()))
    assert image_digest(image) == image_digest(image.copy())
    with pytest.raises(UsageError, match="'L'"):
        image_digest(image.convert("L"))


@pytest.mark.nightly
@pytest.mark.parametrize("family", [*FAMILIES, "largest allowed"])
def test_no_hostile_image_kills_a_child_with_little_memory(family: str, tmp_path: Path):
    runs = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        runs.append(judge_in_child(family, tmp_path / str(number)))
    assert [verdict for verdict in runs[0] if verdict.wrong] == []
    assert [(v.name, v.outcome, v.detail) for v in runs[0]] == [(v.name, v.outcome, v.detail) for v in runs[1]]
    assert max(verdict.megabytes for verdict in runs[0]) < 400
    assert len(runs[0]) == hostile_images.FAMILIES.get(family, (10,))[0]


def test_bytes_that_fill_up_to_a_marker_change_no_drawing():
    plain = encode(photo(64, 48), "JPEG")
    marker = re.compile(rb"\xff[^\x00\xd0-\xd8\xff]")  # fills before every marker, those after a scan included
    filled = marker.sub(lambda found: b"\xff" * 3 + found[0], plain)
    assert len(filled) > len(plain)
    assert image_headers.read_header(filled).drawing == image_headers.read_header(plain).drawing


def test_a_photograph_keeps_its_own_pixels_and_none_of_its_metadata():
    data = encode(photo(64, 48), "JPEG", dpi=(300, 300))
    with Image.open(io.BytesIO(data)) as decoded:
        assert "dpi" in decoded.info
        expected = decoded.tobytes()
    opened = open_image(data)
    assert (opened.tobytes(), opened.info) == (expected, {})
