"""The keys of the detector: its backbone, the structure of its head, and the selection of its detections."""

from clq.config.key import Key, Names, Number, OneOf

_ACTIVATIONS = {
    "relu": "ReLU.",
    "leaky_relu": "LeakyReLU with slope 0.1 for negative values, as in NanoDet.",
}

BACKBONE_KEYS = (
    Key(
        "MODEL.SHUFFLENET.NAME",
        "shufflenet_v2_x1_0",
        "The ShuffleNetV2 of torchvision that build_shufflenet_pan_backbone builds.",
        OneOf(
            {
                "shufflenet_v2_x0_5": "Half the channels.",
                "shufflenet_v2_x1_0": "The channels of the paper's standard model.",
                "shufflenet_v2_x1_5": "One and a half times the channels.",
                "shufflenet_v2_x2_0": "Twice the channels.",
            }
        ),
    ),
    Key(
        "MODEL.SHUFFLENET.NORM",
        "BN",
        "The normalisation layers of the ShuffleNet.",
        OneOf(
            {
                "BN": "Batch normalisation that is trained. Batches should not be small.",
                "FrozenBN": "The running statistics and affine parameters of MODEL.WEIGHTS, kept as they are.",
            }
        ),
    ),
    Key(
        "MODEL.SHUFFLENET.ACTIVATION",
        "relu",
        "The activation function of the ShuffleNet.",
        OneOf(_ACTIVATIONS),
    ),
)

DETECTOR_KEYS = (
    Key(
        "MODEL.MAX_WEIGHTS_GIB",
        16.0,
        "The upper bound on the size of the content of MODEL.WEIGHTS in GiB, checked before it is read.",
        Number(above=0),
    ),
    Key(
        "MODEL.CLQ.NUM_CLASSES",
        -1,
        "The number of classes, K. With -1 it is the number of classes of the first training set.",
        Number(minimum=1, also=(-1,)),
    ),
    Key(
        "MODEL.CLQ.IN_FEATURES",
        ["p3", "p4", "p5", "p6", "p7"],
        "The levels of the feature pyramid that the head reads, from fine to coarse.",
        Names(),
    ),
    Key(
        "MODEL.CLQ.CHECKPOINT_BACKBONE",
        False,
        "Whether the backward pass computes the stages of the ResNet again instead of keeping their intermediate "
        "results. This takes less memory and more time.",
    ),
    Key(
        "MODEL.CLQ.COMPILE",
        False,
        "Whether torch.compile compiles backbone and head, in training and inference. Losses and post-processing are "
        "not compiled because their shapes depend on the content of the images. Each of the first few image sizes "
        "causes one more compilation, for a range of sizes. After torch's recompile limit of 8, an image size that no "
        "compiled form fits runs without compilation.",
    ),
    Key(
        "MODEL.CLQ.RELU_BEFORE_P7",
        False,
        "Whether P7 is computed from P6 through a ReLU, as in VFNet.",
    ),
    Key(
        "MODEL.CLQ.ANCHOR_SCALE",
        8.0,
        "The side of the one square anchor of each location, in strides of its level.",
        Number(above=0),
    ),
    Key(
        "MODEL.CLQ.ANCHOR_OFFSET",
        0.0,
        "The centre of the anchor at column i and row j is ((i + offset) * stride, (j + offset) * stride).",
        Number(minimum=0, below=1),
    ),
    Key(
        "MODEL.CLQ.PRIOR_PROB",
        0.01,
        "The class probability at initialization, RetinaNet's pi.",
        Number(above=0, below=1),
    ),
)

