"""The keys of data sets, training and testing."""

from detectron2.data import build as loader

from clq.config.key import Key, Names, Number, OneOf

_DTYPES = OneOf(
    {
        "auto": "fp16 on CUDA, bf16 elsewhere.",
        "fp16": "float16; training scales the loss.",
        "bf16": "bfloat16.",
    }
)


def _has_weighted_samplers() -> bool:
    return hasattr(loader, "_build_weighted_sampler")


DATA_KEYS = (
    Key(
        "DATASETS.ON_ERROR",
        "error",
        "What happens to images that cannot be used and to faulty annotations.",
        OneOf(
            {
                "error": "The check before training refuses them. An image that turns out to be damaged later ends the "
                "training.",
                "skip": "They are left out, in evaluation with what is to be found in them, and are listed in "
                "OUTPUT_DIR/left_out.jsonl. In training, another image takes the place of one that turns out to be "
                "damaged.",
            }
        ),
    ),
    Key(
        "DATASETS.COCO_JSON",
        [],
        "Your own data sets in COCO format, which every script then knows by name: "
        "[{name: NAME, json: FILE, images: FOLDER}, ...]. Paths are relative to the working directory.",
    ),
    Key(
        "DATASETS.SETS",
        [],
        "Your own data sets in any of three formats, which every script then knows by name: a list of {name: NAME, "
        "coco: FILE}, {name: NAME, voc: FOLDER} and {name: NAME, yolo: FOLDER or data.yaml}. Each may have images, the "
        "folder of its images where that is another one, and split, the name of a split in ImageSets/Main or data.yaml "
        "or of subfolders. Shares in its place, such as split: {train: 0.8, val: 0.2, seed: 1}, make the data sets "
        "NAME_train and NAME_val. YOLO folders without a classes.txt need names, [a, b]. Paths are relative to the "
        "working directory; docs/your_data.md describes each format.",
    ),
    Key(
        "DATASETS.CLASSES",
        [],
        "The names of the classes that are used of the data sets in COCO_JSON and SETS, in the order of the model's "
        "outputs; [] for all of them. Objects of other classes count as background.",
        Names(may_be_empty=True),
    ),
    Key(
        "DATASETS.MAX_JSON_MIB",
        2048.0,
        "The upper bound on the size of a json file of annotations in MiB, checked before it is read.",
        Number(above=0),
    ),
    Key(
        "DATASETS.TRAIN_REPEAT_FACTOR",
        [],
        "For Detectron2's weighted samplers: a list of [name, factor]. The images of this training set are drawn more "
        "often than those of others by this factor. Detectron2's defaults lack this key, which its samplers read.",
        exists=_has_weighted_samplers,
    ),
    Key(
        "DATALOADER.RANDOM_SUBSET_RATIO",
        1.0,
        "The share of the training images that RandomSubsetTrainingSampler uses. Detectron2's sampler reads this key, "
        "which its version 0.6 lacks in its defaults.",
        Number(above=0, maximum=1),
    ),
)

TILE_KEYS = (
    Key(
        "DATASETS.TILE.SIZE",
        0,
        "The side in pixels of the square tiles into which images are cut, in training, evaluation and prediction, "
        "before INPUT resizes them. Detections are merged, so evaluation scores whole images. With 0 images are not "
        "cut.",
        Number(minimum=0),
    ),
    Key(
        "DATASETS.TILE.OVERLAP",
        0.2,
        "The overlap of neighbouring tiles, at least, as a share of their side. An object that is no larger than the "
        "overlap is whole in some tile.",
        Number(minimum=0, maximum=0.9),
    ),
    Key(
        "DATASETS.TILE.MIN_VISIBLE",
        0.25,
        "In training, a tile has the objects of which it shows at least this share of the box.",
        Number(minimum=0, maximum=1),
    ),
)

