#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Draws docs/idea.svg, the picture that README.md begins with: one slot becomes three, in steps and in one.

Prints it; a test holds the committed picture against that.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

WIDTH, HEIGHT = 840, 404
STRIP, TALL, STEP = 328, 34, 60  # a layout: its width and height, and from one to the next
LEFT, RIGHT, TOP = 32, 480, 92
# A card of its own, so that it is as readable on a dark page as on a light one.
CARD, BORDER, TEXT, QUIET = "#ffffff", "#8c959f", "#1f2328", "#59636e"
BAD, GOOD = "#b3261e", "#1a6b3c"
COLOURS = {"old": "#b6d4f2", "first": "#c5e3c9", "middle": "#f3dca3", "last": "#d9cdf0"}


@dataclass(frozen=True)
class Slot:
    """A range of guest memory, in twelfths of what the picture shows."""

    first: int
    end: int
    name: str
    colour: str


OLD = (Slot(0, 12, "slot 0", "old"),)
NEW = (Slot(0, 5, "slot 0", "first"), Slot(5, 8, "slot 1", "middle"), Slot(8, 12, "slot 2", "last"))


def text(x: float, y: float, said: str, *, colour: str = TEXT, size: int = 14, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>{said}</text>'


def layout(x: float, y: float, slots: tuple[Slot, ...]) -> list[str]:
    """A row of slots; what none of them covers is a hole."""
    unit = STRIP / 12
    drawn = [f'<rect x="{x:g}" y="{y:g}" width="{STRIP}" height="{TALL}" fill="url(#hole)" stroke="{BAD}" stroke-dasharray="4 3"/>']
    for slot in slots:
        left, width = x + slot.first * unit, (slot.end - slot.first) * unit
        shape = f'x="{left:g}" y="{y:g}" width="{width:g}" height="{TALL}"'
        drawn.append(f'<rect {shape} fill="{COLOURS[slot.colour]}" stroke="{TEXT}"/>')
        drawn.append(text(left + width / 2, y + 22, slot.name, anchor="middle"))
    covered = max((slot.end for slot in slots), default=0)
    if covered < 12:
        drawn.append(text(x + (covered + 12) * unit / 2, y + 22, "hole", colour=BAD, anchor="middle", bold=True))
    return drawn


def arrow(x: float, y: float, end: float, said: str, colour: str) -> list[str]:
    """What makes the next layout out of the one above."""
    line = f'<path d="M{x:g} {y:g} V{end - 7:g}" stroke="{colour}" stroke-width="2" fill="none"/>'
    head = f'<path d="M{x - 5:g} {end - 8:g} h10 l-5 8 z" fill="{colour}"/>'
    return [line, head, text(x + 14, (y + end) / 2 + 5, said, size=13, colour=colour)]


def picture() -> str:
    """The whole SVG."""
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="Helvetica, Arial, sans-serif" role="img">',
        "<!-- SPDX-License-Identifier: GPL-2.0 -->",
        "<!-- Drawn by docs/idea.py -->",
        "<title>One memory slot becomes three: with KVM's calls through four states, three of them with a hole;"
        " with memslot in one step</title>",
        '<defs><pattern id="hole" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        f'<rect width="8" height="8" fill="#fdeceb"/><path d="M0 0 V8" stroke="{BAD}" stroke-opacity="0.35"/></pattern></defs>',
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10" fill="{CARD}" stroke="{BORDER}"/>',
        text(LEFT, 40, "KVM: one call per slot", size=18, bold=True),
        text(LEFT, 64, "the guest runs on, through each state in between", colour=QUIET),
        text(RIGHT, 40, "memslot: one commit", size=18, bold=True),
        text(RIGHT, 64, "the guest finds the old layout or the new one", colour=QUIET),
        f'<path d="M{WIDTH / 2:g} 24 V{HEIGHT - 24}" stroke="{BORDER}" stroke-dasharray="2 4"/>',
    ]
    states = (OLD, (), NEW[:1], NEW[:2], NEW)
    calls = ("delete slot 0", "create slot 0", "create slot 1", "create slot 2")
    for number, state in enumerate(states):
        drawn += layout(LEFT, TOP + number * STEP, state)
    for number, call in enumerate(calls):
        above = TOP + number * STEP + TALL
        drawn += arrow(LEFT + 20, above, above + STEP - TALL, call, QUIET)
    for number in (1, 2, 3):
        drawn.append(text(LEFT + STRIP, TOP + number * STEP + TALL + 17, "a vCPU here: the guest dies", colour=BAD, size=12, anchor="end"))
    last = TOP + (len(states) - 1) * STEP
    drawn += layout(RIGHT, TOP, OLD)
    drawn += layout(RIGHT, last, NEW)
    drawn += arrow(RIGHT + 20, TOP + TALL, last, "one commit of three changes", GOOD)
    drawn += [text(RIGHT + 34, (TOP + TALL + last) / 2 + 27, "no hole, no mixture, vCPUs keep running", colour=QUIET, size=13), "</svg>"]
    return "\n".join(drawn) + "\n"


if __name__ == "__main__":
    sys.stdout.write(picture())
