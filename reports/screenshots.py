"""The page of a memory report as a picture, at desktop and phone width.

python reports/screenshots.py      (writes reports/mcunet-5fps.html, -desktop.png, -phone.png and .png; needs
                                    playwright, Debian's chromium and the extra `report`)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COMMAND = [
    "report",
    "mcunet-5fps",
    "--batch-size",
    "8",
    "--optimizer",
    "adam",
    "--num-classes",
    "10",
    "--budget",
    "64MB",
]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDTHS = {"desktop": (1280, 1000), "phone": (375, 812)}


def main() -> None:
    """Make the page and the figure with the command line, and photograph the page."""
    from playwright.sync_api import sync_playwright

    page_file = FOLDER / "mcunet-5fps.html"
    for output in (page_file, FOLDER / "mcunet-5fps.png"):
        subprocess.run([sys.executable, "-m", "medyate_planner", *COMMAND, "-o", str(output), "--force"], check=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for name, (width, height) in WIDTHS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(page_file.as_uri())
            page.screenshot(path=FOLDER / f"mcunet-5fps-{name}.png", full_page=name == "desktop")
        browser.close()


if __name__ == "__main__":
    main()
