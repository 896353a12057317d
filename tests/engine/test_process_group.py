"""Two ranks on the CPU, started by the project's launcher: what they compute, and how the failure of one ends both.

tests/test_stop_signals.py has whole trainings of two ranks.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import clq
import pytest
import torch
from clq.data.num_classes import fill_num_classes
from clq.engine import torch_launcher
from clq.engine.launch import argument_parser, launch_cli
from clq.engine.trainer import Trainer
from clq.errors import UserError
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

ROOT = Path(__file__).parents[2]
TIMEOUT = 2  # seconds for which a rank may be stopped
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="heartbeats read /proc")


def config(args):
    cfg = clq.setup_cfg(args.config_file, args.opts)
    fill_num_classes(cfg)
    return cfg


def image(index, num_boxes):
    """An image of noise with boxes, for a detector in double precision."""
    rng = torch.Generator().manual_seed(index)
    corner, size = torch.rand(num_boxes, 2, generator=rng) * 30, 20 + torch.rand(num_boxes, 2, generator=rng) * 14
    instances = Instances((64, 64), gt_boxes=Boxes(torch.cat((corner, corner + size), 1)))
    instances.gt_classes = torch.arange(num_boxes) % 2
    return {"image": torch.rand(3, 64, 64, generator=rng, dtype=torch.double) * 255, "instances": instances}


def train(args):
    """20 steps of SGD on batches of two images, one for each of two ranks; the second has no object."""
    torch.manual_seed(comm.get_rank())  # DistributedDataParallel starts all from the weights of rank 0
    cfg = config(args)
    model = build_model(cfg).double()
    for group in model.modules():
        if isinstance(group, torch.nn.GroupNorm):
            group.eps = 1e-2  # the variance of a small map of an untrained network is next to nothing
    model = create_ddp_model(model, device_ids=None, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    size, rank = comm.get_world_size(), comm.get_rank()
    for step in range(20):
        batch = [image(2 * step, 3), image(2 * step + 1, 0)]
        losses = model(batch[rank * 2 // size : (rank + 1) * 2 // size])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model = model.module if size > 1 else model
    torch.save(model.state_dict(), os.path.join(cfg.OUTPUT_DIR, f"{size}.{rank}.pth"))


def evaluate(args):
    """Writes the metrics of a detector whose running statistics differ between the ranks."""
    cfg = config(args)
    torch.manual_seed(0)
    model = build_model(cfg)
    clq.checkpoint.checkpointer.Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    if comm.get_rank() > 0:
        for buffer in model.backbone.buffers():
            buffer.fill_(3)
    results = Trainer.test(cfg, model)
    Path(cfg.OUTPUT_DIR, f"{comm.get_world_size()}.{comm.get_rank()}.json").write_text(json.dumps(results))


def fail(args):
    """Rank 1 ends in the way that the config's output folder is named after; rank 0 waits for it."""
    if comm.get_rank() == 1:
        way = Path(args.opts[-1]).name
        if way == "mistake":
            raise UserError("x.png: cannot be read; leave it out.")
        if way == "exception":
            raise ValueError("an error\nof two lines")
        os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)
    comm.synchronize()


@pytest.fixture(scope="module")
def ranks_stderr(tmp_path_factory):
    """What all ranks write to stderr: a file, because the process that forks them keeps its own from test to test."""
    path, own = tmp_path_factory.mktemp("ranks") / "stderr", os.dup(2)
    with path.open("w") as f:
        os.dup2(f.fileno(), 2)
    try:
        torch_launcher.start_fork_server()
    finally:
        os.dup2(own, 2)
        os.close(own)
    return path


@pytest.fixture
def launch(tiny, ranks_stderr, monkeypatch):
    """``launch(main, output, num_processes, *opts)`` -> exit status."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(main, output, num_processes, *opts, words=()):
        output.mkdir(exist_ok=True)
        argv = ["--config-file", tiny, "--num-processes", num_processes, *words, *opts, "OUTPUT_DIR", output]
        with pytest.raises(SystemExit) as exited:
            launch_cli(main, argument_parser().parse_args(list(map(str, argv))))
        return exited.value.code

    yield run
    torch.set_num_threads(threads)


def test_two_ranks_train_as_one_with_the_whole_batch(launch, tmp_path):
    """Weights after 20 steps, one rank without any object; the ranks agree with each other to the last bit."""
    for num_processes in (1, 2):
        assert launch(train, tmp_path, num_processes, "MODEL.RESNETS.NORM", "GN") == 0
    one, two, other = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("1.0", "2.0", "2.1"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
        assert torch.equal(two[name], other[name])


def test_two_ranks_evaluate_each_image_once(launch, tiny, trained, tmp_path):
    """Three images, and a single one, which leaves rank 1 without. All is as with one rank."""
    data, entries, names = Path(tiny).parent, [], ["three", "one"]
    for name, num_images in zip(names, (3, 1), strict=True):
        content = json.loads((data / "shapes_val.json").read_text())
        content["images"] = content["images"][:num_images]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= num_images]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        entries.append(f"{{name: {name}, json: {tmp_path}/{name}.json, images: {data}/shapes_val}}")
    opts = ["MODEL.WEIGHTS", trained / "model_final.pth", "DATASETS.COCO_JSON", f"[{', '.join(entries)}]"]
    opts += ["DATASETS.TRAIN", names[:1], "DATASETS.TEST", names]
    detections = []
    for num_processes in (1, 2):
        assert launch(evaluate, tmp_path, num_processes, *opts) == 0
        files = [tmp_path / f"inference/{name}/coco_instances_results.json" for name in names]
        detections.append([json.loads(file.read_text()) for file in files])
    one, two, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert not any(other.values())
    for name in names:
        assert two[name]["bbox"] == pytest.approx(one[name]["bbox"], abs=0.01, nan_ok=True)
    for ours, theirs in zip(*detections, strict=True):  # numbers of threads may differ, and with them the last digits
        assert [(x["image_id"], x["category_id"]) for x in ours] == [(x["image_id"], x["category_id"]) for x in theirs]
        assert [x["score"] for x in ours] == pytest.approx([x["score"] for x in theirs], abs=1e-4)


@pytest.mark.parametrize(
    ("way", "status", "lines"),
    [
        ("mistake", 2, [r"x\.png: cannot be read; leave it out\."]),
        # The other rank reports it as well, if it notices before the launcher ends it.
        ("killed", 1, [r"rank 1 \(\S+, process \d+\) was killed; see .*|", r"rank 1 was ended by SIGKILL\."]),
        ("stopped", 1, [r"rank 1 \(\S+, process \d+\) has been stopped for 2 s; see .*"]),
    ],
)
def test_the_end_of_one_rank_ends_the_other_with_one_line(way, status, lines, launch, ranks_stderr, tmp_path, capfd):
    start, before = time.monotonic(), len(ranks_stderr.read_text())
    assert launch(fail, tmp_path / way, 2, words=("--heartbeat-timeout", TIMEOUT)) == status
    assert time.monotonic() - start < 100 * TIMEOUT  # on any machine; torch's own time-out is 1800 s
    written = ranks_stderr.read_text()[before:] + capfd.readouterr().err
    found = [line.partition(": ")[2] for line in written.splitlines() if line.startswith(sys.argv[0])]
    assert len(found) in (len(lines), len([line for line in lines if not line.endswith("|")]))
    for line in lines:
        assert any(re.fullmatch(line, text) for text in (*found, "")), found
    assert all(any(re.fullmatch(line, text) for line in lines) for text in found)
