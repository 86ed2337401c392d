"""The process that runs Qualcomm's SDK: it compiles models, or opens one compiled model and runs it.

It is started by `process.py`, which says why it is a process of its own. Each request is a message with what to "do";
the answer is a message of the same kind, or one with "failed". What the SDK prints goes to standard error.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flagsplit.targets.mobile.qnn.frames import BrokenPipeContentError, receive, send

if TYPE_CHECKING:  # this process starts for every compile: it imports no more than it needs
    from flagsplit.targets.interface import Array

_PROVIDER = "QNNExecutionProvider"
_QUIET, _TALKATIVE = 4, 0


class Sdk:
    """What can be asked for. Every answer is a message and arrays."""

    def __init__(self) -> None:
        import onnxruntime
        import onnxruntime_qnn

        onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
        self._ort, self._backend = onnxruntime, onnxruntime_qnn.get_qnn_htp_path()
        self._devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == _PROVIDER][:1]
        self._session: Any = None

    def compile(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Compile the model at "source" for "soc" and "architecture" to a model with a context binary at "made".

        With "shared", to a small model and a binary beside it that further models of this process share, until "last".
        """
        settings = self._settings(_TALKATIVE if message.get("explain") else _QUIET, message)
        if message.get("shared"):
            settings.add_session_config_entry("ep.share_ep_contexts", "1")
            if message.get("last"):
                settings.add_session_config_entry("ep.stop_share_ep_contexts", "1")
        # From memory, not from the file: the name of the graph in the binary would depend on the file's path.
        source = Path(message["source"]).read_bytes()
        compiler = self._ort.ModelCompiler(settings, source, embed_compiled_data_into_model=not message.get("shared"))
        compiler.compile_to_file(message["made"])
        return {}

    def open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Open the compiled model at "file"; names, ONNX Runtime's types and shapes of what it takes and gives."""
        self._session = self._ort.InferenceSession(message["file"], self._settings(_QUIET, message))
        self._session.disable_fallback()  # an error is an error, not a reason to try the CPU
        sides = {"inputs": self._session.get_inputs(), "outputs": self._session.get_outputs()}
        return {side: [[v.name, v.type, v.shape] for v in values] for side, values in sides.items()}

    def run(self, arrays: "Mapping[str, Array]") -> "dict[str, Array]":
        """Run what was opened."""
        names = [value.name for value in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(arrays)), strict=True))

    def _settings(self, severity: int, message: Mapping[str, Any]) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = severity
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options = {"backend_path": self._backend}
        if "soc" in message:
            options |= {"soc_model": str(message["soc"]), "htp_arch": str(message["architecture"])}
            options["enable_htp_fp16_precision"] = "1"
        settings.add_provider_for_devices(self._devices, options)
        return settings


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    sdk = Sdk()
    send(answers, {}, {})
    while True:
        try:
            message, arrays = receive(requests)
        except BrokenPipeContentError:
            return
        try:
            if message["do"] == "run":
                send(answers, {}, sdk.run(arrays))
            else:
                send(answers, {"compile": sdk.compile, "open": sdk.open}[message["do"]](message), {})
        except Exception as error:  # noqa: BLE001 the SDK raises anything; all of it is the other side's to judge
            send(answers, {"failed": str(error)[:2000]}, {})


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the SDK prints to standard output
    serve(sys.stdin.buffer, answers)
