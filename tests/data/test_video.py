from fractions import Fraction

import numpy as np
import pytest

from intarsia.data.fetch import fetched
from intarsia.data.video import Sampling, Tally, clips, clips_within, frames, passages, sampled, write_video
from intarsia.errors import BadInput

av = pytest.importorskip("av")


def grey(number, side=32):
    """A picture whose grey says its number."""
    return np.full((side, side, 3), (number * 5) % 250, np.uint8)


def write(path, count=50, fps=25, **options):
    write_video(path, (grey(i) for i in range(count)), fps, **options)
    return path


def numbers(pictures):
    return [round(float(x.mean()) / 5) for x in pictures]


def with_stamps(path, stamps, base=Fraction(1, 1000)):
    """A film of variable rate: picture i begins at stamps[i] (in `base`)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width = stream.height = 32
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(grey(number), format="rgb24")
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def by_ffmpeg(path, fps):
    """The numbers of the pictures that ffmpeg's own filter keeps."""
    graph, kept = av.filter.Graph(), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        first, last = graph.add_buffer(template=stream), graph.add("buffersink")
        middle = graph.add("fps", f"fps={fps}")
        first.link_to(middle)
        middle.link_to(last)
        graph.configure()

        def drain():
            while True:
                try:
                    kept.append(graph.pull().to_ndarray(format="rgb24"))
                except (av.BlockingIOError, av.EOFError):
                    return

        for frame in container.decode(stream):
            graph.push(frame)
            drain()
        graph.push(None)
        drain()
    return numbers(kept)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_every_container_gives_its_frames_at_their_times(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", codec="libvpx-vp9" if suffix == ".webm" else "libx264")
    tally = Tally()
    found = list(frames(path, tally))
    assert tally.frames == len(found) == 50
    assert tally.seconds == pytest.approx(2, abs=0.002)
    np.testing.assert_allclose([float(t) for t, _, _ in found], np.arange(50) / 25, atol=1e-3)
    assert numbers(x.to_ndarray(format="rgb24") for _, _, x in found) == [i % 50 for i in range(50)]


@pytest.mark.parametrize("fps", [5, 10, 20, 25, 30, Fraction(30000, 1001), 60])
def test_ticks_are_those_of_ffmpegs_filter(tmp_path, fps):
    path = write(tmp_path / "a.mp4", 43)
    ours = [(n, x) for n, x in sampled(path, Fraction(fps))]
    assert [n for n, _ in ours] == list(range(len(ours)))
    assert numbers(x for _, x in ours) == by_ffmpeg(path, fps)


def test_a_variable_rate_is_sampled_by_time_stamps(tmp_path):
    stamps = [0, 40, 80, 300, 310, 320, 900, 1000, 1033, 1500]
    path = with_stamps(tmp_path / "a.mkv", stamps)
    for fps in (10, 20, 7):
        ours = numbers(x for _, x in sampled(path, Fraction(fps)))
        theirs = by_ffmpeg(path, fps)
        assert ours[: len(theirs)] == theirs
    ticks = numbers(x for _, x in sampled(path, Fraction(10)))
    assert ticks[:10] == [1, 2, 2, 5, 5, 5, 5, 5, 5, 6]


def test_time_counts_from_the_containers_start(tmp_path):
    found = list(frames(with_stamps(tmp_path / "a.mp4", [1000, 1100, 1200])))
    assert [float(x) for x, _, _ in found] == pytest.approx([0, 0.1, 0.2])


def test_before_a_late_first_frame_its_picture_stands(tmp_path):
    path = with_stamps(tmp_path / "a.mkv", [1000, 1100, 1200])
    assert [float(x) for x, _, _ in frames(path)] == pytest.approx([1, 1.1, 1.2])
    assert numbers(x for _, x in sampled(path, Fraction(10))) == [0] * 11 + [1]


def test_clips_follow_one_another_and_the_rest_is_counted(tmp_path):
    path = write(tmp_path / "a.mp4", 50)  # 2 s
    tally = Tally()
    found = list(clips(path, Sampling(Fraction(25), 15), tally=tally))
    assert [x.start for x in found] == pytest.approx([0, 0.6, 1.2])
    assert [numbers(x.pixels) for x in found] == [list(range(15)), list(range(15, 30)), list(range(30, 45))]
    assert (tally.clips, tally.frames, tally.left_over) == (3, 50, pytest.approx(0.2))
    filled = list(clips(path, Sampling(Fraction(25), 20), tally=tally))
    assert numbers(filled[-1].pixels) == [*range(40, 50), *[49] * 10]  # half is there
    whole = list(clips(write(tmp_path / "b.mp4", 10), Sampling(Fraction(25), 20)))
    assert numbers(whole[0].pixels) == [*range(10), *[9] * 10]
    with pytest.raises(BadInput, match=r"c\.mp4: 0\.36 s long, less than half a clip of 0\.80 s"):
        list(clips(write(tmp_path / "c.mp4", 9), Sampling(Fraction(25), 20)))


def test_only_wanted_frames_become_pictures_and_each_once(tmp_path):
    path, made = write(tmp_path / "a.mp4", 50), []

    def shrink(pixels):
        made.append(pixels)
        return pixels[::2, ::2]

    found = list(clips(path, Sampling(Fraction(50), 50, (5, 6, 30)), shrink))
    assert [x.pixels.shape for x in found] == [(3, 16, 16, 3)] * 2
    assert len(made) == len({round(float(x.mean())) for x in made}) <= 6
    every = [x.pixels for x in clips(path, Sampling(Fraction(50), 50))]
    np.testing.assert_array_equal(found[1].pixels, every[1][[5, 6, 30], ::2, ::2])


def test_bad_files_are_named(tmp_path):
    good = write(tmp_path / "good.mp4", 100).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mkv").write_bytes(b"")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate, sound.pts = 16000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name in ("cut.mp4", "text.mp4", "empty.mkv"):
        with pytest.raises(BadInput, match=rf"{name}: cannot be decoded") as error:
            list(frames(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match=r"sound\.mp4: has no pictures, only audio"):
        list(frames(tmp_path / "sound.mp4"))
    with pytest.raises(BadInput, match=r"none\.mp4: no such file"):
        list(frames(tmp_path / "none.mp4"))


def test_a_film_cut_short_is_not_taken_for_a_whole_one(tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(200))
    write_video(tmp_path / "a.mkv", noise, 25)
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 3])
    with pytest.raises(BadInput, match=r"a\.mkv: (cut short: its last frame ends at .* of 8\.0|cannot be decoded)"):
        list(frames(tmp_path / "a.mkv"))


