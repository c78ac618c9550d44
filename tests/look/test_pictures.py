"""docs/looking.md: its code draws the pictures that it shows, and what it calls is there."""

import ast
import re

from mirada import look
from tools.pictures import PAGE, blocks

LARGEST = 100_000  # bytes


def test_every_picture_shown_is_drawn_by_the_page_and_small():
    text, code = PAGE.read_text(), "\n".join(blocks())
    shown = re.findall(r"!\[[^]]+\]\(pictures/(\w+\.png)\)", text)
    drawn = re.findall(r"docs/pictures/(\w+\.png)", code)
    assert shown == drawn and len(shown) >= 6
    for name in shown:
        picture = (PAGE.parent / "pictures" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) <= LARGEST, name


def test_what_the_page_calls_is_there():
    for block in blocks():
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "look":
                assert callable(getattr(look, node.attr)), node.attr
