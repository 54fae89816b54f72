"""Torch-TensorRT: one stage in, one engine out, fp16 or calibrated fp8."""

from optim.tensorrt.backend import TensorRT

__all__ = ["TensorRT"]
