import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import clq
import pytest
import torch
from clq.engine.optimizer import learning_rate
from clq.engine.trainer import Trainer

ROOT = Path(__file__).parents[1]
SHORT = ["DATASETS.TEST", "[]", "SOLVER.BASE_LR", "0.004"]


def printed_results(folder):
    """What the log of the last evaluation gives to copy: AP, AP50, ..., all digits."""
    return re.findall(r"copypaste: (\d\S+)", (folder / "log.txt").read_text())


def checkpoint(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def optimizer(folder):
    return checkpoint(folder)["trainer"]["_trainer"]["optimizer"]


def test_training_learns_and_reports(trained):
    (results,) = printed_results(trained)
    ap, ap50 = map(float, results.split(",")[:2])
    assert ap > 20 and ap50 > 60  # plain rectangles; untrained: 0
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    assert f"{last['bbox/AP']:.4f}" == results.split(",")[0]
    report = json.loads((trained / "inference/shapes_val/metrics.json").read_text())["shapes_val"]
    assert last["report/TIDE_Loc"] == report["tide"]["cost"]["Loc"]
    assert (trained / "inference/shapes_val/report.html").is_file()


@pytest.mark.parametrize("assigner", ["simota", "max_iou"])
def test_a_training_with_another_assigner_learns(assigner, tiny, tmp_path, run):
    argv = ["--config-file", tiny, "OUTPUT_DIR", tmp_path, "MODEL.CLQ.ASSIGN.NAME", assigner, "SOLVER.MAX_ITER", 30]
    assert run("train_net.py", *argv) == 0
    (results,) = printed_results(tmp_path)
    assert float(results.split(",")[1]) > 25  # AP50 after half of the usual training; untrained: 0


def test_the_log_counts_the_objects_of_each_class(tiny, trained):
    """Detectron2's table, for the training set and for the test set."""
    log = re.sub(r"\x1b\[\d+m", "", (trained / "log.txt").read_text())
    tables = re.findall(r"Distribution of instances among all 2 categories:\n((?:\|.*\n)+)", log)
    for table, name in zip(tables, ("shapes_train", "shapes_val"), strict=True):
        content = json.loads((Path(tiny).parent / f"{name}.json").read_text())
        ids = [a["category_id"] for a in content["annotations"]]
        counts = {key: int(value) for key, value in re.findall(r"(\w+) +\| (\d+)", table)}
        assert counts == {"blue": ids.count(3), "red": ids.count(7), "total": len(ids)}


def test_learning_rate_is_scaled_to_the_batch_and_logged(trained):
    # The config: BASE_LR 0.004 for 8 images, 4 in a batch.
    assert "Learning rate 0.002 = SOLVER.BASE_LR 0.004 x 4 images per batch / 8" in (trained / "log.txt").read_text()
    assert {group["initial_lr"] for group in optimizer(trained)["param_groups"]} == {0.002}


@pytest.mark.parametrize("reference_batch, rate", [(8, 0.002), (0, 0.008)])  # from BASE_LR 0.004
def test_more_workers_than_the_config_is_for_scale_the_rate_once(tiny, reference_batch, rate):
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 1, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.REFERENCE_BATCH", reference_batch]
    cfg = Trainer.auto_scale_workers(clq.setup_cfg(tiny, opts), 2)
    assert cfg.SOLVER.IMS_PER_BATCH == 4
    assert learning_rate(cfg) == pytest.approx(rate)


def test_eval_only_prints_what_training_printed(tiny, trained, tmp_path, run):
    weights = trained / "model_final.pth"
    assert (
        run("train_net.py", "--config-file", tiny, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path) == 0
    )
    assert printed_results(tmp_path) == printed_results(trained)
    results = "inference/shapes_val/coco_instances_results.json"
    assert (tmp_path / results).read_text() == (trained / results).read_text()


def test_saved_config_evaluates_without_the_training_set(trained, tiny, tmp_path, run):
    saved = (trained / "config.yaml").read_text()
    train_json = str(Path(tiny).parent / "shapes_train.json")
    assert "NUM_CLASSES: 2" in saved and train_json in saved
    (tmp_path / "config.yaml").write_text(saved.replace(train_json, str(tmp_path / "gone.json")))
    argv = ["MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    assert run("train_net.py", "--config-file", tmp_path / "config.yaml", "--eval-only", *argv) == 0
    assert printed_results(tmp_path) == printed_results(trained)


def test_resume_continues_where_the_training_stopped(tiny, tmp_path, run):
    argv = ["--config-file", tiny, "--resume", *SHORT, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER"]
    assert run("train_net.py", *argv, 2) == 0
    assert checkpoint(tmp_path)["iteration"] == 1
    assert run("train_net.py", *argv, 5) == 0
    assert "Starting training from iteration 2" in (tmp_path / "log.txt").read_text()
    assert checkpoint(tmp_path)["iteration"] == 4
    steps = {int(state["step"]) for state in optimizer(tmp_path)["state"].values()}
    assert steps == {5}  # 2 before, 3 after
    assert checkpoint(tmp_path)["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 5


def test_the_average_of_the_weights_is_evaluated_saved_and_resumed(tiny, trained, tmp_path, run):
    argv = ["--config-file", tiny, "--resume", "MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path]
    argv += ["SOLVER.EMA.ENABLED", True, "SOLVER.MAX_ITER"]
    assert run("train_net.py", *argv, 2) == 0
    before = checkpoint(tmp_path)["trainer"]["hooks"]["EMAHook"]
    assert run("train_net.py", *argv, 3) == 0
    after, weights = checkpoint(tmp_path)["trainer"]["hooks"]["EMAHook"], checkpoint(tmp_path)["model"]
    assert (before["n_averaged"], after["n_averaged"]) == (2, 3)
    final = torch.load(tmp_path / "model_final_ema.pth", weights_only=True)["model"]
    assert final.keys() == weights.keys()
    for name, value in weights.items():
        if value.is_floating_point():  # after two steps 3 / 12 of the average is kept
            torch.testing.assert_close(final[name], 0.25 * before["module." + name] + 0.75 * value)
        assert torch.equal(final[name], after["module." + name])
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    own, average = printed_results(tmp_path)[-2:]
    assert f"{last['bbox/AP50']:.4f}" == own.split(",")[1] and f"{last['EMA/bbox/AP50']:.4f}" == average.split(",")[1]
    assert (tmp_path / "ema/inference/shapes_val/coco_instances_results.json").is_file()

    argv = ["--eval-only", "MODEL.WEIGHTS", tmp_path / "model_final_ema.pth", "OUTPUT_DIR", tmp_path / "eval"]
    assert run("train_net.py", "--config-file", tiny, *argv) == 0
    assert printed_results(tmp_path / "eval") == [average]


@pytest.mark.parametrize("amp", [False, True])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(amp, tiny, tmp_path, run):
    """With a backbone in which batch normalisation does not see the parts; with loss scaling, too."""
    found = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        opts = ["SOLVER.ACCUMULATE", parts, "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", folder, "MODEL.RESNETS.NORM", "GN"]
        opts += ["SOLVER.AMP.ENABLED", amp, "SOLVER.AMP.DTYPE", "fp16", "SOLVER.OPTIMIZER", "SGD"]
        opts += ["INPUT.MIN_SIZE_TRAIN", [48]]  # CPUs take long for convolutions in fp16
        assert run("train_net.py", "--config-file", tiny, *SHORT, *opts) == 0
        (line,) = (folder / "metrics.json").read_text().splitlines()
        found.append((json.loads(line), checkpoint(folder)["model"]))
    (whole, weights), (split, others) = found
    for name in ("total_loss", "loss_cls", "loss_box", "loss_quality", "lr"):
        assert split[name] == pytest.approx(whole[name], rel=1e-3 if amp else 1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_resume_with_another_optimizer(tiny, trained, tmp_path, run, capsys):
    for name in ("model_final.pth", "last_checkpoint"):
        shutil.copy(trained / name, tmp_path)
    argv = ["--config-file", tiny, "--resume", *SHORT, "OUTPUT_DIR", tmp_path, "SOLVER.OPTIMIZER"]
    assert run("train_net.py", *argv, "SGD") == 2
    assert "SOLVER.OPTIMIZER SGD: the checkpoint to resume was trained with another one" in capsys.readouterr().err
    assert run("train_net.py", *argv, "AdamW", "SOLVER.WEIGHT_DECAY_BIAS", 0.5) == 2
    assert "other parameter groups; set SOLVER.WEIGHT_DECAY_NORM" in capsys.readouterr().err
    state = checkpoint(tmp_path)
    del state["trainer"]["_trainer"]
    torch.save(state, tmp_path / "model_final.pth")
    assert run("train_net.py", *argv, "AdamW") == 2
    assert "has no optimizer state" in capsys.readouterr().err


def test_resume_says_which_learning_rate_goes_on(tiny, trained, tmp_path, run):
    for name in ("model_final.pth", "last_checkpoint"):
        shutil.copy(trained / name, tmp_path)
    opts = ["DATASETS.TEST", "[]", "SOLVER.BASE_LR", 0.008, "SOLVER.MAX_ITER", 41, "OUTPUT_DIR", tmp_path]
    assert run("train_net.py", "--config-file", tiny, "--resume", *opts) == 0
    assert "Learning rate 0.004 is not used: the resumed training continues with its own, 0.002" in (
        (tmp_path / "log.txt").read_text()
    )
    assert {group["initial_lr"] for group in optimizer(tmp_path)["param_groups"]} == {0.002}


def damage(path):
    """Changes the pixels in a PNG, not its header."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def damaged(tiny, tmp_path):
    """Copies of the generated data sets with damaged images: ``DATASETS`` as options, and the damaged files."""
    data, opts, files = Path(tiny).parent, [], []
    for name, numbers in (("shapes_train", [0, 3, 4, 9]), ("shapes_val", [2])):
        shutil.copytree(data / name, tmp_path / name)
        files += [tmp_path / name / f"{i}.png" for i in numbers]
        opts.append({"name": f"damaged_{name}", "json": str(data / f"{name}.json"), "images": str(tmp_path / name)})
    for path in files:
        damage(path)
    opts = ["COCO_JSON", repr(opts), "TRAIN", "['damaged_shapes_train']", "TEST", "['damaged_shapes_val']"]
    return [f"DATASETS.{word}" if i % 2 == 0 else word for i, word in enumerate(opts)], files


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_training_image_ends_the_training_with_one_line(tiny, damaged, tmp_path, run, capsys, workers):
    opts = [*damaged[0], "OUTPUT_DIR", tmp_path / "out", "DATALOADER.NUM_WORKERS", workers]
    assert run("train_net.py", "--config-file", tiny, *SHORT, *opts) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]  # torch may warn before
    assert "Traceback" not in out + err
    assert re.fullmatch(rf"\S+: image {tmp_path}/shapes_train/\d.png: [^\\]*; replace or remove it\.", line)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_left_out_of_training_and_evaluation(tiny, damaged, tmp_path, run, workers):
    out, (opts, files) = tmp_path / "out", damaged
    opts = [*opts, "OUTPUT_DIR", out, "DATALOADER.NUM_WORKERS", workers, "DATASETS.ON_ERROR", "skip"]
    assert run("train_net.py", "--config-file", tiny, *opts, "SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 5) == 0
    entries = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert sorted(entry["image"] for entry in entries) == sorted(map(str, files))  # 48 images were drawn from 16
    results = out / "inference" / "damaged_shapes_val"
    truth = json.loads((results / "annotations.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == ["0.png", "1.png", "3.png"]
    assert "bbox/AP" in (out / "metrics.json").read_text()


def test_a_test_set_without_annotations_gets_results(tiny, tmp_path, run):
    data = Path(tiny).parent
    content = json.loads((data / "shapes_val.json").read_text())
    del content["annotations"]
    (tmp_path / "public.json").write_text(json.dumps(content))
    public = entry("public", json=tmp_path / "public.json", images=data / "shapes_val")
    train = entry("shapes_train", json=data / "shapes_train.json", images=data / "shapes_train")
    opts = ["DATASETS.COCO_JSON", f"[{train[1:-1]}, {public[1:-1]}]", "DATASETS.TEST", "['public']"]
    opts += ["OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1]
    assert run("train_net.py", "--config-file", tiny, *SHORT, *opts) == 0
    assert (tmp_path / "out" / "inference" / "public" / "coco_instances_results.json").is_file()
    assert "no metrics can be computed" in (tmp_path / "out" / "log.txt").read_text()


def test_weights_of_other_classes_start_a_training_with_a_new_class_layer(tiny, trained, other_classes, tmp_path, run):
    opts = ["MODEL.WEIGHTS", other_classes, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 1, *SHORT]
    assert run("train_net.py", "--config-file", tiny, *opts) == 0
    assert (
        "trained for 3 classes, but this model has 2; the class layer is initialized again"
        in (tmp_path / "log.txt").read_text()
    )


@pytest.fixture(scope="module")
def other_classes(trained, tmp_path_factory):
    """A checkpoint of the tiny model with 3 classes instead of 2."""
    weights = checkpoint(trained)["model"]
    for name in ("weight", "bias"):
        layer = weights[f"head.cls_logits.{name}"]
        weights[f"head.cls_logits.{name}"] = torch.cat([layer, layer[:1]])
    path = tmp_path_factory.mktemp("other") / "three.pth"
    torch.save({"model": weights}, path)
    return path


def entry(name, **paths):
    return f"[{{'name': '{name}', 'json': '{paths['json']}', 'images': '{paths['images']}'}}]"


# What the user gets wrong, and what the one line must name: the culprit and the way out.
MISTAKES = {
    "number of classes": (["MODEL.CLQ.NUM_CLASSES", 3], ["NUM_CLASSES is 3", "shapes_train has 2", "-1 or 2"]),
    "data set": (["DATASETS.TRAIN", "['shapes_trian']"], ["no data set shapes_trian", "did you mean shapes_train"]),
    "key": (["MODEL.CLQ.NUM_CLASES", 2], ["no config key MODEL.CLQ.NUM_CLASES", "did you mean MODEL.CLQ.NUM_CLASSES"]),
    "type": (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER many"]),
    "weights": (["MODEL.WEIGHTS", "gone.pth"], ["gone.pth: no such file", "MODEL.WEIGHTS"]),
    "part": (["MODEL.CLQ.QUALITY.NAME", "iuo"], ["QUALITY.NAME iuo: must be one of none, centerness, iou"]),
    "optimizer": (["SOLVER.OPTIMIZER", "Adam"], ["SOLVER.OPTIMIZER Adam: must be one of SGD, AdamW"]),
    "model": (["MODEL.META_ARCHITECTURE", "CQL"], ["MODEL.META_ARCHITECTURE CQL", "must be one of", "RetinaNet"]),
    "backbone": (["MODEL.BACKBONE.NAME", "resnet"], ["MODEL.BACKBONE.NAME resnet", "build_dense_resnet_fpn_backbone"]),
    "depth": (["MODEL.RESNETS.DEPTH", 20], ["MODEL.RESNETS.DEPTH 20", "18, 34, 50"]),
    "depth's width": (
        ["MODEL.RESNETS.RES2_OUT_CHANNELS", 256],
        ["MODEL.BACKBONE, RESNETS, SHUFFLENET and FPN", "RES2_OUT_CHANNELS"],
    ),
    "norm": (["MODEL.FPN.NORM", "GNN"], ["MODEL.BACKBONE, RESNETS, SHUFFLENET and FPN", "GNN"]),
    "levels": (["MODEL.CLQ.IN_FEATURES", "['P3', 'p4', 'p5']"], ["IN_FEATURES ['P3', 'p4', 'p5']: name", "p3, p4, p5"]),
    "idle level": (["MODEL.CLQ.IN_FEATURES", "['p4', 'p5']"], ["leaves p3 without a use"]),
    "steps": (["SOLVER.STEPS", "(9, 5)"], ["SOLVER.STEPS, MAX_ITER", "refuses"]),
    "rate": (["SOLVER.BASE_LR", -1.0], ["SOLVER.BASE_LR", "refuses"]),
    "infinite rate": (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR inf: must be finite"]),
    "infinite factor": (["SOLVER.WARMUP_FACTOR", "-1e999"], ["SOLVER.WARMUP_FACTOR -inf: must be finite"]),
    "policy": (["SOLVER.ON_NONFINITE", "ignore"], ["SOLVER.ON_NONFINITE ignore: must be one of stop, skip"]),
    "flip": (["INPUT.RANDOM_FLIP", "both"], ["RANDOM_FLIP", "refuses"]),
    "format": (["INPUT.FORMAT", "rgb"], ["INPUT.FORMAT rgb", "RGB, BGR"]),
    "masks": (["MODEL.MASK_ON", True], ["MODEL.MASK_ON", "only box detectors"]),
    "detections": (["TEST.DETECTIONS_PER_IMAGE", -1], ["TEST.DETECTIONS_PER_IMAGE -1", "at least 1"]),
    "schedule": (["SOLVER.LR_SCHEDULER_NAME", "Cosine"], ["SOLVER.LR_SCHEDULER_NAME Cosine", "WarmupCosineLR"]),
    "sampler": (["DATALOADER.SAMPLER_TRAIN", "Random"], ["DATALOADER.SAMPLER_TRAIN Random", "TrainingSampler"]),
    "type of evaluation": (["TEST.AMP.DTYPE", "half"], ["TEST.AMP.DTYPE half: must be one of auto, fp16, bf16"]),
    "batch": (["SOLVER.IMS_PER_BATCH", 0], ["SOLVER.IMS_PER_BATCH 0", "at least 1"]),
    "folder": (["OUTPUT_DIR", __file__], [f"OUTPUT_DIR {__file__}", "choose another"]),
    "json": (["DATASETS.COCO_JSON", entry("shapes_train", json="gone.json", images=".")], ["gone.json does not exist"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_status_2(mistake, tiny, tmp_path, run, capsys):
    opts, named = MISTAKES[mistake]
    assert run("train_net.py", "--config-file", tiny, "OUTPUT_DIR", tmp_path, *opts) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in named:
        assert part in line


def test_evaluating_a_checkpoint_of_other_classes(tiny, other_classes, tmp_path, run, capsys):
    opts = ["MODEL.WEIGHTS", other_classes, "OUTPUT_DIR", tmp_path]
    assert run("train_net.py", "--config-file", tiny, "--eval-only", *opts) == 2
    assert f"{other_classes}: trained for 3 classes, but this model has 2; use" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_neither_evaluated_nor_trained(tiny, trained, tmp_path, run, capsys):
    state = checkpoint(trained)
    state["model"]["head.box_pred.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    argv = ["--config-file", tiny, "MODEL.WEIGHTS", tmp_path / "nan.pth", "OUTPUT_DIR", tmp_path / "out"]
    for mode in (["--eval-only"], []):
        assert run("train_net.py", *mode, *argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "nan.pth: head.box_pred.weight has values that are NaN or infinite" in line


@pytest.mark.parametrize("backend", ["gather", "grid_sample", "torchvision"])
def test_a_training_that_diverges_ends_with_one_line_and_a_file(backend, tiny, tmp_path, run, capsys):
    """Through the feature alignment, whose taps follow boxes that are not finite."""
    opts = ["SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", 10]
    opts += ["MODEL.CLQ.ALIGN.BACKEND", backend, "SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", "[]"]
    assert run("train_net.py", "--config-file", tiny, "OUTPUT_DIR", tmp_path, *opts) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    iteration = int(re.search(r"iteration (\d+): ", line)[1])
    report = json.loads((tmp_path / f"nonfinite_{iteration:07d}.json").read_text())
    assert "Traceback" not in out and len(report["ranks"][0]["images"]) == 4
    for path in tmp_path.glob("model_*.pth"):
        weights = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())


def test_several_machines_without_gpus(tiny, run, capsys):
    assert run("train_net.py", "--config-file", tiny, "--num-machines", 2, "--num-gpus", 0) == 2
    assert "--num-machines 2: takes --num-gpus or --num-processes of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [("--num-gpus", 2), ("--num-machines", 2, "--dist-url", "tcp://127.0.0.1:1")])
def test_more_gpus_than_there_are(asked, tiny, run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run("train_net.py", "--config-file", tiny, *asked) == 2
    assert "this machine has 0 GPU(s); ask for fewer" in capsys.readouterr().err


def test_command_line_ends_with_one_line_and_status_2():
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", "gone.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "gone.yaml: no such config file, and no config of the project has this name; clq.configs.list() names those "
        "that exist."
    )
    assert "Traceback" not in done.stderr
