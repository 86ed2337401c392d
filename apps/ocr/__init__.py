"""Reading a scanned page: find its lines, prepare each for the PP-OCRv4 recognizer, turn the answer into text.

`read_page` is the way through; it is handed the function that runs the network, here or split over three machines.
`ink`, `components` and `lines` find the lines with NumPy alone; `recogniser` holds what goes before and after the
network; `page` loads images and puts it together.
"""

from flagsplit.apps.ocr.lines import LineBox, find_lines
from flagsplit.apps.ocr.page import first_page, load_gray, read_page, second_page
from flagsplit.apps.ocr.recogniser import Reading, characters_of, cut_line, decode, prepare

__all__ = [
    "LineBox",
    "Reading",
    "characters_of",
    "cut_line",
    "decode",
    "find_lines",
    "first_page",
    "load_gray",
    "prepare",
    "read_page",
    "second_page",
]
