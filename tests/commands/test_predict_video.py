"""clq predict with videos and webcams: the rate, the size and the frames of what it writes, and its window."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from clq.commands.predict import main
from clq.inference import video
from clq.utils.cli import run_cli

FPS = 12.5


@pytest.fixture
def predict(trained):
    """``predict(*argv)`` -> exit status."""

    def call(*argv):
        with pytest.raises(SystemExit) as exited:
            run_cli(main, ["--config-file", str(trained), "--confidence-threshold", "0.2", *map(str, argv)])
        return exited.value.code

    return call


@pytest.fixture
def clip(tiny, tmp_path):
    """A video of six frames of 96 x 64 pixels, two of each of three images."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (96, 64))
    for i in range(6):
        writer.write(cv2.imread(str(Path(tiny).parent / "shapes_val" / f"{i // 2}.png"))[:64])
    writer.release()
    return tmp_path / "clip.avi"


def read_video(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_a_video_that_is_cut_off_ends_with_a_warning(predict, clip, tmp_path, caplog):
    assert predict("--video-input", clip, "--json", tmp_path / "whole.jsonl") == 0
    assert "cut off" not in caplog.text
    content = clip.read_bytes()
    frames = content.split(b"00dc")  # the mark of each frame of an avi
    clip.write_bytes(b"00dc".join(frames[:4]))  # the header still claims six frames
    assert predict("--video-input", clip, "--json", tmp_path / "r.jsonl") == 0
    read = len((tmp_path / "r.jsonl").read_text().splitlines())
    assert 0 < read < 6
    assert f"{clip}: {read} of the 6 frames that it claims to have could be read; it may be cut off." in caplog.text


@pytest.mark.parametrize("output", ["out.mp4", "out.avi", "folder"])
def test_a_video_keeps_its_rate_size_and_frames(output, predict, clip, tmp_path):
    target = tmp_path / "folder" / "clip.mp4" if output == "folder" else tmp_path / output
    results = tmp_path / "r.jsonl"
    assert predict("--video-input", clip, "--output", tmp_path / output, "--json", results, "--batch-size", 4) == 0
    (before, fps), (after, new_fps) = read_video(clip), read_video(target)
    assert (fps, new_fps) == (FPS, FPS)
    assert len(after) == len(before) == 6 and after[0].shape == before[0].shape == (64, 96, 3)
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [x["image_id"] for x in found] == list(range(6))
    assert [x["seconds"] for x in found] == [0, 0.08, 0.16, 0.24, 0.32, 0.4]
    changed = [(np.abs(a.astype(int) - b).max(axis=2) > 80).any() for a, b in zip(after, before, strict=True)]
    assert changed == [bool(x["detections"]) for x in found] and any(changed)


@pytest.fixture
def camera(clip, monkeypatch):
    """Makes the clip webcam 0."""
    capture = cv2.VideoCapture
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda source: capture(str(clip) if source == 0 else source))


def test_a_webcam_needs_no_window_to_write_a_video(predict, camera, tmp_path):
    assert predict("--webcam", "--output", tmp_path / "seen.avi") == 0
    assert len(read_video(tmp_path / "seen.avi")[0]) == 6


def test_a_webcam_is_shown_until_somebody_presses_escape(predict, camera, monkeypatch):
    shown = []
    for name in ("namedWindow", "destroyWindow"):
        monkeypatch.setattr(video.cv2, name, lambda *args: None)
    monkeypatch.setattr(video.cv2, "imshow", lambda name, frame: shown.append(frame.shape))
    monkeypatch.setattr(video.cv2, "waitKey", lambda delay: 27 if len(shown) == 3 else -1)
    assert predict("--webcam") == 0
    assert shown == [(64, 96, 3)] * 3


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--video-input", "gone.mp4", "--json", "r.json"], "gone.mp4: no such file"),
        (["--video-input", "{text}", "--json", "r.json"], "OpenCV cannot read it"),
        (["--video-input", "{clip}", "--output", "out.wmv"], "a video must end in .mp4"),
        (["--video-input", "{clip}", "--output", "{clip}"], "is the video itself"),
        (["--webcam", "7", "--json", "r.json"], "--webcam 7: no such camera"),
    ],
)
def test_mistakes(argv, message, predict, clip, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    assert predict(*(x.format(clip=clip, text=tmp_path / "text.mp4") for x in argv)) == 2
    assert message in capfd.readouterr().err.splitlines()[-1]  # FFmpeg and OpenCV may have written others


def test_without_windows_a_webcam_needs_a_file(predict, camera, monkeypatch, capsys):
    def fail(*args):
        raise cv2.error("not implemented")

    monkeypatch.setattr(video.cv2, "namedWindow", fail)
    assert predict("--webcam") == 2
    assert "this OpenCV cannot open a window; write a file with --output" in capsys.readouterr().err
