"""The keys of what a detector learns: assignment, box coding, losses, and quality branch."""

from clq.config.key import Key, Number, Numbers, OneOf

ASSIGN_KEYS = (
    Key(
        "MODEL.CLQ.ASSIGN.NAME",
        "atss",
        "The assigner, which decides which locations learn which ground truth.",
        OneOf(
            {
                "atss": "ATSS, by the IoU of the anchors with the ground truths.",
                "task": "TOOD's task-aligned assignment by the predictions, after a first part of the training that "
                "uses ATSS.",
                "simota": "SimOTA, YOLOX's assignment by the predictions.",
                "max_iou": "RetinaNet's assignment by the IoU of the anchors with the ground truths.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.TOPK",
        9,
        "The number of candidates that ATSS takes per level and ground truth, k.",
        Number(minimum=1),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.WARMUP",
        0.33333,
        "The share of SOLVER.MAX_ITER that ASSIGN.NAME task trains with the assigner and the losses of ATSS first. "
        "TOOD does so for 4 of its 12 epochs. A training that is resumed with another MAX_ITER changes over at another "
        "iteration.",
        Number(minimum=0, maximum=1),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.TASK_TOPK",
        13,
        "The number of locations that ASSIGN.NAME task takes per ground truth.",
        Number(minimum=1),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.TASK_ALPHA",
        1.0,
        "The exponent of the class score in TOOD's alignment metric, alpha.",
        Number(above=0),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.TASK_BETA",
        6.0,
        "The exponent of the IoU in TOOD's alignment metric, beta.",
        Number(minimum=0),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.SIMOTA_RADIUS",
        2.5,
        "Half the side of the square around the centre of a ground truth in which ASSIGN.NAME simota prefers "
        "locations, in strides.",
        Number(above=0),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.SIMOTA_CANDIDATES",
        10,
        "The number of largest IoUs of a ground truth whose sum is the number of locations that ASSIGN.NAME simota "
        "gives it.",
        Number(minimum=1),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.SIMOTA_IOU_WEIGHT",
        3.0,
        "The weight of the IoU's cost beside the cost of the classification in ASSIGN.NAME simota.",
        Number(minimum=0),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.MAX_IOU_THRESHOLDS",
        [0.4, 0.5],
        "The IoU below which ASSIGN.NAME max_iou makes an anchor background, and the IoU from which it makes it "
        "positive. Anchors in between take no part in the losses.",
        Numbers(("background", "positive"), Number(above=0, maximum=1), ascending=True),
    ),
    Key(
        "MODEL.CLQ.ASSIGN.MAX_IOU_LOW_QUALITY",
        True,
        "Whether ASSIGN.NAME max_iou makes the best anchors of each ground truth positive whatever their IoU is.",
    ),
)

BOX_KEYS = (
    Key(
        "MODEL.CLQ.BOX.CODING",
        "distribution",
        "What the head predicts of a box.",
        OneOf(
            {
                "delta": "Offsets of centre and size from the anchor, as in ATSS.",
                "distance": "Logarithms of the distances from the location to the four sides, as in VFNet.",
                "ltrb": "The distances from the location to the four sides, as in TOOD.",
                "distribution": "A distribution of the distance to each of the four sides, as in GFL.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.BOX.WEIGHTS",
        [10.0, 10.0, 5.0, 5.0],
        "The factors of the four numbers of BOX.CODING delta.",
        Numbers(("dx", "dy", "dw", "dh"), Number(above=0)),
    ),
    Key(
        "MODEL.CLQ.BOX.REG_MAX",
        16,
        "The last bin of the distribution of each side in strides, GFL's n. A distribution has n + 1 bins.",
        Number(minimum=1),
    ),
    Key(
        "MODEL.CLQ.BOX.LOSS_WEIGHT",
        2.0,
        "The weight of the GIoU loss. It is 2 in the code of all detectors here; equation 5 of CLQ's paper has 1.",
        Number(minimum=0),
    ),
    Key(
        "MODEL.CLQ.BOX.DFL_WEIGHT",
        0.25,
        "The weight of the distribution focal loss, GFL's lambda_1.",
        Number(minimum=0),
    ),
    Key(
        "MODEL.CLQ.BOX.WEIGHT_BY",
        "score",
        "The weight of each positive location in the box losses.",
        OneOf(
            {
                "none": "All positive locations have the weight 1.",
                "centerness": "The centerness of the anchor in the ground truth, as in ATSS.",
                "score": "The largest score of the location, without gradient, as in GFL and CLQ.",
                "iou": "The IoU of the decoded box with the ground truth, as in VFNet.",
                "alignment_metric": "TOOD's alignment metric. It needs ASSIGN.NAME task, which computes it.",
            },
            renamed={"alignment": "alignment_metric"},
        ),
    ),
    Key(
        "MODEL.CLQ.BOX.WEIGHT_FLOOR",
        0.0,
        "The box losses are divided by the sum of the weights of BOX.WEIGHT_BY, or by this number where the sum is "
        "smaller. MMDetection has 1 in ATSS, GFL and VFNet. The authors of GFLv2, CLQ, NanoDet and TOOD have no floor, "
        "which is 0.",
        Number(minimum=0),
    ),
)

CLS_KEYS = (
    Key(
        "MODEL.CLQ.CLS.LOSS",
        "qfl",
        "The classification loss.",
        OneOf(
            {
                "focal": "Focal loss with the target 1.",
                "qfl": "Quality focal loss with the IoU as target (equation 4 of CLQ's paper).",
                "vfl": "VFNet's varifocal loss with the IoU as target.",
            }
        ),
    ),
    Key("MODEL.CLQ.CLS.BETA", 2.0, "The exponent beta of the quality focal loss.", Number(minimum=1)),
    Key("MODEL.CLQ.CLS.FOCAL_ALPHA", 0.25, "The weight alpha of focal loss.", Number(minimum=0, maximum=1)),
    Key("MODEL.CLQ.CLS.FOCAL_GAMMA", 2.0, "The exponent gamma of focal loss.", Number(minimum=0)),
    Key("MODEL.CLQ.CLS.VFL_ALPHA", 0.75, "The weight alpha of varifocal loss.", Number(minimum=0)),
    Key("MODEL.CLQ.CLS.VFL_GAMMA", 2.0, "The exponent gamma of varifocal loss.", Number(minimum=0)),
)

QUALITY_KEYS = (
    Key(
        "MODEL.CLQ.QUALITY.NAME",
        "iou",
        "The quality branch, and how the score contains its output.",
        OneOf(
            {
                "none": "No quality branch; the score is the class score.",
                "centerness": "ATSS's centerness branch, whose output multiplies the class score only in inference.",
                "iou": "CLQ's localization quality estimation: the predicted IoU to the power QUALITY.ALPHA multiplies "
                "the class score in training and inference.",
                "dgqp": "GFLv2's distribution-guided quality predictor, whose output multiplies the class score in "
                "training and inference. It needs BOX.CODING distribution.",
                "task": "TOOD's probability map. The score is its geometric mean with the class score in training and "
                "inference.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.QUALITY.ALPHA",
        0.3,
        "The exponent alpha in the score of QUALITY.NAME iou, class score * IoU^alpha (equation 2 of CLQ's paper).",
        Number(above=0),
    ),
    Key(
        "MODEL.CLQ.QUALITY.LOSS_WEIGHT",
        1.0,
        "The weight of the binary cross entropy of the quality branch (equation 1 of CLQ's paper).",
        Number(minimum=0),
    ),
    Key(
        "MODEL.CLQ.QUALITY.TOWER",
        "cls",
        "The tower that QUALITY.NAME iou reads. The centerness branch always reads the regression tower.",
        OneOf(
            {
                "cls": "The classification tower, behind the feature alignment, as in the code of CLQ's authors.",
                "reg": "The regression tower, as in CLQ's paper and in checkpoints of this project's first version.",
            }
        ),
    ),
)
