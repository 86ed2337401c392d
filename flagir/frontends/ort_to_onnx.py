"""Converts one ONNX Runtime file to ONNX; a program of its own, because the engine may crash on a hostile file.

    python ort_to_onnx.py SOURCE TARGET WEIGHTS SECONDS MEMORY_BYTES FILE_BYTES

TARGET is written, and beside it WEIGHTS with all but the small tensors. `ort_file` runs it. It imports the engine only.
"""

import sys
from contextlib import suppress

_INLINE_BYTES = 1024


def main(source: str, target: str, weights: str, *limits: str) -> int:
    """Convert within limits; the exit code is 0, or 1 with a reason on stderr."""
    _limit(*(int(limit) for limit in limits))
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.optimized_model_filepath = target
    for key, value in (
        ("session.load_model_format", "ORT"),
        ("session.save_model_format", "ONNX"),
        ("session.disable_prepacking", "1"),
        ("session.optimized_model_external_initializers_file_name", weights),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_INLINE_BYTES)),
    ):
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the engine's errors have no common base
        print(error, file=sys.stderr)
        return 1
    return 0


def _limit(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Where the system knows such limits; it ends the program when one is passed."""
    try:
        import resource
    except ImportError:
        return
    for name, amount in (
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_FSIZE", file_bytes),
        ("RLIMIT_CORE", 0),
    ):
        with suppress(AttributeError, OSError, ValueError):
            hard = resource.getrlimit(getattr(resource, name))[1]
            wanted = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
            resource.setrlimit(getattr(resource, name), (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
