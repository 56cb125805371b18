"""Bilinear resizing to sizes that are known when the network runs."""

import math
from collections.abc import Sequence

import numpy as np

from diffseg_jax.onnx_writer.elementwise import elementwise
from diffseg_jax.onnx_writer.graph import ONNX_TYPES, Graph, Value, constant_of

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


def views_of_photographs(
    graph: Graph, photographs: Value, size: tuple[int, int], factor: float
) -> tuple[Value, Value]:
    """The part of photographs that a network sees, as `data.bev_transforms.RigView` has it.

    u8[b,n,H,W,3] -> u8[b,n,*size,3], which are made `factor` as large before the middle of their
    bottom is cut, and f32[2], the (row, column) of its upper left corner.
    """
    *rigs, height, width, channels = photographs.shape
    count = math.prod(rigs)
    seen = graph.whole(graph.reshape(photographs, (count, height, width, channels)))
    number = lambda value, dtype: graph.initializer(np.array([value], dtype))
    sides = [graph.size(side) for side in (height, width)]
    if factor != 1:
        for axis, side in enumerate(sides):
            exact = graph.add("Cast", [side], to=ONNX_TYPES["float64"])
            smaller = graph.add("Mul", [exact, number(factor, np.float64)])
            sides[axis] = graph.add("Cast", [smaller], to=ONNX_TYPES["int64"])
        inputs = [seen, "", "", graph.add("Concat", sides, axis=0)]
        seen = graph.add(
            "Resize", inputs, axes=[1, 2], mode="linear", antialias=1, exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        )  # fmt: skip
    beyond = [graph.add("Sub", [side, graph.integers(n)]) for side, n in zip(sides, size)]
    middle = graph.add("Div", [graph.add("Max", [beyond[1], graph.integers(0)]), graph.integers(2)])
    corner = graph.add("Concat", [beyond[0], middle], axis=0)
    ends = graph.add("Add", [corner, graph.integers(*size)])
    seen = graph.add("Slice", [seen, corner, ends, graph.integers(1, 2)])
    shape = (count, *size, channels)
    views = graph.reshape(Value(shape, "uint8", shape, seen), (*rigs, *size, channels))
    return views, graph.cast(Value((2,), "int64", (2,), corner), "float32")


def resized_images(graph: Graph, images: Value, size: Sequence) -> Value:
    """u8[B,h,w,3] -> u8[B,*size,3], rounded as `data.transforms.resize_image` does."""
    found = resized(graph, graph.cast(images, "float32"), size)
    half = constant_of(np.float32(0.5))
    found = elementwise(graph, "Add", [found, half], found.shape, found.dtype)
    return graph.cast(elementwise(graph, "Floor", [found], found.shape, found.dtype), "uint8")
