"""What is said in the recordings of the zoo, to count errors by."""

from typing import Final

BECKETT: Final = "Ever tried, ever failed, no matter, try again, fail again, fail better."

TWO_CITIES: Final = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way\u2014in short, the period "
    "was so far like the present period, that some of its noisiest authorities insisted on its being received, for "
    "good or for evil, in the superlative degree of comparison only."
)
"""The first paragraph of A Tale of Two Cities by Charles Dickens, 1859."""

SAID: Final = {"beckett.wav": BECKETT, "two-cities.wav": TWO_CITIES}
"""By name of the recording."""
