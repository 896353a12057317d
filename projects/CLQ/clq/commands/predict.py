"""Detect objects in images or in a video, and write annotated pictures, or results as json, or both.

    clq predict --config-file output/sample --input photo.jpg folder "more/*.png" --output pictures
    clq predict --config-file output/sample --input folder --recursive --json detections.jsonl
    find . -name "*.jpg" | clq predict --config-file output/sample --input - --json -
    clq predict --config-file output/sample --video-input street.mp4 --output annotated.mp4
    clq predict --config-file output/sample --webcam

--config-file takes a config, the folder of a training or a checkpoint. The exit status is 0, or 1 if an image could not
be read (it is named and skipped), or 2 for a mistake in the call.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import clq
from clq.engine.config_checks import make_folder
from clq.engine.signals import stop_signals
from clq.errors import Interrupted, UserError, signal_name
from clq.inference.files import find_images, read_lines
from clq.inference.json_output import STDOUT, open_json
from clq.inference.outputs import Output, open_nothing, open_pictures, open_video
from clq.inference.pipeline import Options, Outcome, Source, predict_all
from clq.inference.results import DRAWING_THRESHOLD
from clq.inference.thresholds import read_thresholds
from clq.inference.video import Closed, Video
from clq.utils.cli import count, positive

_STDIN = "-"


@dataclass
class _Tally:
    """What has been done.

    Attributes:
        unit: what is counted, "image" or "frame".
        done: number of images with a result.
        skipped: number of images without one.
        detections: number of detections.
    """

    unit: str
    done: int = 0
    skipped: int = 0
    detections: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Detects objects as the arguments say, and returns the exit status."""
    args = _parse_args(argv)
    _check(args)
    tally = _Tally("image" if args.input else "frame")
    try:
        with stop_signals(second_ends_process=True):
            _run(args, tally)
    except Interrupted as e:
        where = f"; {args.json} has their results" if args.json and args.json != STDOUT else ""
        message = f"{signal_name(e.signum)}: ended after {tally.done} {tally.unit}s{where}."
        raise Interrupted(e.signum, message) from None
    except BrokenPipeError:  # what reads the standard output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(tally.skipped > 0)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, help="config of the detector, folder of a training, or checkpoint")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", nargs="+", help="image files, folders or patterns; - reads paths, one a line")
    inputs.add_argument("--video-input", help="video file")
    inputs.add_argument("--webcam", nargs="?", const=0, type=count, metavar="NUMBER", help="webcam; default number: 0")
    add("--recursive", action="store_true", help="look for images in the subfolders of folders, too")
    add(
        "--output",
        help="folder for the pictures, which are named after their images; of a video, a folder or a file in .mp4, "
        ".mkv, .mov or .avi. A webcam without it is shown in a window",
    )
    add(
        "--json",
        help="file for the results. In .jsonl there is a line for each image; other files are a list in COCO's results "
        "format; - writes lines to the standard output",
    )
    add(
        "--confidence-threshold",
        type=float,
        default=DRAWING_THRESHOLD,
        help="lowest final score of a detection that is drawn and written (default: %(default)s); the detector itself "
        "drops detections below MODEL.CLQ.SCORE_THRESH, or the threshold of Detectron2's own models",
    )
    add("--thresholds", help='json file of such scores by class, {"cat": 0.35, ...}, for the classes that it names')
    add(
        "--batch-size",
        type=positive,
        default=1,
        help="number of images of one shape that the model receives at once (default: %(default)s, which is the "
        "fastest on CPUs)",
    )
    add("--tile", type=count, metavar="PIXELS", help="cut images into tiles of this side; default: DATASETS.TILE.SIZE")
    add("--overlap", type=float, help="overlap of tiles, as a share of their side; default: DATASETS.TILE.OVERLAP")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Checks what needs no detector, and makes ``input`` the paths of the images, or None to read them."""
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold {args.confidence_threshold}: must be within 0 and 1.")
    if args.overlap is not None and not 0 <= args.overlap <= 0.9:
        raise UserError(f"--overlap {args.overlap}: must be within 0 and 0.9.")
    if not args.output and not args.json and args.webcam is None:
        raise UserError("--output: name a folder for the pictures, or a file for the results with --json.")
    if args.input and _STDIN in args.input and len(args.input) > 1:
        raise UserError("--input -: reads all paths from the standard input; leave the others out.")
    if args.input and args.input != [_STDIN]:
        args.input = find_images(args.input, recursive=args.recursive)
        folder = args.output and os.path.realpath(args.output)
        if folder and any(os.path.realpath(os.path.dirname(path)) == folder for path in args.input):
            raise UserError(
                f"--output {args.output}: has images of --input, which would be overwritten; choose another."
            )
    if os.path.isdir(args.json or ""):
        raise UserError(f"--json {args.json}: is a folder; name a file.")
    if args.json and args.json != STDOUT:
        make_folder("--json, in", os.path.dirname(args.json) or ".")
    if args.input and args.output:
        make_folder("--output", args.output)


def _run(args: argparse.Namespace, tally: _Tally) -> None:
    video = None if args.input else Video(args.video_input if args.webcam is None else args.webcam)
    predictor = clq.load(args.config_file, opts=args.opts)
    thresholds = np.full(len(predictor.categories.names), args.confidence_threshold, np.float32)
    if args.thresholds:
        thresholds = read_thresholds(args.thresholds, predictor.categories.names, args.confidence_threshold)
    options = Options(
        batch_size=args.batch_size,
        tile=args.tile,
        overlap=args.overlap,
        keep_images=bool(args.output) or args.webcam is not None,
        slow=args.input == [_STDIN],
        live=args.webcam is not None,
    )
    total = video.length if video else None if args.input == [_STDIN] else len(args.input)
    outcomes = predict_all(predictor, _sources(args, video), options)
    bar = tqdm(total=total, unit=f" {tally.unit}s", disable=None, file=sys.stderr)
    with contextlib.closing(outcomes), bar, contextlib.suppress(Closed):
        _write(args, outcomes, thresholds, tally, bar, video)
    text = f"{tally.done} {tally.unit}s, {tally.skipped} skipped, {tally.detections} detections"
    print(text, file=sys.stderr if args.json == STDOUT else sys.stdout, flush=True)


def _sources(args: argparse.Namespace, video: Video | None) -> Iterator[Source]:
    if video is not None:
        name = os.fspath(args.video_input) if args.webcam is None else f"webcam {args.webcam}"
        return (Source(i, name, frame) for i, frame in enumerate(video.frames()))
    paths: Iterable[str] = read_lines(sys.stdin.fileno()) if args.input == [_STDIN] else args.input
    return (Source(i, path) for i, path in enumerate(paths))


def _write(
    args: argparse.Namespace,
    outcomes: Iterable[Outcome],
    thresholds: np.ndarray,
    tally: _Tally,
    bar: tqdm,
    video: Video | None,
) -> None:
    """Writes the outcomes as they come."""

    def report(line: str) -> None:
        if args.json != STDOUT:
            with bar.external_write_mode(file=sys.stdout):
                print(line, flush=True)

    of = "" if bar.total is None else f"/{bar.total}"
    with open_json(args.json) as results, _open_output(args, report, video) as pictures:
        for outcome in outcomes:
            number, path = outcome.source.number, outcome.source.path
            if outcome.result is None:
                tally.skipped += 1
                results.skip(number, path, outcome.error)
                with bar.external_write_mode(file=sys.stderr):
                    print(f"{path}: skipped: {outcome.error}", file=sys.stderr, flush=True)
            else:
                found = outcome.result.above(thresholds)
                results.add(number, found, **({"seconds": round(number / video.fps, 3)} if video else {}))
                pictures.add(found, f"[{number + 1}{of}] {path}: {len(found)} detections")
                tally.done += 1
                tally.detections += len(found)
            bar.update()


def _open_output(args: argparse.Namespace, report, video: Video | None) -> AbstractContextManager[Output]:
    if video is None:
        return open_pictures(args.output, report) if args.output else open_nothing()
    if not args.output:
        return open_nothing() if args.json else open_video(None, video)
    path = args.output
    if os.path.isdir(path) or not os.path.splitext(path)[1]:
        make_folder("--output", path)
        name = (
            f"webcam_{args.webcam}"
            if args.webcam is not None
            else os.path.splitext(os.path.basename(args.video_input))[0]
        )
        path = os.path.join(path, f"{name}.mp4")
    make_folder("--output, in", os.path.dirname(path) or ".")
    if args.video_input and os.path.exists(path) and os.path.samefile(path, args.video_input):
        raise UserError(f"--output {args.output}: is the video itself; choose another.")
    return open_video(path, video)
