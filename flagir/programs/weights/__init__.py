"""Readers of weight files in the formats that models are given away in; none needs the library that wrote the file.

`safetensors`, `ctranslate2` and `gguf` each give a `Weights`: the tensors of a file by name, read when asked for, which
`tensors` has. `mapped` holds the bytes. A file is not trusted: all counts, names and places are checked against its
length before anything is allocated.
"""
