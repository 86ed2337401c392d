"""NVIDIA GPUs: FlagIR through PyTorch's compiler and a CUDA graph, or ONNX Runtime's CUDA providers."""