HEAD_KEYS = (
    Key(
        "MODEL.CLQ.TOWERS",
        "separate",
        "How the classification tower and the regression tower of the head are connected.",
        OneOf(
            {
                "separate": "The two towers share nothing.",
                "shared": "Both sides read the output of one tower, as in NanoDet.",
                "interactive": "Both sides read all layers of one tower through layer attention, as in TOOD.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.CONV",
        "full",
        "The kind of convolutions in the towers.",
        OneOf(
            {
                "full": "3x3 convolutions.",
                "depthwise": "A 3x3 convolution of each channel, then a 1x1 convolution; the output layers of the head "
                "are 1x1 convolutions. NanoDet has these.",
            }
        ),
    ),
    Key("MODEL.CLQ.NUM_CONVS", 4, "The number of convolutions of each tower.", Number(minimum=0)),
    Key("MODEL.CLQ.CONV_DIM", 256, "The number of channels of each tower.", Number(minimum=1)),
    Key(
        "MODEL.CLQ.NORM",
        "GN",
        "The normalization after each convolution of the towers, by its name in detectron2.layers.get_norm.",
        OneOf(
            {
                "GN": "Group normalization with 32 groups.",
                "BN": "Batch normalization over the images of one process.",
                "SyncBN": "Batch normalization over the images of all processes.",
                "FrozenBN": "Batch normalization whose statistics and affine parameters are constants.",
                "nnSyncBN": "torch.nn.SyncBatchNorm.",
                "naiveSyncBN": "Detectron2's NaiveSyncBatchNorm, which weighs all processes equally.",
                "naiveSyncBN_N": "Detectron2's NaiveSyncBatchNorm, which weighs processes by their number of images.",
                "": "No normalization; the convolutions have a bias instead.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.ACTIVATION",
        "relu",
        "The activation function after each normalization of the towers.",
        OneOf(_ACTIVATIONS),
    ),
    Key(
        "MODEL.CLQ.HEAD_PER_LEVEL",
        False,
        "Whether each level has a head of its own, as in NanoDet. Otherwise all levels share one head.",
    ),
    Key(
        "MODEL.CLQ.LEVEL_SCALES",
        True,
        "Whether the box prediction of each level is multiplied by a learnable scale. NanoDet has no such scales.",
    ),
)

BOX_FEATURE_KEYS = (
    Key(
        "MODEL.CLQ.ALIGN.NAME",
        "learned",
        "The feature alignment in front of the classification tower: a deformable 3x3 convolution that follows the "
        "regressed box.",
        OneOf(
            {
                "none": "No feature alignment.",
                "learned": "A 1x1 convolution computes the offsets from the regressed box, as in the code of CLQ's "
                "authors.",
                "geometric": "The nine taps are spread evenly over the regressed box. This is this project's own.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.ALIGN.OFFSET_GROUPS",
        4,
        "The number of groups of channels that have offsets of their own in the learned feature alignment.",
        Number(minimum=1),
    ),
    Key(
        "MODEL.CLQ.ALIGN.OFFSET_STD",
        0.1,
        "The standard deviation of the initial weights from a box's sides to the offsets of the learned feature "
        "alignment. With the authors' 0.1, a box of 16 x 16 cells, as distributions have at first, spreads the taps by "
        "1.6 cells.",
        Number(minimum=0),
    ),
    Key(
        "MODEL.CLQ.ALIGN.GRADIENT",
        1.0,
        "The share of the gradient that flows through the offsets of the learned and the geometric feature alignment "
        "into the box. The configs set 1 for learned and 0 for geometric.",
        Number(minimum=0, maximum=1),
    ),
    Key(
        "MODEL.CLQ.ALIGN.BACKEND",
        "auto",
        "The implementation of the deformable convolution, also of the one in REFINE.NAME star. All of them compute "
        "the same.",
        OneOf(
            {
                "auto": "The fastest one for the device.",
                "torchvision": "torchvision.ops.deform_conv2d.",
                "grid_sample": "Operations of plain torch that all devices and exporters have.",
                "gather": "Operations of plain torch, which are faster on CPUs.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.REFINE.NAME",
        "none",
        "The refinement of the boxes behind the towers.",
        OneOf(
            {
                "none": "No refinement.",
                "star": "VFNet's: deformable convolutions along the box give a factor for each of its distances and "
                "the feature for the class. It needs BOX.CODING distance.",
                "sampling": "TOOD's: each side of the box is read at a learned place in its neighbourhood. It needs "
                "BOX.CODING ltrb.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.REFINE.COARSE_LOSS_WEIGHT",
        1.5,
        "The weight of the GIoU loss of the boxes before REFINE.NAME star.",
        Number(minimum=0),
    ),
)

SELECTION_KEYS = (
    Key(
        "MODEL.CLQ.SCORE_THRESH",
        0.05,
        "Only detections with a score above this become candidates. The score is the final one, except for ATSS, where "
        "it is the class score.",
        Number(below=1),
    ),
    Key(
        "MODEL.CLQ.TOPK_CANDIDATES",
        1000,
        "The largest number of candidates of each level that NMS sees.",
        Number(minimum=1),
    ),
    Key(
        "MODEL.CLQ.TOPK_COUNTS",
        "locations",
        "What TOPK_CANDIDATES counts.",
        OneOf(
            {
                "pairs": "Pairs of a location and a class, as in MMDetection 3.",
                "locations": "Locations, by their best class, as in MMDetection 2.6, on which CLQ's authors built, and "
                "in NanoDet. Boxes without an area are kept, as there.",
            }
        ),
    ),
    Key(
        "MODEL.CLQ.NMS_THRESH",
        0.6,
        "NMS drops a detection whose IoU with a better one of the same class is above this.",
        Number(minimum=0),
    ),
)
