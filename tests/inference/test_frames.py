"""Frames of videos and pages of files: each under its number, upright, one at a time."""

import struct

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data.formats import VIDEO_ENDINGS
from diffseg_jax.errors import UserError
from diffseg_jax.inference import frames, videos
from diffseg_jax.inference.batch import clips_in
from diffseg_jax.inference.frames import Frame, frames_in, read_each
from diffseg_jax.inference.images import find_images, matching, named_images
from image_files import COUNT, STEP, write_clip

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "mpg": "mpeg2video"}


def random_image():
    return Image.fromarray(RNG.integers(0, 256, (10, 14, 3), np.uint8))


@pytest.mark.parametrize("ending", CODECS)
def test_a_frame_is_the_same_wherever_reading_begins(tmp_path, ending):
    path = write_clip(tmp_path / f"a.{ending}", CODECS[ending])
    assert videos.count_frames(path) == COUNT
    every = dict(videos.read_frames(path, range(COUNT)))
    means = [image[:, :20].mean() for image in every.values()]
    assert list(every) == list(range(COUNT)) and np.diff(means).min() > STEP / 4
    for some in ([29], [5, 13, 14], [12], [11, 25, 40]):
        for number, image in videos.read_frames(path, some):
            np.testing.assert_array_equal(image, every[number])
            some = some[1:]
        assert some in ([], [40])


def test_frames_are_turned_as_the_video_says(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    stored = next(videos.read_frames(path, [3]))[1]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # the matrix of the track
    turned = (0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)  # a quarter clockwise, as phones write it
    content[start : start + 36] = struct.pack(">9i", *turned)
    path.write_bytes(content)
    upright = next(videos.read_frames(path, [3]))[1]
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))


def test_pages_are_images_and_smaller_copies_are_not(tmp_path):
    pages = [random_image() for _ in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.webp", save_all=True, append_images=pages[1:], lossless=True)
    pages[0].save(tmp_path / "one.tif")
    copy = pages[1].resize((7, 5))
    copy.encoderinfo = {"tiffinfo": {254: 1}}  # "reduced-resolution version of another image"
    pages[0].save(tmp_path / "pyramid.tif", save_all=True, append_images=[copy])
    for name in ("stack.tif", "moving.webp"):
        path = str(tmp_path / name)
        found = frames_in(path)
        assert found == [Frame(path, number) for number in range(3)]
        assert frames_in(path, every=2) == found[::2]
        read = [image for *_, image in read_each([(str(each), each) for each in found])]
        np.testing.assert_array_equal(read, np.stack(pages))
    for name in ("one.tif", "pyramid.tif"):
        assert frames_in(str(tmp_path / name)) == [str(tmp_path / name)]
    names = [name for name, _ in named_images(tmp_path)]
    stack, moving = ([f"{stem}_{n:06d}" for n in range(3)] for stem in ("stack", "moving"))
    assert names == [*moving, "one", "pyramid", *stack]


def test_a_file_that_is_given_twice_is_read_twice(tmp_path):
    random_image().save(tmp_path / "a.gif", save_all=True, append_images=[random_image()])
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a_000001.png")
    found, _ = find_images([tmp_path / "a.gif", tmp_path / "a.gif", tmp_path])
    assert len({name for name, _ in found}) == len(list(read_each(found))) == 7
    (note,) = frames.frames_note(found[:2], 1)
    assert "a.gif holds several images, 2 frames taken." in note


def test_the_note_about_many_frames_names_the_flag_that_takes_fewer(tmp_path):
    assert frames.frames_note([("a", "a.png"), ("b", Frame("b.mp4", 0))], 1) == ()
    found = [("", Frame(path, n)) for path in ("a.mp4", "b.mp4") for n in range(1000)]
    (note,) = frames.frames_note(found, 1)
    assert "2 files hold several images, 2,000 frames taken; the first is a.mp4" in note
    assert "--every=10 takes 200 frames" in note
    assert "--every" not in frames.frames_note(found, 10)[0]


def test_a_damaged_video_is_a_sentence_and_the_others_are_read(tmp_path):
    whole = write_clip(tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "list.mp4").write_bytes(b"#EXTM3U\n#EXTINF:1,\na.mkv\n#EXT-X-ENDLIST\n")
    found, _ = find_images(tmp_path)
    errors = {}
    for _, source, image in read_each(found):
        if isinstance(image, UserError):
            errors[frames.container_of(source).rpartition("/")[2]] = str(image)
    assert errors.keys() >= {"bad.mp4", "list.mp4"} and "a.mkv" not in errors
    assert all("Replace or" in sentence for sentence in errors.values())
    path = str(write_clip(tmp_path / "b.mp4"))
    ((*_, error),) = read_each([("x", Frame(path, COUNT))])
    assert f"ends before frame {COUNT}" in str(error)


def test_without_the_package_videos_are_skipped_with_the_line_that_installs_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.mp4").write_bytes(b"")
    needed = r'pip install "diffseg_jax\[video\]"'
    for only in (tmp_path / "a.mp4", tmp_path):
        with pytest.raises(UserError, match=needed):
            find_images(only)
    random_image().save(tmp_path / "b.png")
    found, (note,) = find_images(tmp_path)
    assert [name for name, _ in found] == ["b"] and note.startswith("1 video in")
    assert 'pip install "diffseg_jax[video]"' in note


@pytest.mark.parametrize("pattern", ["**", "**/*", "*", "**/*.png"])
def test_a_pattern_gives_every_image_once(tmp_path, pattern):
    for folder in ("", "sub", "sub/deep"):
        (tmp_path / folder).mkdir(exist_ok=True)
        random_image().save(tmp_path / folder / "a.png")
    found, _ = find_images(f"{tmp_path}/{pattern}")
    assert len({path for _, path in found}) == len(found) == 3


def test_a_video_beside_an_image_with_the_name_of_a_frame_is_one_clip(tmp_path):
    random_image().save(tmp_path / "clip_000000.png")
    write_clip(tmp_path / "clip.mp4", count=3)
    found, _ = find_images(tmp_path)
    clips = clips_in(found, tmp_path)
    assert list(clips) == ["clip"]
    assert [frame.number for frame in clips["clip"].values()] == [0, 1, 2]


def test_a_pattern_takes_videos(tmp_path):
    for ending in (*VIDEO_ENDINGS, ".MP4", ".txt"):
        (tmp_path / f"a{ending}").write_bytes(b"")
    assert len(matching(f"{tmp_path}/a*")) == len(VIDEO_ENDINGS) + 1
