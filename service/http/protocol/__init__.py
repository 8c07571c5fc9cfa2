"""The Open Inference Protocol v2 (JSON over HTTP), with Triton's binary tensors and model configuration."""
