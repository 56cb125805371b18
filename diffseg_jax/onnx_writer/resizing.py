"""Bilinear resizing to sizes that are known when the network runs."""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.onnx_writer.elementwise import elementwise
from diffseg_jax.onnx_writer.graph import Graph, Value, constant_of

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # channels


def resized(graph: Graph, maps: Value, size: Sequence) -> Value:
    """f32[B,h,w,C] -> f32[B,*size,C]: half-pixel centres, no antialiasing, edges repeated."""
    shape = (maps.shape[0], maps.shape[3], *size)
    inputs = [graph.whole(graph.transpose(maps, FIRST)), "", "", graph.dimensions(shape)]
    found = graph.make(
        "Resize", inputs, shape, "float32", mode="linear",
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    return graph.transpose(found, LAST)


def resized_images(graph: Graph, images: Value, size: Sequence) -> Value:
    """u8[B,h,w,3] -> u8[B,*size,3], rounded as `data.transforms.resize_image` does."""
    found = resized(graph, graph.cast(images, "float32"), size)
    half = constant_of(np.float32(0.5))
    found = elementwise(graph, "Add", [found, half], found.shape, found.dtype)
    return graph.cast(elementwise(graph, "Floor", [found], found.shape, found.dtype), "uint8")
