"""The passes that bring a model into FlagIR's canonical form, one per file; `flagsplit.flagir.canonical` orders them.

Each is an `onnx_ir` pass: its base class says whether it mutates the model and checks that claim; `requires` and
`ensures` hold what must be true before and after. Where onnx_ir or onnxscript has the pass, it is used as it is.
"""