SOLVER_KEYS = (
    Key(
        "SOLVER.EPOCHS",
        0,
        "The number of times that a training sees each image. It sets SOLVER.MAX_ITER, TEST.EVAL_PERIOD and "
        "SOLVER.CHECKPOINT_PERIOD, whatever these are otherwise; an epoch has as many iterations as batches hold all "
        "training images. SOLVER.STEPS must then be fractions, and SOLVER.WARMUP_ITERS counts up to a tenth of the "
        "training. With 0, SOLVER.MAX_ITER says how long a training is. SOLVER.STEPS may be fractions of the training, "
        "such as (0.67, 0.89), in either case.",
        Number(minimum=0),
    ),
    Key(
        "SOLVER.CHECKPOINT_EPOCHS",
        1,
        "The number of epochs from one checkpoint to the next, with SOLVER.EPOCHS.",
        Number(minimum=1),
    ),
    Key(
        "SOLVER.PATIENCE",
        0,
        "The number of evaluations in a row without a better TEST.BEST_METRIC after which a training ends early. With "
        "0 it does not.",
        Number(minimum=0),
    ),
    Key(
        "SOLVER.CHECKPOINTS_KEPT",
        5,
        "The number of newest periodic checkpoints that a training keeps; older ones are deleted. The final checkpoint "
        "and the best one stay. With 0 all are kept.",
        Number(minimum=0),
    ),
    Key(
        "SOLVER.SAVE_SAFETENSORS",
        True,
        "Whether a training ends by writing model_final.safetensors: the weights alone, in a format that holds nothing "
        "else.",
    ),
    Key(
        "SOLVER.OPTIMIZER",
        "SGD",
        "The optimizer.",
        OneOf(
            {
                "SGD": "Stochastic gradient descent with SOLVER.MOMENTUM.",
                "AdamW": "Adam with decoupled weight decay.",
            }
        ),
    ),
    Key(
        "SOLVER.REFERENCE_BATCH",
        16,
        "The number of images per batch that SOLVER.BASE_LR is meant for. The learning rate is BASE_LR * IMS_PER_BATCH "
        "/ REFERENCE_BATCH, or BASE_LR where REFERENCE_BATCH is 0.",
        Number(minimum=0),
    ),
    Key(
        "SOLVER.ACCUMULATE",
        1,
        "The number of parts in which the batch of each process passes through backbone and head, one after the other. "
        "This takes less memory and one more forward pass. IMS_PER_BATCH is still the number of images of a step. "
        "Gradients are those of the whole batch, unless batch normalization is trained, which sees each part alone.",
        Number(minimum=1),
    ),
    Key(
        "SOLVER.ON_NONFINITE",
        "stop",
        "What happens at a step whose losses or gradients are NaN or infinite. Either way, nonfinite_ITERATION.json in "
        "OUTPUT_DIR describes it: the names of its images, their boxes, losses, learning rate and gradient norms.",
        OneOf(
            {
                "stop": "The training ends, on all processes, with one line.",
                "skip": "The step is left out: weights and running statistics stay as they were before it.",
            }
        ),
    ),
    Key(
        "SOLVER.MAX_NONFINITE_STEPS",
        10,
        "The number of steps in a row that SOLVER.ON_NONFINITE skip leaves out. The next one ends the training.",
        Number(minimum=1),
    ),
    Key(
        "SOLVER.EMA.ENABLED",
        False,
        "Whether an exponential moving average of the weights is kept, evaluated and saved beside them.",
    ),
    Key(
        "SOLVER.EMA.DECAY",
        0.9998,
        "The decay of the moving average per step. After n steps it is at most (1 + n) / (10 + n).",
        Number(minimum=0, below=1),
    ),
    Key(
        "SOLVER.AMP.DTYPE",
        "auto",
        "The data type of mixed precision in training, which SOLVER.AMP.ENABLED switches on.",
        _DTYPES,
    ),
)

LOGGING_KEYS = (
    Key(
        "LOGGING.WANDB.ENABLED",
        False,
        "Whether a training writes its metrics to Weights & Biases, too (`pip install wandb`). The variables of its "
        "library apply, such as WANDB_MODE=offline and WANDB_ENTITY.",
    ),
    Key("LOGGING.WANDB.PROJECT", "clq", "The project at Weights & Biases."),
    Key(
        "LOGGING.MLFLOW.ENABLED",
        False,
        "Whether a training writes its metrics to MLflow, too (`pip install mlflow`). The variables of its "
        "library apply, such as MLFLOW_TRACKING_URI.",
    ),
    Key("LOGGING.MLFLOW.EXPERIMENT", "clq", "The experiment at MLflow."),
)

TEST_KEYS = (
    Key(
        "TEST.EVAL_EPOCHS",
        1,
        "The number of epochs from one evaluation to the next, with SOLVER.EPOCHS; 0 evaluates at the end only.",
        Number(minimum=0),
    ),
    Key(
        "TEST.BEST_METRIC",
        "bbox/AP",
        "The metric whose best value decides what model_best.pth holds, by its name in metrics.json: bbox/AP, "
        "bbox/AP50, bbox/AP75, bbox/APs, bbox/APm, bbox/APl, or bbox/AP-NAME of a class. EMA/bbox/AP is that of the "
        "moving average (SOLVER.EMA), which model_best.pth then holds. Of several test sets the first counts; "
        "NAME/bbox/AP chooses another one.",
    ),
    Key("TEST.AMP.ENABLED", False, "Whether evaluation and prediction use mixed precision."),
    Key("TEST.AMP.DTYPE", "auto", "The data type of mixed precision in evaluation and prediction.", _DTYPES),
    Key(
        "TEST.REPORT",
        True,
        "Whether an evaluation writes a report beside its results: report.html, its pictures, metrics.json and "
        "thresholds.json. Of the evaluations of a training, only the last one does.",
    ),
    Key(
        "TEST.REPORT_PRECISION",
        0.9,
        "The precision that the thresholds in thresholds_precision.json reach on the test set.",
        Number(above=0, maximum=1),
    ),
    Key(
        "TEST.REPORT_CANDIDATES",
        0,
        "The number of images whose candidates before NMS are kept, so that the report shows what NMS loses. The "
        "detector sees these images twice. Evaluations with TEST.AUG keep none, and neither does a training that "
        "ends early. DATASETS.TILE and models of Detectron2 have none.",
        Number(minimum=0),
    ),
)