@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_phones_film_is_turned_upright(tmp_path, turn):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:, :16] = 200  # bright on the left
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.set_display_rotation(turn)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    ((_, _, frame),) = frames(tmp_path / "a.mp4")
    assert abs(frame.rotation) == abs(turn)
    _, shown = next(sampled(tmp_path / "a.mp4", Fraction(25)))
    expected = np.rot90(picture, frame.rotation // 90)  # FFmpeg: by so many degrees counter-clockwise
    assert np.abs(shown.astype(int) - expected).mean() < 6


def test_clips_belong_to_the_span_their_middle_is_in():
    starts = np.arange(4) * 1.5
    spans = np.array([[0, 3], [3, 4.4], [1.6, 1.7], [0.75, 0.75], [5, 9], [9, 10]])
    expected = [[0, 2], [2, 3], [1, 2], [0, 1], [3, 4], [4, 4]]
    assert clips_within(spans, starts, 1.5).tolist() == expected
    assert clips_within(spans[:1], np.zeros(0), 1.5).tolist() == [[0, 0]]


def test_passages_hold_as_many_sentences_as_fit():
    starts = np.arange(20) * 1.5
    spans = np.array([[0.5, 3], [3, 6.5], [7, 9], [20, 35], [40, 41]])
    assert passages(spans, starts, 1.5, 6, 16) == [(0, 2, 0, 4), (2, 3, 5, 6), (3, 4, 13, 17)]
    assert passages(np.zeros((0, 2)), starts, 1.5, 6, 16) == [(0, 0, 0, 16), (0, 0, 16, 20)]
    long = passages(np.array([[0.7, 72.7]]), np.arange(100) * 1.5, 1.5, 72, 16)
    assert long == [(0, 1, 0, 48)]


@pytest.mark.parametrize(
    ("name", "count", "seconds", "size"),
    [
        ("bigbuckbunny", 132, 5.28, (720, 1280)),
        ("bikes", 250, 10, (272, 640)),
        ("carphone_pristine", 120, 4.004, (144, 176)),
        ("carphone_distorted", 120, 4.004, (144, 176)),
    ],
)
def test_real_clips(name, count, seconds, size):
    try:
        path = fetched("clips", f"{name}.mp4")
    except BadInput:
        pytest.skip("the part clips was not fetched")
    tally = Tally()
    found = list(clips(path, Sampling(look=(0, 15, 29)), lambda x: x[::2, ::2], tally))
    assert (tally.frames, tally.clips) == (count, round(seconds / 1.5))
    assert tally.seconds == pytest.approx(seconds, abs=0.001)
    assert {x.pixels.shape for x in found} == {(3, size[0] // 2, size[1] // 2, 3)}
    assert all(x.pixels.std() > 10 for x in found)
