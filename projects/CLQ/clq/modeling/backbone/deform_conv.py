"""Deformable convolutions of a backbone through torchvision's op, in place of Detectron2's compiled ops.

Detectron2's ``DeformConv`` and ``ModulatedDeformConv`` need its compiled ops. On the CPU the first has no backward
pass, and the second has no forward pass either. Here the same weights, under the same names, run on every device.
"""

from detectron2.layers import Conv2d, DeformConv, ModulatedDeformConv
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class TorchvisionDeformConv(Conv2d):
    """Deformable convolution, modulated or not; arguments are those of :class:`detectron2.layers.Conv2d`."""

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Samples each tap of the kernel at its offset, convolves, and applies normalization and activation.

        Args:
            x: feature map (N, C, H, W).
            offset: offsets (N, G·2·T, H', W') in cells of x, (dy, dx) for each of the G deformable groups of channels
                and T taps of the kernel, row-major.
            mask: factors (N, G·T, H', W') of the taps, or None.

        Returns:
            (N, O, H', W') in the weight's type, float32, inside autocast as well: on the CPU the op has no half
            precision.
        """
        dtype = self.weight.dtype
        x = deform_conv2d(
            x.to(dtype),
            offset.to(dtype),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            None if mask is None else mask.to(dtype),
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def use_torchvision_ops(model: nn.Module) -> nn.Module:
    """Replaces Detectron2's deformable convolutions in a model, in place; parameters and normalizations are kept."""
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
