"""Takes the plot out of a page that a comparison wrote, in its light colours, as a picture."""

import argparse
import re
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="of Report.html, as port.html of docs/parity.md")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write (.svg)")
    options = parser.parse_args()
    options.output.write_text(as_picture(options.page.read_text()))


def as_picture(page: str) -> str:
    """The plot with the rules of the page that it needs."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    style = re.sub(r"@media .*?\n(?=body)", "", style, flags=re.DOTALL)
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", style))
    style = re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], style)
    rules = "\n".join(re.findall(r"(?:svg text|polyline|line|circle)[^{}]*\{[^{}]*\}", style))
    plot = re.search(r"<svg ([^>]*role=[^>]*)>(.*?)</svg>", page, re.DOTALL)
    assert plot is not None
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"'
    back = f'<style>{rules}</style><rect width="100%" height="100%" fill="#fff"/>'
    return f"{head} {plot[1]}>{back}{plot[2]}</svg>\n"


if __name__ == "__main__":
    main()
