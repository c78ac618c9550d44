"""The page's words, read from its source."""

import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "explorer" / "src" / "words.ts"


def words(lang: str) -> dict[str, str]:
    """Name -> sentence, of one language."""
    begin = {"en": "const en = {", "es": "const es: typeof en = {"}[lang]
    text = SOURCE.read_text().partition(begin)[2].partition("\n};")[0]
    return dict(re.findall(r'(\w+): "((?:[^"\\]|\\.)*)"', text))
