"""TensorFlow Lite's file format: FlagIR lowered to it operator by operator, and an interpreter for it.

`lower` makes a `program` of a chip part with one lowering per operator in `ops`, `layout` puts channels last, `fuse`
takes operators together, `weights` makes constants smaller, `flatfile` writes one file with a signature for each
part, and `engine` runs it on this host. Targets of phones and of edge accelerators share it.
"""
