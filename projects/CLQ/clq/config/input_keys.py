"""The keys of what happens to an image before the network sees it."""

from clq.config.key import Key, Number, Numbers, OneOf

_SHARE = Number(minimum=0, maximum=1)
_SIDES = ("height", "width")
_FACTORS = Numbers(("lowest", "highest"), Number(minimum=0), ascending=True)

IMAGE_KEYS = (
    Key(
        "INPUT.MAX_MEGAPIXELS",
        90.0,
        "The upper bound on the width times the height of an image file, in millions of pixels, checked before it is "
        "decoded. A file may have 8 bytes for each of these pixels.",
        Number(above=0),
    ),
    Key(
        "INPUT.GREY_RANGE",
        [],
        "The values that become black and white in grey images with more than 8 bits or real numbers. Values between "
        "them are scaled linearly, values outside are clipped. With [] the range of each image follows from its "
        "largest value: that of 8, 10, 12, 14 or 16 bits, or 0 to 1 for real numbers up to 1.",
        Numbers(
            ("black", "white"), Number(minimum=-1e9, maximum=1e9), ascending=True, distinct=True, may_be_empty=True
        ),
    ),
)

LETTERBOX_KEYS = (
    Key(
        "INPUT.LETTERBOX.ENABLED",
        False,
        "Whether each image is placed in the middle of a black frame, as large as it fits, in training and testing of "
        "a CLQ. This replaces INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST and the keys that belong to them.",
    ),
    Key(
        "INPUT.LETTERBOX.SIZE",
        [320, 320],
        "The size of the frame in pixels.",
        Numbers(_SIDES, Number(minimum=1), integers=True),
    ),
)

AUGMENTATION_KEYS = (
    Key(
        "INPUT.AUG.SCALE",
        [1.0, 1.0],
        "A zoom factor is drawn from this range, before the crop or the letterbox and in addition to Detectron2's "
        "resizing.",
        Numbers(("lowest", "highest"), Number(minimum=0.001, maximum=1000), ascending=True),
    ),
    Key(
        "INPUT.AUG.SCALE_SAMPLING",
        "log",
        "The distribution of the zoom factor.",
        OneOf(
            {
                "log": "Uniform in the logarithm of the factor, so that halving is as likely as doubling.",
                "uniform": "Uniform in the factor, as in NanoDet.",
            }
        ),
    ),
    Key("INPUT.AUG.SCALE_PROB", 1.0, "The probability of a zoom. NanoDet has 0.5.", _SHARE),
    Key(
        "INPUT.AUG.CROP",
        [],
        "The size in pixels of a window that is cut at random from the zoomed image, and padded where the image is "
        "smaller. The whole image is used if this is empty.",
        Numbers(_SIDES, Number(minimum=1), integers=True, may_be_empty=True),
    ),
    Key(
        "INPUT.AUG.SHIFT",
        0.0,
        "The centre of the image moves by up to this share of width and height. Only INPUT.LETTERBOX uses this. "
        "NanoDet has 0.2.",
        Number(minimum=0, maximum=0.5),
    ),
    Key("INPUT.AUG.SHIFT_PROB", 1.0, "The probability of such a shift. NanoDet has 0.5.", _SHARE),
    Key(
        "INPUT.AUG.ROTATE90",
        False,
        "Whether images are rotated by a random number of quarter turns. This suits images without an upright "
        "orientation, such as aerial ones.",
    ),
    Key("INPUT.AUG.FLIP_VERTICAL", False, "Whether half of the images are flipped upside down."),
    Key(
        "INPUT.AUG.MIN_VISIBLE",
        0.25,
        "Boxes of which augmentation leaves a smaller share than this are dropped. 0 keeps every box that still has an "
        "area, as in NanoDet.",
        _SHARE,
    ),
    Key(
        "INPUT.AUG.COLOR",
        0.0,
        "Brightness, contrast and saturation are each changed by a random factor between 1 - COLOR and 1 + COLOR.",
        _SHARE,
    ),
    Key(
        "INPUT.AUG.BRIGHTNESS",
        0.0,
        "A number between -BRIGHTNESS and BRIGHTNESS, times 255, is added to all channels. NanoDet has 0.2. This, "
        "CONTRAST and SATURATION are applied in this order, after COLOR and each with the probability COLOR_PROB. The "
        "values of pixels are real numbers from then on and are not clipped to 0 and 255; borders and padding change "
        "like the rest of the image.",
        _SHARE,
    ),
    Key(
        "INPUT.AUG.CONTRAST",
        [1.0, 1.0],
        "All values of pixels are multiplied by a factor from this range. NanoDet has [0.6, 1.4].",
        _FACTORS,
    ),
    Key(
        "INPUT.AUG.SATURATION",
        [1.0, 1.0],
        "The saturation (S of HSV) is multiplied by a factor from this range. NanoDet has [0.5, 1.2].",
        _FACTORS,
    ),
    Key(
        "INPUT.AUG.COLOR_PROB",
        0.5,
        "The probability of each of the changes of BRIGHTNESS, CONTRAST and SATURATION.",
        _SHARE,
    ),
)

MIXING_KEYS = (
    Key(
        "INPUT.AUG.MOSAIC",
        0.0,
        "The probability that a training image is a mosaic: four images, each resized once from its original, that "
        "meet in a random point of the frame. The frame is INPUT.LETTERBOX.SIZE or INPUT.AUG.CROP, or else the size "
        "that the image would have alone. INPUT.AUG.MIN_VISIBLE decides which cut boxes are kept.",
        _SHARE,
    ),
    Key(
        "INPUT.AUG.MOSAIC_SCALE",
        [0.5, 1.0],
        "The four images of a mosaic are resized to their usual size times a factor from this range, which takes the "
        "place of INPUT.AUG.SCALE.",
        Numbers(("lowest", "highest"), Number(minimum=0.001, maximum=1000), ascending=True),
    ),
    Key(
        "INPUT.AUG.MIXUP",
        0.0,
        "The probability that a training image is the weighted mean of two, with the boxes of both. The weight is "
        "drawn from Beta(32, 32), so it is close to a half. The first may be a mosaic.",
        _SHARE,
    ),
    Key(
        "INPUT.AUG.MIXING_ENDS",
        0.9,
        "The share of the training after which there are no mosaics and no mixup, so that it ends with images like "
        "those of the test.",
        _SHARE,
    ),
)
