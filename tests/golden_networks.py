"""The weights and the images that golden outputs of the authors' networks belong to."""

from math import prod, sqrt

import torch
from torch import Tensor, nn

NORMALISATIONS = nn.GroupNorm | nn.BatchNorm3d | nn.InstanceNorm3d


def fill(network: nn.Module) -> nn.Module:
    """Give every parameter the values that golden outputs belong to, by the kind of its layer."""
    for layer in network.modules():
        for name, tensor in layer.named_parameters(recurse=False):
            k = torch.arange(tensor.numel()).double()
            if isinstance(layer, NORMALISATIONS):
                values = 1 + 0.1 * (0.3 * k).sin() if name == "weight" else 0.1 * (0.7 * k).cos()
            elif name == "weight":
                values = (0.37 * k + 0.11).sin() * sqrt(2 / (tensor.numel() / tensor.shape[0]))
            else:
                values = 0.01 * (0.5 * k).cos()
            tensor.data = values.reshape(tensor.shape)
    return network


def wave(*shape: int) -> Tensor:
    """An image without symmetries."""
    k = torch.arange(prod(shape)).double()
    return (0.013 * k + 0.5 * (0.0007 * k).cos()).sin().reshape(shape)
