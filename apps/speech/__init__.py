"""Speech to text: from a WAV file to words with times, wherever the tokens are made.

`wav`, `resample` read sound; `vad`, `windows` cut it at pauses; `recognizer` says what turns a window into text, which
`program_recognizer` does here and `stream_recognizer` with decoder services; `merge`, `joiner` put the words of windows
together; `transcriber` is the way through all of them, `transcribe` what the command line calls. docs/transcribe.md.
"""
