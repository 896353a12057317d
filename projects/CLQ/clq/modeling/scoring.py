"""The final score of a detection, formed here for training and for inference alike.

Everything is in log space and in float32 or better. The probabilities of a trained detector saturate in single
precision, and ``log(1 - p)`` of a product of two sigmoids cannot be recovered from ``p``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clq.modeling.structures import LogScore

# Above this logit log(1 - sigmoid(q)^alpha) equals its asymptote log(alpha) - q to better than float32 resolution.
_SATURATED = 20.0


def joint_score(
    cls_logits: Tensor, quality_logits: Tensor | None, alpha: float = 1.0, cls_alpha: float = 1.0
) -> LogScore:
    r"""Final score :math:`p = \sigma(c)\,\sigma(q)^\alpha` (CLQ eq. 2 and 3).

    The complement is a sum of two positive terms, :math:`1 - p = (1 - \sigma(c)) + \sigma(c)(1 - \sigma(q)^\alpha)`,
    so it keeps its precision and its gradient where p rounds to 1.

    Args:
        cls_logits: (..., K) class logits c, of any float dtype.
        quality_logits: (..., 1) or (...) quality logits q of the same locations, or None for :math:`p = \sigma(c)`.
        alpha: exponent of the quality, above 0.
        cls_alpha: exponent of the class score, above 0. TOOD's score is a geometric mean: both exponents are 1/2.

    Returns:
        :class:`~clq.modeling.structures.LogScore` of two tensors (..., K), float32 (float64 for float64 input) inside
        autocast as well.

    Raises:
        ValueError: an exponent is not positive.
    """
    c = at_least_float32(cls_logits)
    log_cls, log_not_cls = _log_power(c, cls_alpha) if cls_alpha != 1 else (F.logsigmoid(c), F.logsigmoid(-c))
    if quality_logits is None:
        return LogScore(log_cls, log_not_cls)
    q = at_least_float32(quality_logits)
    if q.dim() == c.dim() - 1:
        q = q.unsqueeze(-1)
    log_quality, log_not_quality = _log_power(q, alpha)
    return LogScore(log_cls + log_quality, torch.logaddexp(log_not_cls, log_cls + log_not_quality))


def _log_power(logits: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """log(sigmoid(x)^alpha) and log(1 - sigmoid(x)^alpha) of logits x; finite with finite gradients."""
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    log_power = alpha * F.logsigmoid(logits)
    saturated = logits > _SATURATED
    x = torch.where(saturated, -1.0, log_power)
    # log(1 - e^x) in its two accurate forms; each sees a harmless argument where the other is taken, because the
    # backward pass of `where` multiplies the gradient of the branch not taken by zero, and 0 * inf is nan.
    small = x > -math.log(2.0)
    log1mexp = torch.where(
        small,
        torch.log(-torch.expm1(torch.where(small, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(small, -1.0, x))),
    )
    return log_power, torch.where(saturated, math.log(alpha) - logits, log1mexp)


def at_least_float32(x: Tensor) -> Tensor:
    """Casts to float32, and leaves float64: half precision rounds log scores to infinity and boxes to whole pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class ScoreRule:
    """Which score is trained and filters candidates, and which score ranks the detections.

    Attributes:
        alpha: exponent of the quality in the score.
        joint: whether the quality takes part in training and in filtering (CLQ, GFLv2). If not, these use the class
            score alone, and the quality is multiplied in afterwards, at test time only (the centerness of ATSS).
        cls_alpha: exponent of the class score in the score.
    """

    alpha: float = 1.0
    joint: bool = True
    cls_alpha: float = 1.0

    def trained(self, cls_logits: Tensor, quality_logits: Tensor | None) -> LogScore:
        """The score of the class loss, by which candidates are filtered too; shapes as in :func:`joint_score`."""
        return joint_score(cls_logits, quality_logits if self.joint else None, self.alpha, self.cls_alpha)

    def final(self, cls_logits: Tensor, quality_logits: Tensor | None) -> LogScore:
        """The score that detections carry and are ranked by; shapes as in :func:`joint_score`."""
        return joint_score(cls_logits, quality_logits, self.alpha, self.cls_alpha)
