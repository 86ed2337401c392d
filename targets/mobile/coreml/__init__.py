"""Core ML: segments as functions of one `.mlpackage`, for the Neural Engine, the GPU and the CPU of Apple's devices."""
