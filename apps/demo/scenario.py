"""The demo's world: a phone on Wi-Fi, a small board at home, a GPU behind a fiber line."""

from pathlib import Path

TIERS = ("phone", "edge", "cloud")
DEVICES = {"phone": "generic-phone-cpu", "edge": "raspberry-pi-5", "cloud": "t4"}
PHONES = {"coreml": "iphone15pro", "litert": "pixel8", "qnn": "galaxy-s24"}
"""A phone that has the chip of a target."""
LINKS = {"edge": "300mbit/3ms", "cloud": "300mbit/6ms"}
SLA_FILE = Path(__file__).with_name("sla.json")
NOMINAL_WIDTH = 800
"""Pixels of a typical line of the page at the recognizer's height of 48; what the plans are made for."""
