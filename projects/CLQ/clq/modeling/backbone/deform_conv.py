"""Deformable convolutions of a backbone through torchvision's op, in place of Detectron2's compiled ones.

Detectron2's ``DeformConv`` and ``ModulatedDeformConv`` need its compiled ops; on the CPU the one has no backward, the
other not even a forward. Here the same weights under the same names run anywhere.
"""

from detectron2.layers import Conv2d, DeformConv, ModulatedDeformConv
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class TorchvisionDeformConv(Conv2d):
    """Deformable convolution, modulated or not; arguments are those of :class:`detectron2.layers.Conv2d`."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolution that reads each tap of its kernel where the offset puts it, then normalisation and activation.

        Args:
            x: (N, C, H, W).
            offset: (N, G·2·T, H', W') in cells of x: for each of G deformable groups of channels and T taps of the
                kernel, row-major, (dy, dx).
            mask: (N, G·T, H', W'), by which each tap is multiplied, or None.

        Returns:
            (N, O, H', W') of the weight's type, float32, whatever autocast says: the op has no short types on the CPU.
        """
        x, offset, mask = (t if t is None else t.to(self.weight.dtype) for t in (x, offset, mask))
        x = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def use_torchvision_ops(model: nn.Module) -> nn.Module:
    """Replaces Detectron2's deformable convolutions in a model, in place; parameters and normalisations are kept."""
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, (DeformConv, ModulatedDeformConv)):
                ours = TorchvisionDeformConv(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,
                    conv.stride,
                    conv.padding,
                    conv.dilation,
                    conv.groups,
                    conv.bias is not None,
                    norm=conv.norm,
                    activation=conv.activation,
                    device="meta",  # its own parameters are never used
                )
                ours.weight, ours.bias = conv.weight, conv.bias
                setattr(parent, name, ours)
    return model
