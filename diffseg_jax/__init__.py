"""Image segmentation with diffusion models, for many images and few labels."""

__version__ = "0.1.0"
