"""Front ends: what brings models of other makers into `onnx_ir`, before `flagsplit.flagir.canonical` takes over."""
